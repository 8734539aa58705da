"""How high the maps of a set lie as a whole, and how far image scores allow for it.

Light, focus and noise raise the whole map of an image, not only a place. So an image is judged by
its highest places less its own level, the lower quartile of its map, as far as levels of ordinary
images go: what lies higher as a whole, as a picture of something else does, stays anomalous.
docs/quality.md has what it is worth.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .maps import Floats

_QUANTILE = 0.25
_REACH = 1.0  # deviations above the median to which levels are ordinary
_MAD_TO_DEVIATION = 1.4826  # a normal distribution's standard deviation, in units of its MAD


@dataclass(frozen=True)
class Levels:
    """Of the images of a set: the median level, and the highest that is taken off."""

    typical: float
    limit: float

    def offset(self, level: float) -> float:
        """What is taken off the score of an image with a level; 0 for a typical one."""
        return min(level, self.limit) - self.typical


def find_level(frame_map: Floats) -> float:
    """The level of an image, from its smoothed map; NaN there is not of the region of interest."""
    values = frame_map[np.isfinite(frame_map)]
    place = _QUANTILE * (len(values) - 1)
    below = int(place)
    # The two values next to the quantile; np.quantile of all takes four times as long to find them.
    values.partition(below)
    pair = [values[below], values[below + 1 :].min(initial=np.inf)]
    return float(np.quantile(pair if place > below else pair[:1], place - below))


def describe_levels(levels: Sequence[float]) -> Levels:
    """Levels of a set from those of its images."""
    typical = float(np.median(levels))
    deviation = _MAD_TO_DEVIATION * float(np.median(np.abs(np.array(levels) - typical)))
    return Levels(typical, typical + _REACH * deviation)
