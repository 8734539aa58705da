"""Data sets: categories of images with their truth, and which images the paper's settings take."""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, UnreadableImage
from ..images.decode import read_orientation
from ..images.masks import read_mask_file
from ..images.raster import SWAPPING, find_turn, fits, orient
from .drawn import Polygons, Shape

Setting = Literal["mix", "test", "ano", "one-class"]
SETTINGS: tuple[Setting, ...] = get_args(Setting)


@dataclass(frozen=True)
class Truth:
    """Whether an image is anomalous, and its masks: files, or shapes that are still to be drawn.

    What any of them covers is anomalous (`read_truth`). An anomalous image without masks: no one
    says where. source: where the annotations that the masks are of stand, which are of the size of
    the image; "": nowhere.
    """

    anomalous: bool
    masks: tuple[Path | Shape, ...] = ()
    source: str = field(default="", compare=False)


@dataclass(frozen=True)
class Sample:
    """One image of a data set; `train`: of its training part, which may hold anomalous ones.

    name: as a file of annotations has it; "": folders name it.
    """

    path: str
    train: bool
    truth: Truth
    name: str = field(default="", compare=False)


@dataclass(frozen=True)
class Category:
    """The images of one kind of object or texture, in natural order, the training part first."""

    name: str
    samples: list[Sample]


@dataclass(frozen=True)
class Split:
    """The scored images and the bank of a setting: indices in the samples of the category.

    blind: the bank is the scored set itself; else it is known to be normal.
    """

    scored: list[int]
    bank: list[int]
    blind: bool


def select(category: Category, setting: Setting) -> Split:
    """Choose images of a category by one of the paper's settings (section 3; one-class: 5.4).

    The bank of one-class is what is normal in the training part. Raises InputError if the category
    has not the images for it.
    """
    samples = category.samples
    test = [i for i, sample in enumerate(samples) if not sample.train]
    train = [i for i, sample in enumerate(samples) if sample.train]
    if setting in ("mix", "one-class") and not train:
        raise InputError(f"{category.name} has no training images: choose setting test or ano")
    if setting == "one-class":
        return Split(test, [i for i in train if not samples[i].truth.anomalous], blind=False)
    scored = [*train, *test] if setting == "mix" else test
    if setting == "ano":
        scored = [i for i in test if samples[i].truth.anomalous]
    return Split(scored, scored, blind=True)


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

    Raises InputError if one cannot be read, they are not of one size, or they cover nothing of an
    anomalous image.
    """
    joined = _join_masks(truth)
    return None if joined is None else _check_covers(joined, truth)


def read_shown(truth: Truth, path: str, width: int, height: int) -> NDArray[np.bool_] | None:
    """Read the masks of an image as `read_truth`, turned as the image is shown.

    path: of the image; width, height: as shown, that is with its EXIF orientation applied. Masks
    whose aspect is that before are turned: see `find_turn`. Annotations in a file must have the
    size of the image; a mask must not have the image's width and height swapped after that.

    Raises InputError as `read_truth`, and if the size does not fit.
    """
    mask = _join_masks(truth)
    if mask is None:
        return None
    try:
        turn = find_turn(mask.shape, width, height, partial(read_orientation, path))
    except UnreadableImage as error:
        raise InputError(
            f"the mask {_name(truth)!r} has width and height of {path!r} swapped, and the image "
            f"cannot be read ({error}): run this where the image is"
        ) from error
    shares = [one for one in truth.masks if isinstance(one, Polygons) and one.in_percent]
    if turn in SWAPPING and len(shares) == len(truth.masks):
        swapped = replace(truth, masks=tuple(polygons.swap_sides() for polygons in shares))
        return read_shown(swapped, path, width, height)
    shown = orient(mask, turn)
    is_swapped = fits(shown.shape, height, width) and not fits(shown.shape, width, height)
    if is_swapped or (truth.source and shown.shape != (height, width)):
        raise InputError(
            f"the mask {_name(truth)!r} has {mask.shape[1]} x {mask.shape[0]} pixels, but "
            f"{path!r} is shown as {width} x {height}: mend its size"
        )
    return _check_covers(shown, truth)


def _join_masks(truth: Truth) -> NDArray[np.bool_] | None:
    joined: NDArray[np.bool_] | None = None
    for one in truth.masks:
        mask = read_mask(one)
        if joined is not None and joined.shape != mask.shape:
            raise InputError(
                f"the masks of one image differ in size ({joined.shape} and {mask.shape} in "
                f"{_name(truth)!r}): mend the data set"
            )
        joined = mask if joined is None else joined | mask
    return joined


def _check_covers(mask: NDArray[np.bool_], truth: Truth) -> NDArray[np.bool_]:
    if truth.anomalous and not mask.any():
        raise InputError(
            f"the mask {_name(truth)!r} of an anomalous image is empty: mend it, or have the data "
            "set say that the image is normal"
        )
    return mask


def _name(truth: Truth) -> str:
    return truth.source or str(truth.masks[0])


def take_mask(mask: Path | Shape | None) -> Truth:
    """Say what a mask alone says of an image: without a pixel, or none, it is normal.

    Raises InputError if it cannot be read.
    """
    if mask is None or not read_mask(mask).any():
        return Truth(False)
    return Truth(True, (mask,))
