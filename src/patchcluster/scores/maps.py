"""Score grid -> map over the original image, image score, regions.

A map is made in two steps (the paper, end of section 4.2): the grid is brought bilinearly to a
frame of fixed area and smoothed there with a Gaussian, so that smoothing means the same for images
of any size; the frame is then brought bilinearly to the original image. Grid, frame and image cover
the same field of view: nothing is cropped.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ..errors import SettingError
from ..images.raster import Bools, cover

Floats = NDArray[np.float32]

SIGMA = 4.0  # of the Gaussian, in pixels of the frame
_REACH = 4.0  # deviations, beyond which it is cut off
TOP_SHARE = 0.01
_LEAST_WEIGHT = 1e-3  # of known values, that a value between them is made from


@dataclass(frozen=True)
class Region:
    """A connected anomalous area; pixels of the original image, x to the right, y downwards."""

    x: int
    y: int
    width: int
    height: int
    area: int
    peak: float  # largest value of the map within
    group: int = 0  # of similar regions over all images, from 1; 0: the method cannot tell


def frame_growth(width: int, height: int, native_from: int | None) -> float:
    """How many times as wide as usual the frame of a width x height image is.

    `native_from`: in a scan with tiles the network's size, from which on images are scored at their
    own resolution: their frames grow with them, so that the Gaussian means as many pixels of the
    network's input as in an image of that size. None: all frames have one area.
    """
    return 1.0 if native_from is None else max(1.0, math.sqrt(width * height) / native_from)


def smooth(
    grid: Floats, frame: float, width: int, height: int, mask: Bools | None = None
) -> Floats:
    """Score grid [h, w] -> smoothed map on the frame of a width x height image, float32.

    The frame has about frame x frame pixels and the aspect of the image. With a mask bool [height,
    width] (any size) only places inside it are averaged, and all others are NaN, as are patches of
    the grid that were not scored.
    """
    aspect = math.sqrt(width / height)
    size = (max(1, round(frame / aspect)), max(1, round(frame * aspect)))
    on_frame = _bilinear(grid, size)
    inside = np.isfinite(on_frame)
    if mask is not None:
        inside &= cover(mask, size)
    if inside.all():
        return _gaussian(on_frame)
    weight = _gaussian(inside.astype(np.float32))
    total = _gaussian(np.where(inside, on_frame, np.float32(0)))
    smoothed = np.full(size, np.nan, np.float32)
    np.divide(total, weight, out=smoothed, where=inside)
    return smoothed


def to_image(frame_map: Floats, width: int, height: int, mask: Bools | None = None) -> Floats:
    """Map on the frame -> map float32 [height, width] of the original image.

    With a mask bool [height, width]: NaN outside it.
    """
    image_map = _bilinear(frame_map, (height, width))
    return image_map if mask is None else np.where(mask, image_map, np.float32(np.nan))


def _gaussian(values: Floats) -> Floats:
    side = 2 * round(_REACH * SIGMA) + 1
    blurred = cv2.GaussianBlur(values, (side, side), SIGMA, borderType=cv2.BORDER_REPLICATE)
    return np.asarray(blurred, np.float32)


def _bilinear(values: Floats, size: tuple[int, int]) -> Floats:
    """Bring values [h, w] to another size; NaN takes no part, and stays where nothing else is."""
    known = np.isfinite(values)
    if known.all():
        return _interpolate(values, size)
    weight = _interpolate(known.astype(np.float32), size)
    total = _interpolate(np.where(known, values, np.float32(0)), size)
    brought = np.full(size, np.nan, np.float32)
    np.divide(total, weight, out=brought, where=weight > _LEAST_WEIGHT)
    return brought


def _interpolate(values: Floats, size: tuple[int, int]) -> Floats:
    resized = cv2.resize(
        values.astype(np.float32, copy=False), size[::-1], interpolation=cv2.INTER_LINEAR
    )
    return np.asarray(resized, np.float32).reshape(size)


def round_as_stored(grid: Floats) -> Floats:
    """A score grid with the digits that a run keeps, so that all its figures agree."""
    return grid.astype(np.float16).astype(np.float32)


def fuse(grids: list[Floats]) -> Floats:
    """Mean of score grids of one image at several scales, on the finest one's grid [h, w]."""
    finest = max(grids, key=lambda grid: grid.size)
    size = (finest.shape[0], finest.shape[1])
    brought = np.stack([_bilinear(grid, size) for grid in grids])
    known = np.isfinite(brought)
    count = known.sum(0)
    mean = np.full(size, np.nan, np.float32)
    # A cell next to the region of interest can lack a value at another size.
    np.divide(np.where(known, brought, 0).sum(0, np.float32), count, out=mean, where=count > 0)
    return mean


def score_image(frame_map: Floats, rule: str, growth: float = 1.0) -> float:
    """Image score from the smoothed map: its maximum, or the mean of its highest 1 %.

    On a frame that is `growth` times as wide as usual (`frame_growth`) as many pixels are averaged
    as on a usual one, so that a small defect counts in a large image as it does in a small one.
    Pixels outside a region of interest (NaN) do not count: the 1 % are of the region. Other rules
    are the methods' own: see `Method.score_images`.
    """
    values = frame_map[np.isfinite(frame_map)]
    if rule == "max":
        return float(values.max())
    if rule == "top1%":
        count = max(1, round(values.size * TOP_SHARE / growth**2))
        return float(np.partition(values, -count)[-count:].mean(dtype=np.float64))
    raise SettingError(f"a map alone has no image score {rule!r}: choose top1% or max")


def find_regions(image_map: Floats, threshold: float) -> list[Region]:
    """Connected areas (8 neighbours) where a map [height, width] exceeds a threshold; NaN does not.

    Ordered by peak, highest first.
    """
    above = image_map > threshold
    if not above.any():
        return []
    labels, _ = ndimage.label(above, structure=np.ones((3, 3)))
    regions = []
    for number, box in enumerate(ndimage.find_objects(labels), 1):
        rows, columns = box
        inside = labels[box] == number  # box by box: no further array of the image's size
        peak = image_map[box].max(where=inside, initial=threshold)
        regions.append(
            Region(
                columns.start,
                rows.start,
                columns.stop - columns.start,
                rows.stop - rows.start,
                area=int(inside.sum()),
                peak=float(peak),
            )
        )
    return sorted(regions, key=lambda region: -region.peak)
