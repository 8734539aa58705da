"""YOLO as Ultralytics reads it: images/, labels/ and data.yaml."""

from pathlib import Path

import numpy as np

from ..runs import storage
from .areas import Area
from .contents import CATEGORY, Contents, Item

_YAML = f"train: images\nval: images\nnames:\n  0: {CATEGORY}\n"


def write(contents: Contents, folder: Path, segmentation: str, images: str) -> None:
    """Write a line per region, in fractions of the image: its polygon, or its box (centre, size).

    images: whether the images in the folder are links to the originals, or copies.
    """
    for item in contents:
        picture = folder / "images" / item.file_name
        if images == "copy":
            contents.copy_file(item, picture)
        else:
            picture.parent.mkdir(parents=True, exist_ok=True)
            picture.symlink_to(contents.file_of(item))
        lines = [_line(area, item, segmentation) for area in contents.areas(item)]
        text = "".join(f"{line}\n" for line in lines)
        storage.write_bytes(folder / "labels" / f"{item.stem}.txt", text.encode(), durable=False)
    storage.write_bytes(folder / "data.yaml", _YAML.encode())


def _line(area: Area, item: Item, segmentation: str) -> str:
    sides = np.array([item.image.width, item.image.height])
    if segmentation == "polygon":
        values = (area.polygon / sides).ravel().tolist()
    else:
        corner, size = area.box[:2], area.box[2:]
        values = [*(corner + size / 2) / sides, *size / sides]
    return " ".join(["0", *(f"{value:.6f}" for value in values)])
