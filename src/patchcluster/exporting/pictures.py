"""A picture of each image: the mask of its regions as PNG, its map as TIFF."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from ..runs import storage
from .contents import Contents


def write_masks(contents: Contents, folder: Path) -> None:
    """8-bit PNG of the image's size as NAME_mask.png: 255 in a region, 0 elsewhere."""
    for item in contents:
        mask = np.zeros((item.image.height, item.image.width), np.uint8)
        for area in contents.areas(item):
            region = area.region
            rows = slice(region.y, region.y + region.height)
            columns = slice(region.x, region.x + region.width)
            mask[rows, columns][area.mask] = 255
        _save(mask, folder / f"{item.stem}_mask.png", "PNG")


def write_heatmaps(contents: Contents, folder: Path) -> None:
    """The map as TIFF, float32, of one channel, as NAME.tiff; NaN outside a region of interest."""
    for item in contents:
        image_map = contents.run.map(item.image.path)
        _save(image_map, folder / f"{item.stem}.tiff", "TIFF", compression="tiff_adobe_deflate")


def _save(pixels: np.ndarray, file: Path, kind: str, **options: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    storage.write_bytes(file, buffer.getvalue(), durable=False)
