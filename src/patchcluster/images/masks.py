"""Masks as files: found by the name of their image, read, brought to a grid."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import InputError
from .inputs import reason

Bools = NDArray[np.bool_]

IMAGE_ENDS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
_MASK_NAMES = ("{}_mask", "{}")


def find_mask(folder: Path, stem: str) -> Path | None:
    """Find the mask of an image in a folder: NAME_mask or NAME, with the ending of any image."""
    return next(_named(folder, (pattern.format(stem) for pattern in _MASK_NAMES)), None)


def find_named(folder: Path, stem: str) -> Path | None:
    """Find the image of exactly this name in a folder, with the ending of any image."""
    return next(_named(folder, iter([stem])), None)


def _named(folder: Path, stems: Iterator[str]) -> Iterator[Path]:
    paths = (folder / (stem + end) for stem in stems for end in IMAGE_ENDS)
    return (path for path in paths if path.is_file())


def read_mask_file(path: Path) -> Bools:
    """Read a mask: bool [height, width], True inside. See `to_mask`. Raises InputError."""
    try:
        with Image.open(path) as image:
            return to_mask(image)
    except Exception as error:  # damaged files make Pillow's readers raise almost anything
        raise InputError(f"cannot read the mask {str(path)!r}: {reason(error)}") from error


def to_mask(picture: Any) -> Bools:
    """Make a mask of a picture of Pillow, an array or a tensor, [h, w] or with one channel.

    Those that reach 255 are cut at half of it, since some went through JPEG; in masks of labels
    everything but 0 is inside. Raises ValueError for other shapes.
    """
    if isinstance(picture, Image.Image):
        single = len(picture.getbands()) == 1 and picture.mode != "P"
        picture = picture if single else picture.convert("L")
    values = np.asarray(picture)
    if values.ndim == 3 and 1 in (values.shape[0], values.shape[2]):
        values = values[0] if values.shape[0] == 1 else values[..., 0]
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"a mask of shape {list(values.shape)}, not [height, width]")
    mask: Bools = values > (127 if values.max() == 255 else 0)
    return mask


def cover(mask: Bools, size: tuple[int, int]) -> Bools:
    """Mark the cells of a grid of size (h, w) over a mask bool [height, width] that hold any of it.

    -> bool [h, w]
    """
    for axis, count in enumerate(size):
        side, cells = mask.shape[axis], np.arange(count)
        inside = np.cumsum(mask, axis, dtype=np.int32)  # rows or columns up to here
        inside = np.insert(inside, 0, 0, axis)
        first, end = cells * side // count, -(-(cells + 1) * side // count)
        mask = inside.take(end, axis) > inside.take(first, axis)
    return mask
