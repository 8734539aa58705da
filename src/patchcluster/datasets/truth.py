"""Paths of images -> what a data set says of them.

Links are followed first, so that a flat folder of links to images of a data set has a truth too.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import InputError
from ..images.masks import pair_masks
from ..images.matching import follow, match_names
from .layouts import NORMAL_FOLDERS, is_dataset, list_categories, list_names
from .shapes import Entry
from .types import Category, Truth, take_mask


@dataclass(frozen=True)
class Unknown:
    """Why an image has no truth."""

    reason: str


def find_truth(paths: Sequence[str], root: str | Path) -> list[Truth]:
    """Find the truth for images as `match_truth`. Raises InputError too if one has none."""
    return check_known(paths, match_truth(paths, root))


def check_known(paths: Sequence[str], found: Sequence[Truth | Unknown]) -> list[Truth]:
    """Return what was found for images. Raises InputError if one has no truth."""
    unknown = {p: one for p, one in zip(paths, found, strict=True) if isinstance(one, Unknown)}
    for path, one in unknown.items():
        raise InputError(
            f"{len(unknown)} of {len(paths)} images have no truth, the first {path!r} "
            f"({one.reason}): put its mask at ground_truth/<defect>/<name>_mask.png, the image in "
            "a folder 'good', or its name into the annotations"
        )
    return [one for one in found if isinstance(one, Truth)]


def match_truth(paths: Sequence[str], root: str | Path) -> list[Truth | Unknown]:
    """Find the truth for images by their paths; `images.matching` says by which rules.

    root: the data set's folder, its `ground_truth`, or a COCO file. Raises InputError if it is
    missing or damaged.
    """
    base = Path(root)
    if not is_dataset(base):
        raise InputError(f"{str(root)!r} is not a folder: name the data set or its ground_truth")
    found = look_up(paths, list_categories(base), base)
    if base.is_dir():
        rest = [i for i, truth in enumerate(found) if isinstance(truth, Unknown)]
        folder = base / "ground_truth" if (base / "ground_truth").is_dir() else base
        judged = _judge_folder([paths[i] for i in rest], folder)
        for i, truth in zip(rest, judged, strict=True):
            found[i] = truth or found[i]
    return found


def look_up(
    paths: Sequence[str], categories: Iterable[Category], base: Path = Path()
) -> list[Truth | Unknown]:
    """Find the truth of images in given categories, whose folder is `base`."""
    # Links to one image, of which all say the same, are one.
    known = {
        (follow(sample.path), sample.truth): (name, sample)
        for category in categories
        for name, sample in zip(list_names(category, base), category.samples, strict=True)
    }
    names, samples = [name for name, _ in known.values()], [one for _, one in known.values()]
    # Where folders say what an image is, its base name alone says nothing.
    is_list = all(sample.name for sample in samples)
    matches = match_names(names, paths, [file for file, _ in known], is_list)
    return [
        samples[matches.found[i]].truth
        if i in matches.found
        else Unknown(matches.unclear.get(i, "the data set does not name it"))
        for i in range(len(paths))
    ]


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


def _judge_folder(paths: Sequence[str], folder: Path) -> list[Truth | None]:
    """Say what the folder of each image says of it, and the masks below a folder."""
    real = [os.path.realpath(path) for path in paths]
    masks, matches = pair_masks(real, folder, "*/*")
    judged: list[Truth | None] = [
        Truth(False) if Path(path).parent.name in NORMAL_FOLDERS else None for path in real
    ]
    for image, mask in matches.found.items():
        judged[image] = Truth(True, (masks[mask],))
    return judged
