"""Arrays of pixels: alpha, orientation, masks on grids, polygons, and the bytes of image files."""

import io
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Values = NDArray[Any]
Bools = NDArray[np.bool_]
Points = NDArray[np.float64]  # [n, 2]: x to the right, y downwards, in pixels from the upper left
_Value = TypeVar("_Value", bound=np.generic)

SWAPPING = (5, 6, 7, 8)  # orientations that swap width and height
_STRIP = 1 << 20  # values


def to_share(alpha: Values, opaque: float | None = None) -> Values | None:
    """Bring alpha [h, w] to shares of 0 to 1, float64; None if it is the same everywhere.

    That says nothing: writers of three colours in four samples leave zeros, or ones. opaque: the
    value of pixels that hide all; None: the largest, since deep files have any range.
    """
    largest = float(alpha.max())
    if float(alpha.min()) == largest or largest <= 0:
        return None
    share = np.divide(alpha, largest if opaque is None else opaque, dtype=np.float64)
    return share.clip(0, 1, out=share)


def compose(values: Values, share: Values, white: float, premultiplied: bool = False) -> Values:
    """Compose values [h, w] or [h, w, c] on white by alpha [h, w] of 0 to 1; their type stays."""
    composed = np.empty_like(values)
    for rows in strips(values):
        part, alpha = values[rows], share[rows]
        alpha = alpha if values.ndim == 2 else alpha[..., None]
        mixed = (part if premultiplied else part * alpha) + white * (1 - alpha)
        if values.dtype.kind in "ui":
            mixed = mixed.round().clip(0, white)
        composed[rows] = mixed
    return composed


def strips(values: Values) -> Iterator[slice]:
    """Split the rows of an array [h, w, ...] into parts whose copies as floats stay small."""
    height = max(1, _STRIP * len(values) // values.size)
    return (slice(row, row + height) for row in range(0, len(values), height))


def orient(values: NDArray[_Value], orientation: int) -> NDArray[_Value]:
    """Apply an EXIF orientation (1 to 8) to an array [h, w, ...]."""
    if orientation in SWAPPING:
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return np.ascontiguousarray(values)


def fits(shape: tuple[int, ...], width: int, height: int) -> bool:
    """Whether a mask (height, width) has the aspect of an image, but for rounding to a pixel."""
    return abs(shape[0] * width - shape[1] * height) <= max(*shape, width, height)


def find_turn(shape: tuple[int, ...], width: int, height: int, read: Callable[[], int]) -> int:
    """Find the EXIF orientation to apply to a mask (height, width), so that it lies as its image.

    width, height: of the image as shown; read: gives its orientation. A mask whose aspect fits the
    image only before its sides were swapped is of the image as stored. All others lie right: 1.
    """
    if fits(shape, width, height) or not fits(shape, height, width):
        return 1
    orientation = read()
    return orientation if orientation in SWAPPING else 1


def cover(mask: Bools, size: tuple[int, int]) -> Bools:
    """Mark the cells of a grid of size (h, w) over a mask bool [height, width] that hold any of it.

    -> bool [h, w]
    """
    for axis, count in enumerate(size):
        side, cells = mask.shape[axis], np.arange(count)
        inside = np.cumsum(mask, axis, dtype=np.int32)  # rows or columns up to here
        inside = np.insert(inside, 0, 0, axis)
        first, end = cells * side // count, -(-(cells + 1) * side // count)
        mask = inside.take(end, axis) > inside.take(first, axis)
    return mask


def at_size(mask: Bools, width: int, height: int) -> Bools:
    """Bring a mask to bool [height, width] by the nearest pixel; not a copy if it has that size."""
    if mask.shape == (height, width):
        return mask
    rows = (2 * np.arange(height) + 1) * mask.shape[0] // (2 * height)
    columns = (2 * np.arange(width) + 1) * mask.shape[1] // (2 * width)
    brought: Bools = mask[rows[:, None], columns]
    return brought


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


def encode(picture: Image.Image | NDArray[Any], kind: str = "PNG", **options: Any) -> bytes:
    """Encode a picture of Pillow, or an array [h, w] or [h, w, 3], as a file of a kind.

    bool arrays become PNGs of 1 bit a pixel. options: of Pillow's writer.
    """
    buffer = io.BytesIO()
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image.save(buffer, kind, **options)
    return buffer.getvalue()
