"""Score grid -> map over the original image, image score, regions.

A map is made in two steps (the paper, end of section 4.2): the grid is brought bilinearly to a
frame of fixed area and smoothed there with a Gaussian, so that smoothing means the same for images
of any size; the frame is then brought bilinearly to the original image. Grid, frame and image cover
the same field of view: nothing is cropped.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage

from .errors import SettingError

ImageScore = Literal["top1%", "max", "reweighted", "global", "rescored"]
Floats = NDArray[np.float32]

SIGMA = 4.0  # of the Gaussian, in pixels of the frame
TOP_SHARE = 0.01


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


def smooth(grid: Floats, frame: int, width: int, height: int) -> Floats:
    """Score grid [h, w] -> smoothed map on the frame of a width x height image, float32.

    The frame has about frame x frame pixels and the aspect of the image.
    """
    aspect = math.sqrt(width / height)
    size = (max(1, round(frame / aspect)), max(1, round(frame * aspect)))
    smoothed: Floats = ndimage.gaussian_filter(_bilinear(grid, size), SIGMA, mode="nearest")
    return smoothed


def to_image(frame_map: Floats, width: int, height: int) -> Floats:
    """Map on the frame -> map float32 [height, width] of the original image."""
    return _bilinear(frame_map, (height, width))


def _bilinear(values: Floats, size: tuple[int, int]) -> Floats:
    tensor = torch.from_numpy(np.ascontiguousarray(values, np.float32))[None, None]
    resized: Floats = F.interpolate(tensor, size=size, mode="bilinear", align_corners=False)[
        0, 0
    ].numpy()
    return resized


def round_as_stored(grid: Floats) -> Floats:
    """A score grid with the digits that a run keeps, so that all its figures agree."""
    return grid.astype(np.float16).astype(np.float32)


def fuse(grids: list[Floats]) -> Floats:
    """Mean of score grids of one image at several scales, on the finest one's grid [h, w]."""
    finest = max(grids, key=lambda grid: grid.size)
    size = (finest.shape[0], finest.shape[1])
    mean: Floats = np.mean([_bilinear(grid, size) for grid in grids], axis=0, dtype=np.float32)
    return mean


def score_image(frame_map: Floats, rule: ImageScore) -> float:
    """Image score from the smoothed map: its maximum, or the mean of its highest 1 %.

    Other rules are the methods' own: see `Method.score_images`.
    """
    if rule == "max":
        return float(frame_map.max())
    if rule == "top1%":
        count = max(1, round(frame_map.size * TOP_SHARE))
        return float(np.partition(frame_map, -count, axis=None)[-count:].mean(dtype=np.float64))
    raise SettingError(f"a map alone has no image score {rule!r}: choose top1% or max")


def find_regions(image_map: Floats, threshold: float) -> list[Region]:
    """Connected areas (8 neighbours) where a map [height, width] exceeds a threshold.

    Ordered by peak, highest first.
    """
    above = image_map > threshold
    if not above.any():
        return []
    labels, count = ndimage.label(above, structure=np.ones((3, 3)))
    numbers = np.arange(1, count + 1)
    peaks = ndimage.maximum(image_map, labels, numbers)
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    regions = []
    for (rows, columns), area, peak in zip(ndimage.find_objects(labels), areas, peaks, strict=True):
        box = (columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)
        regions.append(Region(*box, area=int(area), peak=float(peak)))
    return sorted(regions, key=lambda region: -region.peak)
