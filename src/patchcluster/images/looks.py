"""How an image looks as a whole, in four figures: what remarks about it are made from."""

import math

import numpy as np
from numpy.typing import NDArray

from .raster import strips

_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # of red, green and blue, ITU-R BT.601
_LEAST = 1e-3  # variance of a Laplacian, below which an image is flat
_DARK = 10.0  # added to the luminance, and to each colour: in the dark they say little


def measure_look(pixels: NDArray[np.uint8] | NDArray[np.float32]) -> list[float]:
    """Measure an image [h, w, 3] of 0 to 255 at the size of the network: [light, sharp, red, blue].

    light: mean luminance, 0 to 255. sharp: natural logarithm of the variance of the luminance's
    Laplacian of four neighbours (Pech-Pacheco et al. 2000), less that of the square of light + 10:
    a darker exposure is no blur. red, blue: what the mean red and the mean blue exceed the mean
    green by, in % of the sum of the three and 30, which hardly depends on the exposure either.
    """
    sums = np.zeros(3)  # of the Laplacian, of its squares, of the luminance
    for rows in strips(pixels):
        luminance = pixels[max(0, rows.start - 1) : rows.stop + 1].astype(np.float32) @ _LUMINANCE
        middle = luminance[1:-1, 1:-1]
        above, below = luminance[:-2, 1:-1], luminance[2:, 1:-1]
        edges = above + below + luminance[1:-1, :-2] + luminance[1:-1, 2:] - 4 * middle
        own = luminance[rows.start > 0 :][: rows.stop - rows.start]
        sums += [part.sum(dtype=np.float64) for part in (edges, np.square(edges), own)]
    height, width, _ = pixels.shape
    mean, squares = sums[:2] / max(1, (height - 2) * (width - 2))
    variance = squares - mean**2
    red, green, blue = pixels.mean((0, 1), dtype=np.float64).tolist()
    share = 100 / (red + green + blue + 3 * _DARK)
    light = float(sums[2]) / (height * width)
    return [
        round(light, 2),
        round(math.log(max(variance, _LEAST) / (light + _DARK) ** 2), 3),
        round((red - green) * share, 3),
        round((blue - green) * share, 3),
    ]
