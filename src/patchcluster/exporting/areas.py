"""Regions with their pixels, as masks, polygons and run lengths.

Points of polygons are corners of pixels: the pixel in the top left corner of an image is the square
from (0, 0) to (1, 1).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ..images.raster import Bools, Points, fill
from ..scores.maps import Floats, Region

LEAST_IOU = 0.95  # of a simplified polygon and the mask
_TOLERANCES = (1.0, 0.5)  # pixels that a simplified polygon may be off, coarsest first


@dataclass(frozen=True)
class Area:
    """A region and its pixels: mask bool [region.height, region.width]."""

    region: Region
    mask: Bools

    @property
    def box(self) -> NDArray[np.int64]:
        """Its bounding box [4]: x, y, width and height, in pixels of the image."""
        region = self.region
        return np.array([region.x, region.y, region.width, region.height])

    @property
    def polygon(self) -> Points:
        """The polygon [n, 2] around it, in pixels of the image: see `trace`."""
        polygon: Points = trace(self.mask) + self.box[:2]
        return polygon


def box_of(region: Region) -> tuple[slice, slice]:
    """Rows and columns of the bounding box of a region."""
    return (
        slice(region.y, region.y + region.height),
        slice(region.x, region.x + region.width),
    )


def find_area(region: Region, image_map: Floats, threshold: float) -> Area:
    """Find the pixels of a region in the map [height, width] that exceeds a threshold there.

    Raises ValueError if the map exceeds it nowhere in the bounding box.
    """
    labels, count = ndimage.label(image_map[box_of(region)] > threshold, np.ones((3, 3)))
    if not count:
        raise ValueError("the map does not exceed the threshold in the region")
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
    return _join(rings)


def iou(one: Bools, other: Bools) -> float:
    """Return the intersection over union of two masks of one shape."""
    return float((one & other).sum() / max(1, (one | other).sum()))


def run_lengths(mask: Bools, x: int, y: int, width: int, height: int) -> list[int]:
    """Return the lengths of runs of equal pixels, outside first, of a mask in a larger image.

    The image has width x height pixels, the upper left one of the mask [h, w] is its pixel (x, y),
    and runs go along its rows. For runs along the columns transpose the mask and swap the sides.
    """
    # Where runs begin and end.
    rows, columns = np.nonzero(np.diff(np.pad(mask, ((0, 0), (1, 1)))))
    bounds, count = np.unique((rows + y) * width + columns + x, return_counts=True)
    bounds = bounds[count == 1]  # a run that ends with a row may go on in the next
    lengths: list[int] = np.diff([0, *bounds, width * height]).tolist()
    return lengths if lengths[-1] else lengths[:-1]


def _rings(mask: Bools) -> list[Points]:
    """Return the corners of the border and then of the holes of a mask, along its pixels' edges."""
    double = mask.astype(np.uint8).repeat(2, 0).repeat(2, 1)
    # OpenCV goes through the centres of border pixels. Of pixels of half the size these lie a
    # quarter next to the edge, so that rounding gives the corner.
    found, _ = cv2.findContours(double, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    rings = [np.rint((ring[:, 0] + 0.5) / 2) for ring in found]
    rings.sort(key=lambda ring: -np.ptp(ring[:, 0]) * np.ptp(ring[:, 1]))
    return [ring[(ring != np.roll(ring, 1, 0)).any(1)] for ring in rings]


def _simplify(ring: Points, tolerance: float) -> Points:
    """Simplify a ring to within a tolerance in pixels."""
    fewer = cv2.approxPolyDP(ring.astype(np.float32)[:, None], tolerance, True)[:, 0]
    return fewer.astype(np.float64) if len(fewer) > 2 else ring


def _join(rings: Sequence[Points]) -> Points:
    """Join a border and its holes into one polygon, by a line there and back to each hole."""
    polygon = rings[0]
    for hole in rings[1:]:
        distances = ((polygon[:, None] - hole[None]) ** 2).sum(2)
        i, j = np.unravel_index(int(distances.argmin()), distances.shape)
        there = np.roll(hole, -j, 0)
        polygon = np.concatenate([polygon[: i + 1], there, there[:1], polygon[i:]])
    return polygon
