"""FiftyOne: a dataset folder, for `fiftyone.Dataset.from_dir` with FiftyOneDataset as its type.

The plain form that FiftyOne has read since 0.8, without fields of a single version of its database.
"""

import base64
import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..images.raster import Bools, encode
from ..runs import storage
from ..runs.pictures import colour_bounds, draw_top
from ..runs.storage import clean
from .areas import Area
from .contents import CATEGORY, Contents, Item

HEAT_SIDE = 1024  # longer side of a heat map, pixels; FiftyOne stretches it
_HEAT = "heatmap"  # name of the field; its files are looked for in fields/heatmap
_TOP = 255


def write(contents: Contents, folder: Path, images: str) -> None:
    """Write scores, flags, labels, heat maps on one scale, and regions with their pixels.

    images: whether samples name the originals, or copies in the folder.
    """
    low, high = colour_bounds(contents.run, draw_top(contents.run))
    samples = []
    for item in contents:
        if images == "copy":
            file = f"data/{item.file_name}"
            contents.copy_file(item, folder / file)
        else:
            file = str(contents.file_of(item))
        heat = f"fields/{_HEAT}/{item.stem}.png"
        storage.write_bytes(folder / heat, _heat_png(contents, item, low, high), durable=False)
        samples.append(_sample(item, contents.areas(item), clean(file), clean(heat)))
    info = {
        "patchcluster": __version__,
        "run": clean(str(contents.run.folder)),
        "threshold": contents.run.threshold.value,
        "heatmap_of_0": low,  # the map's values at which a heat map is 0 and 255
        "heatmap_of_255": high,
    }
    name = clean(contents.run.folder.resolve().name)
    storage.write_json(
        folder / "metadata.json", {"name": name, "media_type": "image", "info": info}
    )
    storage.write_json(folder / "samples.json", {"samples": samples})


def _heat_png(contents: Contents, item: Item, low: float, high: float) -> bytes:
    """Return the map of an image as an 8-bit grey PNG: 0 up to `low` or NaN, 255 from `high`."""
    image = item.image
    factor = min(1.0, HEAT_SIDE / max(image.width, image.height))
    width, height = (max(1, round(side * factor)) for side in (image.width, image.height))
    values = np.nan_to_num(contents.run.map_at(image.path, width, height), nan=low)
    share = np.clip((values - low) / (high - low), 0, 1)
    return encode(np.rint(share * _TOP).astype(np.uint8))


def _sample(item: Item, areas: list[Area], file: str, heat: str) -> dict[str, Any]:
    sample = {
        "filepath": file,
        "tags": ["flagged"] if item.flagged else [],
        "metadata": {
            "_cls": "ImageMetadata",
            "width": item.image.width,
            "height": item.image.height,
        },
        "path": clean(item.image.path),
        "score": item.score,
        "rank": item.rank,
        "probability": item.probability,
        "percentile": item.percentile,
        "flagged": item.flagged,
        "nearest": clean(item.nearest),
        _HEAT: {"_cls": "Heatmap", "tags": [], "map_path": heat, "range": [0.0, float(_TOP)]},
        "regions": {
            "_cls": "Detections",
            "detections": [_detection(area, item) for area in areas],
        },
    }
    if item.label:
        sample["label"] = {"_cls": "Classification", "tags": [], "label": item.label}
    return sample


def _detection(area: Area, item: Item) -> dict[str, Any]:
    region, sides = area.region, [item.image.width, item.image.height]
    return {
        "_cls": "Detection",
        "attributes": {},
        "tags": [],
        "label": CATEGORY,
        "bounding_box": (area.box / [*sides, *sides]).tolist(),
        "mask": _pack(area.mask),
        "peak": region.peak,
        "area": region.area,
        "group": region.group,
    }


def _pack(mask: Bools) -> str:
    """Encode a mask as FiftyOne stores arrays in text."""
    buffer = io.BytesIO()
    np.save(buffer, mask, allow_pickle=False)
    return base64.b64encode(zlib.compress(buffer.getvalue())).decode("ascii")
