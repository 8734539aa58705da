"""COCO: one JSON file, as pycocotools loads it."""

from pathlib import Path
from typing import Any

from .. import __version__
from ..runs import storage
from ..runs.storage import clean
from .areas import Area, run_lengths
from .contents import CATEGORY, Contents, Item

Annotation = dict[str, Any]


def write(contents: Contents, file: Path, segmentation: str) -> None:
    """Write images, regions and one category.

    segmentation: polygon, rle (exact, uncompressed) or box.
    """
    images, annotations = [], list[Annotation]()
    for number, item in enumerate(contents, start=1):
        images.append(_image(number, item))
        for area in contents.areas(item):
            one = _annotation(len(annotations) + 1, area, item, segmentation)
            annotations.append(one | {"image_id": number})
    info = {
        "description": f"anomalous regions of {clean(str(contents.run.folder))}",
        "version": __version__,
        "date_created": contents.run.info.finished,
        "image_folder": clean(contents.folder),
    }
    value = {
        "info": info,
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": CATEGORY, "supercategory": ""}],
    }
    storage.write_json(file, value)


def _image(number: int, item: Item) -> dict[str, Any]:
    return {
        "id": number,
        "file_name": clean(item.name),
        "width": item.image.width,
        "height": item.image.height,
        "score": item.score,
        "flagged": item.flagged,
    }


def _annotation(number: int, area: Area, item: Item, segmentation: str) -> Annotation:
    region = area.region
    return {
        "id": number,
        "category_id": 1,
        "bbox": area.box.tolist(),
        "area": int(area.mask.sum()),
        "iscrowd": 0,
        "segmentation": _segmentation(area, item, segmentation),
        "score": region.peak,
        "attributes": {"group": region.group},
    }


def _segmentation(area: Area, item: Item, kind: str) -> Any:
    if kind == "box":
        return []
    if kind == "polygon":
        return [area.polygon.ravel().tolist()]
    region, image = area.region, item.image
    # COCO counts column by column.
    counts = run_lengths(area.mask.T, region.y, region.x, image.height, image.width)
    return {"size": [image.height, image.width], "counts": counts}
