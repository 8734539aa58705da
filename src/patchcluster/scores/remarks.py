"""What is odd about an image as a whole, compared with its set. It never changes a score.

Each figure of an image has limits: the median of the set, and so many deviations (the median
absolute deviation, scaled as of a normal distribution) to each side. Where a set varies less than a
viewer would notice, a least distance holds instead. What more than a quarter of the set would be
remarked for is not odd there: a set of two sizes, or of all sizes, gets no remark about sizes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

Figures = NDArray[np.float64]

LEAST_IMAGES = 8  # of fewer nothing is said
REMARKS = ("darker", "brighter", "blurred", "other size", "other aspect ratio", "other colour")
_DEVIATIONS = 5.0  # from the median
_USUAL = 0.75  # of the images, at least, do not have a remark that some have
_LEAST_LIGHT = 16.0  # of 255
_LEAST_SHARP = 0.7  # of the logarithm: half the variance
_LEAST_SIZE = 0.02  # of the logarithm of the root of the area: 2 % of the side
_LEAST_ASPECT = 0.02  # of the logarithm of width / height: 2 %
_LEAST_COLOUR = 2.0  # % of the sum of the colours


@dataclass(frozen=True)
class Limits:
    """What the images of a set are like: medians [6] and limits [6] of how far images lie off.

    The columns are those of `_differences`. A limit is infinite where the set has no usual value.
    """

    median: Figures
    most: Figures

    @classmethod
    def of(cls, figures: Figures) -> Self | None:
        """Find the limits of a set from figures float64 [n, 6]; None of fewer than 8 images.

        The columns are width, height, and the four of `images.looks.measure_look`.
        """
        if len(figures) < LEAST_IMAGES:
            return None
        values = _comparable(figures)
        median = np.median(values, axis=0)
        off = _differences(values, median)
        deviation = 1.4826 * np.median(np.abs(off), axis=0)
        least = [_LEAST_LIGHT] * 2 + [_LEAST_SHARP, _LEAST_SIZE, _LEAST_ASPECT, _LEAST_COLOUR]
        most = np.maximum(_DEVIATIONS * deviation, least)
        most[(off > most).mean(axis=0) > 1 - _USUAL] = np.inf
        return cls(median, most)

    def remarks(self, figures: Figures) -> list[tuple[str, ...]]:
        """Return the remarks about images with figures float64 [n, 6], as REMARKS orders them."""
        odd = _differences(_comparable(figures), self.median) > self.most
        return [tuple(w for w, one in zip(REMARKS, row, strict=True) if one) for row in odd]


def find_remarks(
    figures: Sequence[Sequence[float] | None], limits: Limits | None
) -> list[tuple[str, ...]]:
    """Return the remarks about each image; none where its figures [6] or the limits are missing."""
    known = [i for i, one in enumerate(figures) if one is not None]
    found: list[tuple[str, ...]] = [()] * len(figures)
    if limits is not None and known:
        odd = limits.remarks(np.array([figures[i] for i in known]))
        for i, words in zip(known, odd, strict=True):
            found[i] = words
    return found


def find_limits(figures: Sequence[Sequence[float] | None]) -> Limits | None:
    """Find the limits of a set from figures [6] of its images that have some."""
    known = [one for one in figures if one is not None]
    return Limits.of(np.array(known).reshape(-1, 6))


def _comparable(figures: Figures) -> Figures:
    """Figures [n, 6] -> light, sharpness, logarithms of size and aspect, red and blue [n, 6]."""
    width, height = np.log(figures[:, 0]), np.log(figures[:, 1])
    light, sharp, red, blue = figures[:, 2:].T
    return np.column_stack([light, sharp, (width + height) / 2, width - height, red, blue])


def _differences(values: Figures, median: Figures) -> Figures:
    """How far images lie off the medians, a column for each of REMARKS, positive where odd."""
    light, sharp, size, aspect, red, blue = (values - median).T
    columns = [-light, light, -sharp, np.abs(size), np.abs(aspect), np.hypot(red, blue)]
    return np.column_stack(columns)
