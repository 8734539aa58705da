"""Which images to flag, from their scores alone."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SPREADS = 3.5
_MAD_TO_DEVIATION = 1.4826  # a normal distribution's standard deviation, in units of its MAD


@dataclass(frozen=True)
class Threshold:
    """Images that score above `value` are flagged."""

    value: float
    meaning: str


def robust_threshold(scores: NDArray[np.float64]) -> Threshold:
    """Median + 3.5 x MAD (scaled to a standard deviation) of the image scores [n].

    Half of the images at least are taken to be ordinary. Of ordinary images alone 0.3 to 2 % lie
    above it on the sets measured so far.
    """
    median = float(np.median(scores))
    spread = _MAD_TO_DEVIATION * float(np.median(np.abs(scores - median)))
    return Threshold(
        median + SPREADS * spread,
        f"median + {SPREADS} x the scaled median absolute deviation of the image scores; "
        "it assumes that most images are ordinary",
    )
