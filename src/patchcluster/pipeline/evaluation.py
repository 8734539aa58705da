"""A run against masks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..datasets import Category, Truth, find_truth, look_up, read_truth, take_entries
from ..errors import InputError
from ..runs.run import Run
from ..scores.metrics import PixelMetrics, image_metrics
from .saved_inputs import index_of


@dataclass(frozen=True)
class Evaluation:
    """Fractions between 0 and 1; None where the truth does not allow a metric."""

    image_auroc: float | None
    image_ap: float | None
    image_f1max: float | None
    pixel_auroc: float | None
    pixel_ap: float | None
    pro: float | None


def evaluate(
    run: Run,
    truth: str | Path | Category | Sequence[Any],
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Measure a run against masks, at the masks' own resolution.

    truth: the data set's folder, in a layout that `datasets` knows, its `ground_truth`, a COCO
    file, or what `read_dataset` gave. Of a run of images that were no files also a sequence with an
    entry for each image of the data set, in its order: a mask, None (normal) or a number (0:
    normal). Pixels outside a region of interest are left out of the pixel metrics; an image is as
    anomalous as its truth says, even if its defect lies outside.

    Raises InputError if an image has no truth.
    """
    truths = _find(run.paths, truth)
    low, high = _bounds(run)
    pixels = PixelMetrics(low, high)
    for i, (path, known) in enumerate(zip(run.paths, truths, strict=True)):
        _add(pixels, run, path, known)
        if progress is not None:
            progress(i + 1, len(truths))
    anomalous = np.array([known.anomalous for known in truths])
    return Evaluation(
        *image_metrics(run.scores, anomalous),
        pixels.auroc(),
        pixels.average_precision(),
        pixels.pro(),
    )


def _find(paths: Sequence[str], truth: str | Path | Category | Sequence[Any]) -> list[Truth]:
    if isinstance(truth, str | Path):
        return find_truth(paths, truth)
    given: Sequence[Any] = [truth] if isinstance(truth, Category) else truth
    if len(given) > 0 and isinstance(given[0], Category):
        return look_up(paths, given)
    try:
        places = [index_of(path) for path in paths]
    except ValueError as error:
        raise InputError(f"{error}: name the folder of the truth") from error
    return take_entries(places, given)


def _bounds(run: Run) -> tuple[float, float]:
    """Bounds of all maps: neither bilinear interpolation nor smoothing exceeds a grid's."""
    grids = [run.grid(path) for path in run.paths]
    return min(float(np.nanmin(g)) for g in grids), max(float(np.nanmax(g)) for g in grids)


def _add(pixels: PixelMetrics, run: Run, path: str, known: Truth) -> None:
    mask = read_truth(known)
    if mask is None:
        if not known.anomalous:  # else nobody knows where
            pixels.add(run.map(path), None)
        return
    height, width = mask.shape
    pixels.add(run.map_at(path, width, height), mask)
