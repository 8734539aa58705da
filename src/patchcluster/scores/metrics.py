"""Metrics of scores and maps against the truth (section 5 of the paper).

Pixel metrics see millions of pixels, so they are accumulated in histograms of fixed size: memory
does not grow with the number of images. With 2^20 bins over the range of all maps the error is far
below 1e-4.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from sklearn import metrics as sklearn_metrics

from ..errors import InputError

BINS = 1 << 20
PRO_FALSE_POSITIVES = 0.3  # PRO is averaged over false-positive rates from 0 to this


def image_metrics(
    scores: NDArray[np.float64], anomalous: NDArray[np.bool_]
) -> tuple[float | None, float | None, float | None]:
    """AUROC, average precision and the best F1 over all thresholds, of image scores [n].

    None, None, None if all images are of one kind.
    """
    if anomalous.all() or not anomalous.any():
        return None, None, None
    precision, recall, _ = sklearn_metrics.precision_recall_curve(anomalous, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return (
        float(sklearn_metrics.roc_auc_score(anomalous, scores)),
        float(sklearn_metrics.average_precision_score(anomalous, scores)),
        float(f1.max()),
    )


class PixelMetrics:
    """Pixel AUROC, average precision and PRO, one map at a time, in constant memory.

    `low` and `high` bound the values of all maps.
    """

    def __init__(self, low: float, high: float, bins: int = BINS) -> None:
        if not (np.isfinite(low) and np.isfinite(high)):
            raise InputError("maps hold values that are not finite: scan again")
        self.low = low
        self.scale = (bins - 1) / max(high - low, 1e-12)
        self.bins = bins
        self.normal = np.zeros(bins, np.int64)
        self.anomalous = np.zeros(bins, np.int64)
        self.overlap = np.zeros(bins)  # of each region's area, its share in the bin
        self.regions = 0

    def add(self, image_map: NDArray[np.float32], mask: NDArray[np.bool_] | None) -> None:
        """Add a map [height, width] with its mask (None: a normal image).

        Pixels without a score (NaN) are left out; of an anomalous region the rest counts.
        """
        known = np.isfinite(image_map.ravel())
        scaled = (image_map.ravel()[known] - np.float64(self.low)) * self.scale
        bins = np.clip(np.rint(scaled), 0, self.bins - 1).astype(np.int64)
        if mask is None or not mask.any():
            self.normal += np.bincount(bins, minlength=self.bins)
            return
        flat = mask.ravel()[known]
        self.normal += np.bincount(bins[~flat], minlength=self.bins)
        self.anomalous += np.bincount(bins[flat], minlength=self.bins)
        labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
        inside = labels.ravel()[known][flat]
        areas = np.bincount(inside, minlength=count + 1)
        weights = 1 / areas.clip(1)
        self.overlap += np.bincount(bins[flat], weights[inside], minlength=self.bins)
        self.regions += int((areas > 0).sum())

    def auroc(self) -> float | None:
        """Area under the ROC curve over all pixels; equal values count half."""
        positives, negatives = int(self.anomalous.sum()), int(self.normal.sum())
        if not positives or not negatives:
            return None
        below = np.cumsum(self.normal) - self.normal
        wins = (self.anomalous * (below + self.normal / 2)).sum()
        return float(wins / positives / negatives)

    def average_precision(self) -> float | None:
        """Mean precision, weighted by the steps of recall from the highest value down."""
        true, flagged = self._count_flagged()
        if not true[-1]:
            return None
        steps = np.diff(true, prepend=0) / true[-1]
        return float((steps * true / np.maximum(flagged, 1)).sum())

    def f1max(self) -> float | None:
        """The best F1 over all thresholds."""
        true, flagged = self._count_flagged()
        return float((2 * true / (flagged + true[-1])).max()) if true[-1] else None

    def _count_flagged(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Count the anomalous and all pixels above each threshold, the highest first."""
        true = np.cumsum(self.anomalous[::-1])
        return true, true + np.cumsum(self.normal[::-1])

    def pro(self, most: float = PRO_FALSE_POSITIVES) -> float | None:
        """Per-region overlap averaged over false-positive rates from 0 to `most`, normalised.

        At each threshold: the mean over all anomalous regions (connected with 8 neighbours) of the
        share of the region that lies above; integrated with the trapezoid rule.
        """
        negatives = int(self.normal.sum())
        if not self.regions or not negatives:
            return None
        rate = np.concatenate([[0.0], np.cumsum(self.normal[::-1]) / negatives])
        overlap = np.concatenate([[0.0], np.cumsum(self.overlap[::-1]) / self.regions])
        at_most = np.interp(most, rate, overlap)
        kept = rate < most
        return float(
            np.trapezoid(np.append(overlap[kept], at_most), np.append(rate[kept], most)) / most
        )
