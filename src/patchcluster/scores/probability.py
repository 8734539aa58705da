"""How probable it is that an image is anomalous, by its score among those of its set.

What a height above ordinary scores means cannot be told from one set. It is learnt from sets whose
truth is known: a logistic regression (Platt 1999) on the height of a score and three figures of its
set. experiments/probability.py fits it and writes probability.json; docs/quality.md has what it
reaches on sets that it has not seen.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from ..errors import SettingError

Scores = NDArray[np.float64]

LEAST_IMAGES = 5  # of fewer nothing is said: they do not show how far ordinary scores lie apart
FEATURES = ("height", "images", "spread", "contrast")
_LEAST_SPREAD = 0.05  # of the median, that counts as a deviation
_LEAST = 1e-9  # of what is divided by
_FAR = 3.0  # deviations above the median from which a score says nothing about ordinary ones
_SPLIT_SHARES = (0.1, 0.2)  # of all images, at least, in the lower and the upper of two groups
_SPLIT_LEAST = 4  # images in the lower group: fewer say nothing of how ordinary scores deviate
_SPLIT_DENSITY = 0.5  # between two groups, of the density of the lesser
_POINTS = 512  # at which the density of the scores is looked at
_MOST_FOR_DENSITY = 2000  # scores; of more, so many quantiles


@dataclass(frozen=True)
class SetScores:
    """What the image scores of a set are like.

    median, deviation: of the ordinary images, see `describe_ordinary`. contrast: the median of
    `Finished.contrast` of all. Raises SettingError for what no set has.
    """

    images: int
    median: float
    deviation: float
    contrast: float

    def __post_init__(self) -> None:
        if self.images < LEAST_IMAGES or self.deviation < 0:
            raise SettingError(f"{self.images} images that deviate by {self.deviation:g}")

    @property
    def step(self) -> float:
        """The deviation, or in sets of nearly equal scores a share of the median."""
        return max(self.deviation, _LEAST_SPREAD * self.median, _LEAST)

    def features(self, scores: Scores) -> Scores:
        """Return what the model is told of scores [n]: float64 [n, 4], as FEATURES names them.

        How many deviations a score lies above the median, as a logarithm; how many images there
        are; how far their scores lie apart, as a share of the median; and the contrast.
        """
        heights = np.log1p(np.maximum(scores - self.median, 0) / self.step)
        spread = math.log(self.step / max(self.median, _LEAST))
        of_set = [math.log(self.images), spread, self.contrast]
        return np.column_stack([heights, np.tile(of_set, (len(scores), 1))])


def describe_scores(scores: Scores, contrasts: Sequence[float]) -> SetScores | None:
    """Describe the scores [n] and contrasts [n] of a set; None of fewer than 5 images."""
    if len(scores) < LEAST_IMAGES:
        return None
    median, deviation = describe_ordinary(scores)
    return SetScores(len(scores), median, deviation, float(np.median(contrasts)))


@dataclass(frozen=True)
class Model:
    """A logistic regression: an intercept, and weights [4] of features within least and most [4].

    Beyond what it was fitted to, a feature counts as the nearest that it was.
    """

    intercept: float
    weights: tuple[float, ...]
    least: tuple[float, ...]
    most: tuple[float, ...]

    def probabilities(self, features: Scores) -> Scores:
        """Return the probability of each row of features [n, 4], float64 [n]."""
        logits = features.clip(self.least, self.most) @ np.array(self.weights) + self.intercept
        found: Scores = 1 / (1 + np.exp(-logits))
        return found


def read_model() -> Model:
    """Read the model that comes with the package."""
    file = resources.files(__package__).joinpath("probability.json")
    given = json.loads(file.read_text("utf-8"))
    parts = [given["features"][name] for name in FEATURES]
    columns = zip(*((part["weight"], part["least"], part["most"]) for part in parts), strict=True)
    return Model(given["intercept"], *columns)


_MODEL = read_model()


def find_probabilities(scores: Scores, of_set: SetScores) -> Scores:
    """Return the probability that each image [n] of a set is anomalous; it grows with the score."""
    return _MODEL.probabilities(of_set.features(scores))


def score_of(probability: float, of_set: SetScores) -> float:
    """Return the score from which on images have a probability.

    Where none has it, the score beyond which the model knows no more.
    """
    rest = of_set.features(np.array([of_set.median])).clip(_MODEL.least, _MODEL.most)[0, 1:]
    logit = math.log(probability / (1 - probability)) - _MODEL.intercept
    height = (logit - float(rest @ np.array(_MODEL.weights[1:]))) / _MODEL.weights[0]
    height = min(max(height, _MODEL.least[0]), _MODEL.most[0])
    return of_set.median + of_set.step * math.expm1(height)


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
    width = max(width, 1e-9 * float(np.ptp(some)))  # or squares overflow
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
