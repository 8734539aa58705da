"""A score grid -> the map, image score and regions of one image: the last step of its way.

Light, focus and noise raise the whole map of an image, not only a place. So the lower quartile of
a map, its baseline, is taken off the image score, up to the highest baseline that is ordinary in
the set: an image that is raised by more, such as a picture of something else, stays anomalous.
docs/quality.md has what this is worth.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..images.raster import Bools, at_size
from . import maps
from .maps import Floats, Region
from .probability import find_deviation

_QUANTILE = 0.25
_REACH = 1.0  # deviations above the median, up to which baselines are ordinary
_LEAST = 1e-6  # score of which a logarithm is taken


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


@dataclass(frozen=True)
class MapRule:
    """How the score grids of a set become maps and image scores.

    frame: maps are smoothed on frames of about frame x frame pixels. native_from: the size from
    which on frames grow with images that are scored at their own resolution; None: they do not.
    baseline: of the set, if image scores are corrected by it.
    """

    frame: int
    native_from: int | None
    image_score: str
    baseline: SetBaseline | None = None


@dataclass(frozen=True)
class Measured:
    """Figures of the map of an image: see the properties of `Finished`."""

    map_score: float
    baseline: float
    contrast: float


@dataclass(frozen=True)
class Finished:
    """One image of width x height pixels after the comparison.

    smoothed float32 [h', w']: its map on the frame, NaN outside its mask bool [height, width] (of
    any size; None: all of the image is scored).
    """

    smoothed: Floats
    width: int
    height: int
    rule: MapRule
    mask: Bools | None

    @cached_property
    def _top(self) -> float:
        """The mean of the highest 1 % of the map."""
        growth = maps.frame_growth(self.width, self.height, self.rule.native_from)
        return maps.score_image(self.smoothed, "top1%", growth)

    @property
    def map_score(self) -> float:
        """The image score by the map alone."""
        return (
            maps.score_image(self.smoothed, "max") if self.rule.image_score == "max" else self._top
        )

    @cached_property
    def baseline(self) -> float:
        """The lower quartile of the map: see `find_baseline`."""
        return find_baseline(self.smoothed)

    @property
    def contrast(self) -> float:
        """How far the highest 1 % stand out: the logarithm of their ratio to the map's mean."""
        mean = float(np.nanmean(self.smoothed))
        return math.log(max(self._top, _LEAST) / max(mean, _LEAST))

    def measure(self) -> Measured:
        """Return what the set's scores are made of."""
        return Measured(self.map_score, self.baseline, self.contrast)

    @property
    def score(self) -> float:
        """The image score, corrected by the baseline if the rule says so."""
        of_set = self.rule.baseline
        return self.map_score if of_set is None else self.map_score - of_set.offset(self.baseline)

    def map(self, width: int | None = None, height: int | None = None) -> Floats:
        """Bring the map to the image, or to another size: float32 [height, width]."""
        width, height = width or self.width, height or self.height
        mask = None if self.mask is None else at_size(self.mask, width, height)
        return maps.to_image(self.smoothed, width, height, mask)

    def map_threshold(self, score: float, threshold: float) -> float:
        """Say what the map exceeds in a region, by the image's score and the scores' threshold.

        The threshold, raised by what the baseline took off the score.
        """
        return threshold if self.rule.baseline is None else threshold + self.map_score - score

    def regions(self, score: float, threshold: float) -> list[Region]:
        """Find the regions, highest peak first, by the image's score and the scores' threshold."""
        least = self.map_threshold(score, threshold)
        if np.nanmax(self.smoothed) <= least:  # bringing it to the image raises no maximum
            return []
        return maps.find_regions(self.map(), least)


def finish(
    grid: Floats, width: int, height: int, rule: MapRule, mask: Bools | None = None
) -> Finished:
    """Smooth the score grid [h, w] of an image of width x height pixels on its frame.

    mask: bool [height, width] of what is scored; None: all.
    """
    growth = maps.frame_growth(width, height, rule.native_from)
    smoothed = maps.smooth(grid, rule.frame * growth, width, height, mask)
    return Finished(smoothed, width, height, rule, mask)
