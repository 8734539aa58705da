"""A run against masks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..datasets import (
    Category,
    Truth,
    Unknown,
    look_up,
    match_truth,
    no_truth,
    read_shown,
    take_entries,
)
from ..errors import InputError
from ..runs.info import ImageRecord
from ..runs.run import Run
from ..scores.metrics import PixelMetrics, image_metrics
from .saved_inputs import index_of


@dataclass(frozen=True)
class Evaluation:
    """Fractions between 0 and 1; None where the truth does not allow a metric.

    left_out: images without a truth, which no metric counts, and why.
    """

    image_auroc: float | None
    image_ap: float | None
    image_f1max: float | None
    pixel_auroc: float | None
    pixel_ap: float | None
    pro: float | None
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def figures(self) -> dict[str, float | None]:
        """Return the fractions by name."""
        return {name: value for name, value in vars(self).items() if name != "left_out"}


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
    anomalous as its truth says, even if its defect lies outside. Images without a truth are left
    out.

    Raises InputError if no image has a truth, or a mask cannot be read or does not fit its image.
    """
    truths = _find(run.paths, truth)
    if all(isinstance(known, Unknown) for known in truths):
        raise no_truth(run.paths, truths)
    low, high = _bounds(run)
    pixels = PixelMetrics(low, high)
    anomalous: dict[int, bool] = {}
    left_out: dict[str, str] = {}
    for i, (image, known) in enumerate(zip(run.images, truths, strict=True)):
        if isinstance(known, Unknown):
            left_out[image.path] = known.reason
        else:
            anomalous[i] = known.anomalous
            _add(pixels, run, image, known)
        if progress is not None:
            progress(i + 1, len(truths))
    return Evaluation(
        *image_metrics(run.scores[list(anomalous)], np.array(list(anomalous.values()))),
        pixels.auroc(),
        pixels.average_precision(),
        pixels.pro(),
        left_out,
    )


def _find(
    paths: Sequence[str], truth: str | Path | Category | Sequence[Any]
) -> Sequence[Truth | Unknown]:
    if isinstance(truth, str | Path):
        return match_truth(paths, truth)
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


def _add(pixels: PixelMetrics, run: Run, image: ImageRecord, known: Truth) -> None:
    mask = read_shown(known, image.path, image.width, image.height)
    if mask is None:
        if not known.anomalous:  # else nobody knows where
            pixels.add(run.map(image.path), None)
        return
    height, width = mask.shape
    pixels.add(run.map_at(image.path, width, height), mask)
