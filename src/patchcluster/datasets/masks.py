"""Masks: found beside images, read, joined."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import InputError
from ..inputs import natural_key, reason
from .shapes import Shape, to_mask
from .types import Truth

IMAGE_ENDS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
_MASK_NAMES = ("{}_mask", "{}")


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


def find_mask(folder: Path, stem: str) -> Path | None:
    """The mask of an image in a folder: NAME_mask or NAME, with the ending of any image."""
    return next(_named(folder, (pattern.format(stem) for pattern in _MASK_NAMES)), None)


def find_named(folder: Path, stem: str) -> Path | None:
    """The image of exactly this name in a folder, with the ending of any image."""
    return next(_named(folder, iter([stem])), None)


def _named(folder: Path, stems: Iterator[str]) -> Iterator[Path]:
    paths = (folder / (stem + end) for stem in stems for end in IMAGE_ENDS)
    return (path for path in paths if path.is_file())


def read_mask(mask: Path | Shape) -> NDArray[np.bool_]:
    """Read a mask: bool [height, width], True where the image is anomalous.

    See `shapes.to_mask` for what counts. Raises InputError.
    """
    if not isinstance(mask, Path):
        try:
            return mask.draw()
        except ValueError as error:
            raise InputError(f"cannot draw a mask: {error}. Mend the annotations") from error
    try:
        with Image.open(mask) as image:
            return to_mask(image)
    except Exception as error:  # damaged files make Pillow's readers raise almost anything
        raise InputError(f"cannot read the mask {str(mask)!r}: {reason(error)}") from error


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
