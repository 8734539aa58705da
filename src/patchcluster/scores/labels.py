"""Labels that a person gave images: normal or anomalous."""

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..images.matching import match_names
from .probability import Scores
from .thresholds import Threshold

Label = Literal["normal", "anomalous"]
Labels = Mapping[str, Label]


def read_labels(file: str | os.PathLike[str]) -> dict[str, Label]:
    """Read a CSV file with the columns path and label: normal, anomalous, or unsure (left out).

    Raises InputError if it cannot be read.
    """
    name = os.fspath(file)
    try:
        with open(Path(file), encoding="utf-8-sig", errors="surrogateescape", newline="") as opened:
            rows = list(csv.DictReader(opened))
    except (OSError, csv.Error) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise InputError(f"cannot read labels in {name!r} ({reason}): name a CSV file") from error
    labels: dict[str, Label] = {}
    for number, row in enumerate(rows, start=2):
        path, label = row.get("path"), (row.get("label") or "").strip().lower()
        if not path or label not in (*get_args(Label), "unsure"):
            raise InputError(
                f"line {number} of {name!r} has no path or no label: write the columns path,label, "
                "with normal, anomalous or unsure"
            )
        if label != "unsure":
            labels[path] = label  # type: ignore[assignment]
    return labels


def move_threshold(
    threshold: Threshold, scores: Scores, anomalous: NDArray[np.bool_], normal: NDArray[np.bool_]
) -> Threshold:
    """Move a threshold of image scores [n] no further than the marked images ask for.

    anomalous, normal: which images are marked so, bool [n]. Of all thresholds those on the wrong
    side of the fewest marked images are taken, and of these the nearest.
    """
    ascending = np.unique(scores)
    between = (ascending[1:] + ascending[:-1]) / 2
    all_and_none = [np.nextafter(ascending[0], -np.inf), ascending[-1]]
    options = np.concatenate([[threshold.value], between, all_and_none])
    below = np.searchsorted(np.sort(scores[anomalous]), options, "right")  # not flagged, but should
    above = normal.sum() - np.searchsorted(np.sort(scores[normal]), options, "right")
    wrong = below + above
    best = options[wrong == wrong.min()]
    value = float(best[np.abs(best - threshold.value).argmin()])
    if value == threshold.value:
        return threshold
    return Threshold(value, f"{threshold.meaning}; moved from {threshold.value:.4g} by the labels")


def match_labels(labels: Labels, paths: Sequence[str]) -> dict[int, Label]:
    """Labels by the position of their image in `paths`, found by the rules of `images.matching`.

    Raises InputError if a label fits no image, or several.
    """
    names = list(labels)
    matches = match_names(names, paths)
    unmatched = sorted(set(range(len(names))) - set(matches.found.values()))
    if unmatched:
        missing = f"{names[unmatched[0]]!r} is not among the images"
        why = next(iter(matches.unclear.values()), missing)
        raise InputError(f"a label has no image ({why}): give the path as scores.csv has it")
    return {image: labels[names[name]] for image, name in matches.found.items()}
