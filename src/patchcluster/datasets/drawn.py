"""Masks that are no files: polygons and runs, as COCO has them, and pictures in memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..images.masks import to_mask
from ..images.raster import fill

MAX_PIXELS = 1 << 30  # of a mask that is drawn


@dataclass(frozen=True)
class Polygons:
    """The union of polygons, each x, y, x, y, ... in pixels from the image's upper left corner.

    in_percent: the pixels were computed from shares of the image as it is shown and the sides of
    the image as it is stored; this is how Label Studio writes images with an EXIF orientation.
    """

    height: int
    width: int
    polygons: tuple[tuple[float, ...], ...]
    in_percent: bool = False

    def swap_sides(self) -> "Polygons":
        """Scale each axis to the other side: the same shares of an image with swapped sides."""
        scales = self.height / self.width, self.width / self.height
        polygons = (
            tuple(value * scales[i % 2] for i, value in enumerate(polygon))
            for polygon in self.polygons
        )
        return Polygons(self.width, self.height, tuple(polygons))

    def draw(self) -> NDArray[np.bool_]:
        """A mask, bool [height, width]: the pixels whose centre lies inside a polygon.

        A polygon that crosses itself is inside where a line from outside crosses it an odd number
        of times.
        """
        mask = np.zeros((self.height, self.width), bool)
        for polygon in self.polygons:
            mask |= fill(np.reshape(polygon, (-1, 2)), mask.shape)
        return mask


@dataclass(frozen=True)
class Runs:
    """Pixels outside and inside by turns, down the columns: COCO's RLE.

    counts: lengths of the runs, the first of them outside; or the same as COCO's text.
    """

    height: int
    width: int
    counts: tuple[int, ...] | str

    def draw(self) -> NDArray[np.bool_]:
        """A mask, bool [height, width]. Raises ValueError if the runs do not fill it."""
        counts = decode_counts(self.counts) if isinstance(self.counts, str) else self.counts
        if min(counts, default=0) < 0 or sum(counts) != self.height * self.width:
            raise ValueError(
                f"runs of {sum(counts)} pixels for {self.width} x {self.height} of them"
            )
        inside = np.arange(len(counts)) % 2 == 1
        return np.repeat(inside, counts).reshape(self.width, self.height).T


@dataclass(frozen=True)
class Entry:
    """The mask at one place of a sequence, which may make it anew each time it is asked for."""

    masks: Sequence[Any]
    place: int

    def __str__(self) -> str:
        return f"entry {self.place} of the truth"

    def draw(self) -> NDArray[np.bool_]:
        """A mask, bool [height, width]. Raises ValueError if it is none."""
        return to_mask(self.masks[self.place])


Shape = Polygons | Runs | Entry


def decode_counts(text: str) -> Sequence[int]:
    """The lengths of runs in COCO's text.

    A number is written in digits of 5 bits, the lowest first, with a sixth bit where more follow
    and its sign in the highest; from the fourth on it is the difference to the last but one.
    Raises ValueError.
    """
    counts: list[int] = []
    value, shift = 0, 0
    for character in text:
        digit = ord(character) - 48
        if not 0 <= digit < 64 or shift > 30:
            raise ValueError("a text that no runs are written as")
        value |= (digit & 31) << shift
        shift += 5
        if digit & 32:
            continue
        if digit & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value, shift = 0, 0
    if shift:
        raise ValueError("a text of runs that ends in the middle of a number")
    return counts
