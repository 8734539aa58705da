"""A run against masks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .datasets import Category, Truth, find_truth, look_up, read_truth
from .metrics import PixelMetrics, image_metrics
from .runs import Run


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
    truth: str | Path | Category | Sequence[Category],
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Measure a run against masks, at the masks' own resolution.

    truth: the data set's folder in a layout that `datasets` knows, its `ground_truth`, a COCO file,
    or what `read_dataset` gave. Pixels outside a region of interest are left out of the pixel
    metrics; an image is as anomalous as its truth says, even if its defect lies outside.

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


def _find(paths: Sequence[str], truth: str | Path | Category | Sequence[Category]) -> list[Truth]:
    if isinstance(truth, str | Path):
        return find_truth(paths, truth)
    return look_up(paths, [truth] if isinstance(truth, Category) else truth)


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
