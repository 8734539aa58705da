"""Masks of data sets: read, joined; and the images of a folder."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..images.inputs import natural_key
from ..images.masks import IMAGE_ENDS, read_mask_file
from .shapes import Shape
from .types import Truth


def list_images(folder: Path, deep: bool = True) -> list[Path]:
    """The images in a folder, by their endings, in natural order; deep: and in its subfolders."""
    found = folder.rglob("*") if deep else folder.glob("*")
    plain = (p for p in found if p.suffix.lower() in IMAGE_ENDS and not p.name.startswith("."))
    return sorted((p for p in plain if p.is_file()), key=natural)


def list_folders(folder: Path) -> list[Path]:
    """The folders in a folder, in natural order."""
    return sorted((f for f in folder.iterdir() if f.is_dir()), key=natural)


def natural(path: Path) -> list[tuple[int, int, str]]:
    """`inputs.natural_key` of a path."""
    return natural_key(str(path))


def read_mask(mask: Path | Shape) -> NDArray[np.bool_]:
    """Read a mask: bool [height, width], True where the image is anomalous.

    See `masks.to_mask` for what counts. Raises InputError.
    """
    if not isinstance(mask, Path):
        try:
            return mask.draw()
        except ValueError as error:
            raise InputError(f"cannot draw a mask: {error}. Mend the annotations") from error
    return read_mask_file(mask)


def read_truth(truth: Truth) -> NDArray[np.bool_] | None:
    """What any of an image's masks covers, bool [height, width]; None: it has none.

    Raises InputError if one cannot be read, or they are not of one size.
    """
    joined: NDArray[np.bool_] | None = None
    for one in truth.masks:
        mask = read_mask(one)
        if joined is not None and joined.shape != mask.shape:
            raise InputError(
                f"the masks of one image differ in size ({joined.shape} and {mask.shape} in "
                f"{str(one)[:200]!r}): mend the data set"
            )
        joined = mask if joined is None else joined | mask
    return joined


def is_empty(mask: Path | Shape) -> bool:
    """Whether a mask covers nothing. Raises InputError."""
    return not read_mask(mask).any()
