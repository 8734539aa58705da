"""Which images to flag, from their scores alone.

What ordinary images score is estimated from the scores below: the median and the deviation of the
lowest group, without what lies far above it. Beyond that, ordinary scores are taken to thin out
exponentially. The lowest threshold is chosen above which at most 1 in 5 scores would then be an
ordinary image's (Benjamini and Hochberg's step-up rule, 1995), and is raised to a gap if one lies
among the first images above it. docs/quality.md has what it reaches.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import SettingError

Scores = NDArray[np.float64]

FALSE_SHARE = 0.2  # of the flagged images, at most, that are expected to be ordinary
_TAIL = 1.3  # deviations in which ordinary scores above the median fall to 1 / e
_FAR = 3.0  # deviations above the median from which a score says nothing about ordinary ones
_GAP = 0.15  # of the height above the median, that the next score is higher by
_GAP_SHARE = 0.05  # of all images, at most, that lie between the threshold and the gap
_LEAST_IMAGES = 5  # of fewer none is flagged: they do not say how far ordinary scores deviate
_SPLIT_SHARES = (0.1, 0.2)  # of all images, at least, in the lower and the upper of two groups
_SPLIT_LEAST = 4  # images in the lower group: fewer say nothing of how ordinary scores deviate
_SPLIT_DENSITY = 0.5  # between two groups, of the density of the lesser
_POINTS = 512  # at which the density of the scores is looked at
_MOST_FOR_DENSITY = 2000  # scores; of more, so many quantiles


@dataclass(frozen=True)
class Threshold:
    """Images that score above `value` are flagged; `meaning` says how it was found."""

    value: float
    meaning: str


@dataclass(frozen=True)
class Flagging:
    """How to flag images: see `choose_threshold`.

    Raises SettingError if both are given or one cannot be.
    """

    expect: float | None = None
    flag_top: int | None = None

    def __post_init__(self) -> None:
        if self.expect is not None and self.flag_top is not None:
            raise SettingError(
                "a share of images to flag and a number of them: give one of the two"
            )
        if self.expect is not None and not 0 <= self.expect <= 1:
            raise SettingError(
                f"expect {self.expect:g}: give a share of the images, such as 5% or 0.05"
            )
        if self.flag_top is not None and self.flag_top < 0:
            raise SettingError(f"{self.flag_top} images to flag: give 0 or more")


def choose_threshold(
    scores: Scores, expect: float | None = None, flag_top: int | None = None
) -> Threshold:
    """Threshold for image scores [n].

    expect: the share of anomalous images that the user expects, 0 to 1; flag_top: how many images
    to flag. With neither, as the module says: none where no score stands out, and none of fewer
    than 5 images (a scan counts files of equal content once).

    Raises SettingError if both are given or one cannot be.
    """
    Flagging(expect, flag_top)
    if expect is not None:
        count = round(expect * len(scores))
        return _highest(scores, count, f"{expect:.3g} of the images, as asked")
    if flag_top is not None:
        return _highest(scores, flag_top, "a number of images, as asked")
    return _automatic(scores)


def _highest(scores: Scores, count: int, meaning: str) -> Threshold:
    """Between the count-th highest score and the next; equal scores are flagged together or not."""
    descending = np.sort(scores)[::-1]
    if count == 0:
        return Threshold(float(descending[0]), meaning)
    lowest = float(descending[min(count, len(scores)) - 1])
    below = descending[descending < lowest]
    step = lowest - float(below[0]) if len(below) else max(1.0, abs(lowest))
    middle = lowest - step / 2
    # Between two neighbours among the floating-point numbers there is none.
    return Threshold(middle if middle < lowest else float(below[0]), meaning)


def _automatic(scores: Scores) -> Threshold:
    ascending = np.sort(scores)
    if len(scores) < _LEAST_IMAGES:
        return Threshold(
            float(ascending[-1]),
            "so few images do not say what ordinary ones score, so none is flagged; give "
            "the share you expect, or how many to flag, if you know it",
        )
    centre, deviation = describe_ordinary(scores)
    heights = (ascending - centre) / deviation if deviation > 0 else np.zeros(len(scores))
    count = _flagged_count(heights)
    if count == 0:
        return Threshold(
            float(ascending[-1]),
            f"no image stands out: the highest score lies {heights[-1]:.1f} deviations above the "
            f"median, as it may among {len(scores)} ordinary images, so none is flagged; give the "
            "share you expect, or how many to flag, if you know better",
        )
    first = len(scores) - count
    below = ascending[first - 1] if first else ascending[first] - deviation
    meaning = (
        f"about 1 in {round(1 / FALSE_SHARE)} flagged images, at most, is expected to be ordinary, "
        "and about none in a set of ordinary images"
    )
    if count > len(scores) / 2:
        meaning += (
            "; but most images are flagged here: if they are the ordinary ones, give the share "
            "that you expect"
        )
    return Threshold(float(below + ascending[first]) / 2, meaning)


def _flagged_count(heights: Scores) -> int:
    """Count the flagged of heights [n], ascending, in deviations above the median."""
    total = len(heights)
    above = np.arange(total, 0, -1)  # how many are at least as high
    ordinary = total * np.exp(-np.maximum(heights, 0) / _TAIL) / 2  # of which so many are expected
    passing = np.flatnonzero((ordinary <= FALSE_SHARE * above) & (heights > 0))
    if not len(passing):
        return 0
    first = int(passing[0])
    # From the highest unflagged on.
    steps = heights[max(first - 1, 0) :]
    steps = steps[: max(1, int(_GAP_SHARE * total)) + 2]
    gaps = np.diff(steps) / np.maximum(steps[:-1], np.finfo(np.float64).tiny)
    if len(gaps) and gaps.max() > _GAP:
        first = max(first - 1, 0) + int(gaps.argmax()) + 1
    return total - first


def find_deviation(values: Scores, centre: float) -> float:
    """Return the standard deviation of values [n], as of a normal distribution, by their MAD."""
    return 1.4826 * float(np.median(np.abs(values - centre)))


def describe_ordinary(scores: Scores) -> tuple[float, float]:
    """Median and deviation (of the median, scaled) of the scores [n] of ordinary images."""
    kept = _lowest_group(scores)
    while True:
        centre = float(np.median(kept))
        deviation = find_deviation(kept, centre)
        near = kept[kept <= centre + _FAR * deviation]
        if deviation == 0 or len(near) == len(kept):
            return centre, deviation
        kept = near


def _lowest_group(scores: Scores) -> Scores:
    """The scores below the emptiest place, if they fall into two groups there; else all.

    So a set in which most images are anomalous is described by the ordinary ones if they keep
    apart. The density is estimated with Gaussians of Silverman's width.
    """
    some = scores
    if len(scores) > _MOST_FOR_DENSITY:
        some = np.quantile(scores, np.linspace(0, 1, _MOST_FOR_DENSITY))
    lower, upper = np.quantile(some, [0.25, 0.75])
    width = 0.9 * min(float(some.std()), (upper - lower) / 1.34) * len(some) ** -0.2
    if width <= 0:
        return scores
    points = np.linspace(some.min(), some.max(), _POINTS)
    density = np.exp(-0.5 * ((points[:, None] - some) / width) ** 2).sum(1)
    lesser = np.minimum(
        np.maximum.accumulate(density), np.maximum.accumulate(density[::-1])[::-1]
    )  # the highest on the left and on the right, the lower of the two
    share = np.searchsorted(np.sort(some), points) / len(some)
    least = max(_SPLIT_SHARES[0], _SPLIT_LEAST / len(some))
    allowed = (share >= least) & (1 - share >= _SPLIT_SHARES[1])
    depth = np.where(allowed, density / lesser, 1.0)
    emptiest = int(depth.argmin())
    return scores[scores < points[emptiest]] if depth[emptiest] < _SPLIT_DENSITY else scores
