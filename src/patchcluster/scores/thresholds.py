"""Which images to flag: those that are probably anomalous, or as many as a user asks for."""

from dataclasses import dataclass

import numpy as np

from ..errors import SettingError
from .probability import Scores, SetScores, find_probabilities, score_of

FLAGGED_FROM = 0.5  # probability of an image, unless a user asks otherwise


@dataclass(frozen=True)
class Threshold:
    """Images that score above `value` are flagged; `meaning` says how it was found."""

    value: float
    meaning: str


@dataclass(frozen=True)
class Flagging:
    """How a user wants images to be flagged: see `choose_threshold`.

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


def choose_threshold(scores: Scores, how: Flagging, of_set: SetScores | None) -> Threshold:
    """Choose a threshold for image scores [n].

    how: the share of the images, or the number of them, that a user asks for; without, from the
    score on that is anomalous with a probability of 0.5. of_set: what the scores are like; None:
    of so few images that nothing is said of them.
    """
    if how.expect is not None:
        count = round(how.expect * len(scores))
        return _highest(scores, count, f"{100 * how.expect:.3g} % of the images, as asked")
    if how.flag_top is not None:
        return _highest(scores, how.flag_top, "a number of images, as asked")
    return _probable(scores, of_set)


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


def _probable(scores: Scores, of_set: SetScores | None) -> Threshold:
    if of_set is None:
        return Threshold(
            float(scores.max()),
            "so few images do not say what ordinary ones score, so none is flagged; give "
            "the share you expect, or how many to flag, if you know it",
        )
    value = score_of(FLAGGED_FROM, of_set)
    count = int((scores > value).sum())
    if count == 0:
        highest = float(find_probabilities(scores, of_set).max())
        return Threshold(
            value,
            f"no image stands out: the highest score is anomalous with a probability of "
            f"{highest:.2f}, so none is flagged; give the share you expect, or how many to flag, "
            "if you know better",
        )
    meaning = f"these images are anomalous with a probability of {FLAGGED_FROM} or more"
    if count > len(scores) / 2:
        meaning += (
            "; but most images are flagged here: if they are the ordinary ones, give the share "
            "that you expect"
        )
    return Threshold(value, meaning)
