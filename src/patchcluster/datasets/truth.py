"""Paths of images -> what a data set says of them.

Links are followed first, so that a flat folder of links to images of a data set has a truth too.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import InputError
from ..images.masks import find_mask
from .layouts import NORMAL_FOLDERS, is_dataset, list_categories
from .shapes import Entry
from .types import Category, Truth, take_mask


def find_truth(paths: Sequence[str], root: str | Path) -> list[Truth]:
    """Find the truth for images by their paths.

    `root` is the data set's folder, its `ground_truth`, or a COCO file. Raises InputError if it is
    missing or damaged, or an image has no truth.
    """
    base = Path(root)
    if not is_dataset(base):
        raise InputError(f"{str(root)!r} is not a folder: name the data set or its ground_truth")
    known = _index(list_categories(base))
    masks = base / "ground_truth" if (base / "ground_truth").is_dir() else base
    found = [_find_one(path, known, masks) for path in paths]
    return _all_known(
        paths,
        found,
        f"put its mask at {str(masks)!r}/<defect>/<name>_mask.png, or the image in a folder 'good'",
    )


def look_up(paths: Sequence[str], categories: Iterable[Category]) -> list[Truth]:
    """Find the truth of images in given categories. Raises InputError if one is in none."""
    known = _index(categories)
    found = [known.get(os.path.realpath(path)) for path in paths]
    return _all_known(paths, found, "give the data set that was scanned")


def take_entries(places: Sequence[int], entries: Sequence[Any]) -> list[Truth]:
    """Take the truth of images by their places in a data set, from what that says of each.

    entries: masks (pictures, arrays, tensors), of which those without a pixel are of normal images;
    None: normal; or numbers: 0 is normal, all else anomalous, no one says where. Raises InputError.
    """
    if len(entries) <= max(places, default=-1):
        raise InputError(
            f"the truth of {len(entries)} images for a run of {max(places) + 1}: give one entry "
            "for each image of the data set, in its order"
        )
    return [_take_entry(place, entries) for place in places]


def _take_entry(place: int, entries: Sequence[Any]) -> Truth:
    entry = entries[place]
    if entry is None or (np.ndim(entry) == 0 and not isinstance(entry, Image.Image)):
        return Truth(bool(entry))
    return take_mask(Entry(entries, place))


def _index(categories: Iterable[Category]) -> dict[str, Truth]:
    """Sort the truth of images by their real paths."""
    return {os.path.realpath(s.path): s.truth for c in categories for s in c.samples}


def _all_known(paths: Sequence[str], found: Sequence[Truth | None], advice: str) -> list[Truth]:
    unknown = [path for path, truth in zip(paths, found, strict=True) if truth is None]
    if unknown:
        raise InputError(
            f"{len(unknown)} of {len(paths)} images have no truth, the first {unknown[0]!r}: "
            + advice
        )
    return [truth for truth in found if truth is not None]


def _find_one(path: str, known: dict[str, Truth], masks: Path) -> Truth | None:
    real = Path(os.path.realpath(path))
    if str(real) in known:
        return known[str(real)]
    kind = real.parent.name
    mask = find_mask(masks / kind, real.stem)
    if mask is not None:
        return Truth(True, (mask,))
    return Truth(False) if kind in NORMAL_FOLDERS else None
