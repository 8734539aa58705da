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
from .drawn import Entry
from .layouts import NORMAL_FOLDERS, list_categories, list_names
from .types import Category, Sample, Truth, take_mask


@dataclass(frozen=True)
class Unknown:
    """Why an image has no truth."""

    reason: str


def find_truth(paths: Sequence[str], root: str | Path) -> list[Truth]:
    """Find the truth for images as `match_truth`. Raises InputError too if one has none."""
    found = match_truth(paths, root)
    known = [one for one in found if isinstance(one, Truth)]
    if len(known) < len(found):
        raise no_truth(paths, found)
    return known


def no_truth(paths: Sequence[str], found: Sequence[Truth | Unknown]) -> InputError:
    """Return the error that says how many images have no truth, and which is the first."""
    unknown = [(p, one) for p, one in zip(paths, found, strict=True) if isinstance(one, Unknown)]
    path, first = unknown[0]
    return InputError(
        f"{len(unknown)} of {len(paths)} images have no truth, the first {path!r} "
        f"({first.reason}): put its mask at ground_truth/<defect>/<name>_mask.png, the image in "
        "a folder 'good', or its name into the annotations"
    )


def match_truth(paths: Sequence[str], root: str | Path) -> list[Truth | Unknown]:
    """Find the truth for images by their paths; `images.matching` says by which rules.

    root: the data set's folder, its `ground_truth`, or a COCO file. Raises InputError if it is
    missing or damaged.
    """
    base = Path(root)
    categories = list_categories(base)
    found = look_up(paths, categories, base)
    if base.is_dir():
        masks: Path | None = base / "ground_truth"
        if not (base / "ground_truth").is_dir():
            masks = None if categories else base
        rest = [i for i, truth in enumerate(found) if isinstance(truth, Unknown)]
        judged = _judge_folder([paths[i] for i in rest], masks)
        for i, truth in zip(rest, judged, strict=True):
            found[i] = truth or found[i]
    return found


def look_up(
    paths: Sequence[str], categories: Iterable[Category], base: Path = Path()
) -> list[Truth | Unknown]:
    """Find the truth of images in given categories, whose folder is `base`."""
    files: list[str] = []
    names: list[str] = []
    samples: list[Sample] = []
    seen: set[tuple[str, Truth]] = set()
    for category in categories:
        for name, sample in zip(list_names(category, base), category.samples, strict=True):
            file = follow(sample.path)
            if (file, sample.truth) in seen:
                continue  # links to one image, which say the same
            seen.add((file, sample.truth))
            files.append(file)
            names.append(name)
            samples.append(sample)
    # Where folders say what an image is, its base name alone says nothing.
    is_list = all(sample.name for sample in samples)
    matches = match_names(names, paths, files, is_list)
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


def _judge_folder(paths: Sequence[str], folder: Path | None) -> list[Truth | Unknown | None]:
    """Say what the folder of each image says of it, and the masks below a folder if there is one.

    A file is no mask of itself, and an image in a folder of normal ones needs none.
    """
    real = [os.path.realpath(path) for path in paths]
    judged: list[Truth | Unknown | None] = [
        Truth(False) if Path(path).parent.name in NORMAL_FOLDERS else None for path in real
    ]
    if folder is None:
        return judged
    masks, matches = pair_masks(real, folder, "*/*")
    for image, why in matches.unclear.items():
        judged[image] = judged[image] or Unknown(f"its mask is not clear: {why}")
    for image, mask in matches.found.items():
        if judged[image] is None and follow(str(masks[mask])) != real[image]:
            judged[image] = Truth(True, (masks[mask],))
    return judged
