"""The baseline of each map, and how far image scores are corrected by it.

Light, focus and noise raise the whole map of an image, not only a place. So the lower quartile of
a map, its baseline, is taken off the image score, up to the highest baseline that is ordinary in
the set: an image that is raised by more, such as a picture of something else, stays anomalous.
docs/quality.md has what this is worth.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .maps import Floats
from .thresholds import find_deviation

_QUANTILE = 0.25
_REACH = 1.0  # deviations above the median, up to which baselines are ordinary


@dataclass(frozen=True)
class SetBaseline:
    """The median baseline of the images of a set, and the highest that is taken off."""

    typical: float
    limit: float

    def offset(self, baseline: float) -> float:
        """Return what is taken off the score of an image; 0 for a typical baseline."""
        return min(baseline, self.limit) - self.typical


def find_baseline(frame_map: Floats) -> float:
    """Return the baseline of an image from its smoothed map; NaN lies outside its mask."""
    values = frame_map[np.isfinite(frame_map)]
    place = _QUANTILE * (len(values) - 1)
    below = int(place)
    # The two values next to the quantile; np.quantile of all takes four times as long to find them.
    values.partition(below)
    pair = [values[below], values[below + 1 :].min(initial=np.inf)]
    return float(np.quantile(pair if place > below else pair[:1], place - below))


def describe_baselines(baselines: Sequence[float]) -> SetBaseline:
    """Summarise the baselines of the images of a set."""
    typical = float(np.median(baselines))
    deviation = find_deviation(np.array(baselines), typical)
    return SetBaseline(typical, typical + _REACH * deviation)
