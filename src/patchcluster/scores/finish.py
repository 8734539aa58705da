"""A score grid -> the map, image score and regions of one image: the last step of its way."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..images.raster import Bools
from ..images.roi import at_size
from . import maps
from .baseline import SetBaseline, find_baseline
from .maps import Floats, Region


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
    def map_score(self) -> float:
        """The image score by the map alone."""
        image_score = self.rule.image_score
        rule = "top1%" if image_score == "baseline-corrected" else image_score
        growth = maps.frame_growth(self.width, self.height, self.rule.native_from)
        return maps.score_image(self.smoothed, rule, growth)

    @cached_property
    def baseline(self) -> float:
        """The lower quartile of the map: see `baseline.py`."""
        return find_baseline(self.smoothed)

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
