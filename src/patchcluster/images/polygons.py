"""Polygons -> pixels."""

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]  # [n, 2]: x to the right, y downwards, in pixels from the upper left


def fill(polygon: Points, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Fill a polygon [n, 2]: bool [h, w], True where it encloses the centre of a pixel.

    Inside is where a line from outside crosses it an odd number of times.
    """
    toggles = np.zeros((shape[0], shape[1] + 1), np.int32)
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, 0), strict=True):
        if y0 == y1:
            continue
        low, high = sorted((y0, y1))
        rows = np.arange(max(0, np.ceil(low - 0.5)), min(shape[0], np.ceil(high - 0.5)), dtype=int)
        at = x0 + (rows + 0.5 - y0) * (x1 - x0) / (y1 - y0)
        toggles[rows, np.ceil(at - 0.5).clip(0, shape[1]).astype(int)] += 1
    inside: NDArray[np.bool_] = toggles.cumsum(1)[:, :-1] % 2 == 1
    return inside
