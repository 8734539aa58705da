"""Regions with their pixels, as masks, polygons and run lengths.

Points of polygons are corners of pixels: the pixel in the top left corner of an image is the square
from (0, 0) to (1, 1).
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from scipy import ndimage

from ..images.polygons import Points, fill
from ..images.raster import Bools
from ..scores.maps import Floats, Region

LEAST_IOU = 0.95  # of a simplified polygon and the mask
_TOLERANCES = (1.0, 0.5)  # pixels that a simplified polygon may be off, coarsest first


@dataclass(frozen=True)
class Area:
    """A region and its pixels: mask bool [region.height, region.width]."""

    region: Region
    mask: Bools

    @functools.cached_property
    def polygon(self) -> Points:
        """The polygon [n, 2] around it, in pixels of the image: see `trace`."""
        polygon: Points = trace(self.mask) + np.array([self.region.x, self.region.y])
        return polygon


def box_of(region: Region) -> tuple[slice, slice]:
    """Rows and columns of the bounding box of a region."""
    return (
        slice(region.y, region.y + region.height),
        slice(region.x, region.x + region.width),
    )


def find_area(region: Region, image_map: Floats, threshold: float) -> Area | None:
    """Find the pixels of a region in the map [height, width] that exceeds a threshold there.

    None: the map exceeds it nowhere in the bounding box.
    """
    labels, count = ndimage.label(image_map[box_of(region)] > threshold, np.ones((3, 3)))
    if not count:
        return None
    # One connected component at most touches all four sides of the box. On another processor the
    # map may be rounded differently, so that none does: then the largest is the region.
    whole = (slice(0, region.height), slice(0, region.width))
    fills = [box == whole for box in ndimage.find_objects(labels)]
    sizes = np.bincount(labels.ravel())[1:]
    best = max(range(count), key=lambda i: (fills[i], sizes[i]))
    return Area(region, labels == best + 1)


def trace(mask: Bools) -> Points:
    """Return the polygon [n, 2] around a connected mask [h, w] (8 neighbours).

    A simplified polygon if its IoU with the mask reaches LEAST_IOU, else the exact border of the
    pixels. Holes are joined to the border by a line there and back, which encloses nothing, so that
    one polygon holds them.
    """
    rings = _rings(mask)
    for tolerance in _TOLERANCES:
        polygon = _join([_simplify(ring, tolerance) for ring in rings])
        if iou(fill(polygon, mask.shape), mask) >= LEAST_IOU:
            return polygon
    return _join([_simplify(ring, 0) for ring in rings])


def iou(one: Bools, other: Bools) -> float:
    """Return the intersection over union of two masks of one shape."""
    return float((one & other).sum() / max(1, (one | other).sum()))


def run_lengths(values: Bools) -> list[int]:
    """Return the lengths of runs of equal values [n], False first (0: it begins with True)."""
    bounds = np.flatnonzero(np.diff(values)) + 1
    counts: list[int] = np.diff(np.concatenate([[0], bounds, [len(values)]])).tolist()
    return [0, *counts] if values[0] else counts


def run_lengths_within(mask: Bools, start: int, before: int, side: int, after: int) -> list[int]:
    """Return the run lengths, row by row, of a mask [h, w] that lies in a larger image.

    The image is `side` wide, with so many rows `before` and `after` the mask; `start`: the column
    of the mask. For run lengths column by column give the mask transposed.
    """
    rows = np.zeros((len(mask), side), bool)
    rows[:, start : start + mask.shape[1]] = mask
    counts = run_lengths(rows.ravel())
    counts[0] += before * side
    if len(counts) % 2:  # the last run is outside the mask
        counts[-1] += after * side
    elif after:
        counts.append(after * side)
    return counts


def _rings(mask: Bools) -> list[Points]:
    """Return the border and then the holes of a mask, along the edges of its pixels."""
    double = mask.astype(np.uint8).repeat(2, 0).repeat(2, 1)
    # OpenCV goes through the centres of border pixels. Of pixels of half the size these lie a
    # quarter next to the edge, so that rounding gives the corner.
    found, _ = cv2.findContours(double, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    rings = [np.rint((ring[:, 0] + 0.5) / 2) for ring in found]
    rings.sort(key=lambda ring: -np.ptp(ring[:, 0]) * np.ptp(ring[:, 1]))
    return [ring[(ring != np.roll(ring, 1, 0)).any(1)] for ring in rings]


def _simplify(ring: Points, tolerance: float) -> Points:
    """Simplify a ring to within a tolerance in pixels."""
    if tolerance == 0:  # drop only points in the middle of a straight line
        before, after = ring - np.roll(ring, 1, 0), np.roll(ring, -1, 0) - ring
        turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
        back = (before * after).sum(1) < 0
        corners: Points = ring[turns | back]
        return corners
    found = cv2.approxPolyDP(ring.astype(np.float32)[:, None], tolerance, True)
    fewer: Points = found[:, 0].astype(np.float64)
    return fewer if len(fewer) > 2 else _simplify(ring, 0)


def _join(rings: Sequence[Points]) -> Points:
    """Join a border and its holes into one polygon, by a line there and back to each hole."""
    polygon = rings[0]
    for hole in rings[1:]:
        distances = ((polygon[:, None] - hole[None]) ** 2).sum(2)
        i, j = np.unravel_index(int(distances.argmin()), distances.shape)
        there = np.roll(hole, -j, 0)
        polygon = np.concatenate([polygon[: i + 1], there, there[:1], polygon[i:]])
    return polygon
