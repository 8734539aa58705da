"""Data sets: categories of images with their truth."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..images.masks import read_mask_file
from .shapes import Shape


@dataclass(frozen=True)
class Truth:
    """Whether an image is anomalous, and its masks: files, or shapes that are still to be drawn.

    What any of them covers is anomalous (`read_truth`). An anomalous image without masks: no one
    says where.
    """

    anomalous: bool
    masks: tuple[Path | Shape, ...] = ()


@dataclass(frozen=True)
class Sample:
    """One image of a data set; `train`: of its training part, which may hold anomalous ones."""

    path: str
    train: bool
    truth: Truth


@dataclass(frozen=True)
class Category:
    """The images of one kind of object or texture, in natural order, the training part first."""

    name: str
    samples: list[Sample]


def read_mask(mask: Path | Shape) -> NDArray[np.bool_]:
    """Read a mask: bool [height, width], True where the image is anomalous.

    See `masks.to_mask` for what counts. Raises InputError.
    """
    if isinstance(mask, Path):
        return read_mask_file(mask)
    try:
        return mask.draw()
    except ValueError as error:
        raise InputError(f"cannot draw a mask: {error}. Mend the annotations") from error


def read_truth(truth: Truth) -> NDArray[np.bool_] | None:
    """Read what any of an image's masks covers, bool [height, width]; None: it has none.

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


def take_mask(mask: Path | Shape | None) -> Truth:
    """Say what a mask alone says of an image: without a pixel, or none, it is normal.

    Raises InputError if it cannot be read.
    """
    if mask is None or not read_mask(mask).any():
        return Truth(False)
    return Truth(True, (mask,))
