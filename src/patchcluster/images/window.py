"""The window of a set's deep images: the values that become 0 and 255, the same in all of them.

A few hot pixels must not darken an image, nor a few hot images the set; and a hot image must stay
different from the others. So values at the ends are left out, twice:

1. of each image the lowest and the highest 0.1 % of the values (at least one of each);
2. of the images' lows and highs that remain, the most extreme 5 % (at least one, from 5 images on).
   Every image has the same weight, whatever its size, since it is images that are anomalous.

What remains is widened by a quarter on each side, so that what lies beyond stands out even where it
is clipped, but not beyond the smallest and largest value of the set. Last, the window is widened to
multiples of a power of two, its width being 16 to 32 of them, so that a few more images seldom
change it: a changed window changes the features of all deep images.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .raster import strips

DeepKind = Literal["integer", "float"]
Windows = dict[str, list[float]]  # by the kind of values: [low, high]

_VALUES_OUT = 0.001  # share of an image's values that is left out at each end
_IMAGES_OUT = 0.05  # share of the images' lows and highs, and one at least from _FEW images on
_FEW = 5
_MARGIN = 0.25  # of the width that remains, on each side
_STEPS = 16
_SAMPLE = 1 << 20  # pixels of an image that its values are taken from, about


@dataclass(frozen=True)
class Spread:
    """The values of a deep image: smallest and largest, and those without 0.1 % at each end."""

    kind: DeepKind
    least: float
    low: float
    high: float
    most: float


def measure_spread(values: NDArray[Any], share: NDArray[Any] | None, kind: DeepKind) -> Spread:
    """Measure the values [height, width] or [height, width, channels] of a deep image.

    share: how opaque each pixel is, [height, width] of 0 to 1; those that are not do not count.
    """
    pixels = values.reshape(*values.shape[:2], -1)
    pixels = pixels.reshape(-1, pixels.shape[2]) if share is None else pixels[share > 0]
    sample = pixels[:: math.ceil(len(pixels) / _SAMPLE)].ravel()
    low, high = _trim(sample, max(1, int(_VALUES_OUT * len(sample))))
    return Spread(kind, float(pixels.min()), low, high, float(pixels.max()))


def choose_windows(
    spreads: Iterable[Spread | None], given: Sequence[float] | None = None
) -> Windows:
    """Choose the values of a set's deep images that become 0 and 255, for each kind that it has.

    spreads: of all images, in any order; None: of 8 bits. given: the window that a user wants.
    """
    kinds: dict[str, list[Spread]] = {}
    for spread in spreads:
        if spread is not None:
            kinds.setdefault(spread.kind, []).append(spread)
    return {
        kind: list(given) if given is not None else _choose(kinds[kind]) for kind in sorted(kinds)
    }


def apply_window(values: NDArray[Any], window: Sequence[float]) -> NDArray[np.float32]:
    """Bring numbers of any type to 0 to 255, float32; what lies outside the window is clipped."""
    low, high = window
    width = max(high - low, 1e-30)  # 0 if all values are equal: then larger ones are white
    # Of numbers that float32 does not hold the difference from the low end counts.
    exact = np.result_type(values.dtype, np.float32)
    shown = np.empty(values.shape, np.float32)
    with np.errstate(over="ignore"):  # of the largest numbers there are
        for rows in strips(values):
            scaled = (values[rows] - exact.type(low)) * exact.type(255 / width)
            shown[rows] = scaled.clip(0, 255)
    return shown


def _choose(spreads: Sequence[Spread]) -> list[float]:
    least, most = min(one.least for one in spreads), max(one.most for one in spreads)
    out = max(1, int(_IMAGES_OUT * len(spreads))) if len(spreads) >= _FEW else 0
    low, _ = _trim(np.array([one.low for one in spreads]), out)
    _, high = _trim(np.array([one.high for one in spreads]), out)
    margin = _MARGIN * (high - low)
    if margin == 0:  # nearly all values are equal: the others are what there is to see
        low, high = least, most
    low, high = max(low - margin, least), min(high + margin, most)
    if low == high:
        return [low, high]
    step = 2.0 ** math.floor(math.log2((high - low) / _STEPS))
    return [math.floor(low / step) * step, math.ceil(high / step) * step]


def _trim(values: NDArray[Any], out: int) -> tuple[float, float]:
    """Return the smallest and largest value [n] without so many at each end, at least one value."""
    out = min(out, (len(values) - 1) // 2)
    ordered = np.partition(values, (out, len(values) - 1 - out))
    return float(ordered[out]), float(ordered[len(values) - 1 - out])
