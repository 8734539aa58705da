"""Large images -> feature maps of the whole image at its own resolution, by overlapping tiles.

The network sees one tile at a time, so that what it activates does not grow with the image. Its
layers pad with zeros, so the cells near a tile's edge are not those of the whole image. They get no
weight where another tile covers them; in the middle of an overlap the weight goes over from one
tile to the next, so that the stitched maps have no seam.

How wide tiles are and how far they overlap was measured: docs/quality.md.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..images.decode import Pixels
from ..images.shapes import STRIDE, network_size
from .backbones import Backbone

WIDTH = 2  # of a tile at most, in units of the network's size
_OVERLAP = 3 / 8  # at least, of the widest tile
_MARGIN = 3 / 8  # of an overlap, at each end, has no weight in the tile that ends there

Place = tuple[int, int]  # start and stop along one side, in pixels


def find_lattice(strides: Sequence[int]) -> int:
    """Return the pixels that sides and places of tiles are multiples of, so that cells align."""
    common = math.lcm(*strides)
    return STRIDE if STRIDE % common == 0 else common


def native_size(width: int, height: int, size: int, lattice: int) -> tuple[int, int]:
    """Return the network's input (height, width) for an image of width x height, possibly tiled.

    The largest multiples of `lattice` within the image, if these are more pixels than the input of
    an image that is not tiled (`network_size`).
    """
    plain = network_size(width, height, size)
    high, wide = (max(lattice, side // lattice * lattice) for side in (height, width))
    return (high, wide) if high * wide > plain[0] * plain[1] else plain


def tile_places(length: int, size: int, lattice: int) -> list[Place]:
    """Cut a side of `length` pixels, a multiple of `lattice`, into tiles of one width.

    They are at most WIDTH times `size` wide, as few as can be, no wider than they need to be, and
    spread evenly.
    """
    widest = _widest(size, lattice)
    if length <= widest:
        return [(0, length)]
    overlap = _overlap(size, lattice)
    count = math.ceil((length - overlap) / (widest - overlap))
    width = math.ceil((length + (count - 1) * overlap) / count / lattice) * lattice
    step = (length - width) / (count - 1) / lattice
    starts = [round(step * i) * lattice for i in range(count)]
    return [(start, start + width) for start in starts]


def tile_weights(places: Sequence[Place], size: int, lattice: int, stride: int) -> list[Tensor]:
    """Return blending weights float32 [cells] along one side of each tile; they sum to 1."""
    overlap, length = _overlap(size, lattice), places[-1][1]
    margin = _MARGIN * overlap
    weights = []
    for start, stop in places:
        centres = torch.arange(start, stop, stride) + stride / 2
        left = centres - start if start > 0 else torch.full_like(centres, torch.inf)
        right = stop - centres if stop < length else torch.full_like(centres, torch.inf)
        inside = torch.minimum(left, right) - margin
        weights.append((inside / (overlap - 2 * margin)).clamp(0, 1))
    total = torch.zeros(length // stride)
    for (start, stop), weight in zip(places, weights, strict=True):
        total[start // stride : stop // stride] += weight
    return [
        weight / total[start // stride : stop // stride]
        for (start, stop), weight in zip(places, weights, strict=True)
    ]


def tiled_features(backbone: Backbone, images: Sequence[Pixels], size: int) -> list[Tensor]:
    """Compute the stages float32 [n, c, h, w] of images [height, width, 3], 0 to 255, tile by tile.

    size: the network's. Images of no more pixels than a tile may have go through the network in one
    piece.
    """
    lattice, strides = find_lattice(backbone.strides), backbone.strides
    height, width = images[0].shape[:2]
    places = _cut(height, width, size, lattice)
    if len(places[0]) == len(places[1]) == 1:
        return backbone.features(images)
    down, across = ([tile_weights(p, size, lattice, s) for s in strides] for p in places)
    stages = [
        backbone.mean.new_zeros(len(images), channels, height // stride, width // stride)
        for channels, stride in zip(backbone.channels, strides, strict=True)
    ]
    for row, (top, bottom) in enumerate(places[0]):
        for column, (left, right) in enumerate(places[1]):
            tile = backbone.features([image[top:bottom, left:right] for image in images])
            for i, (stage, stride) in enumerate(zip(stages, strides, strict=True)):
                weight = down[i][row][:, None] * across[i][column]
                rows = slice(top // stride, bottom // stride)
                columns = slice(left // stride, right // stride)
                stage[:, :, rows, columns] += tile[i] * weight.to(stage.device)
    return stages


def largest_tile(height: int, width: int, size: int, lattice: int) -> int:
    """Return the pixels of the largest tile of an input of height x width."""
    (top, bottom), (left, right) = (places[0] for places in _cut(height, width, size, lattice))
    return (bottom - top) * (right - left)


def seen_pixels(height: int, width: int, size: int, lattice: int) -> int:
    """Return the pixels of all tiles of an input of height x width, overlaps included."""
    down, across = _cut(height, width, size, lattice)
    return sum(stop - start for start, stop in down) * sum(stop - start for start, stop in across)


def _cut(height: int, width: int, size: int, lattice: int) -> list[list[Place]]:
    """Return where tiles begin and end along both sides; one tile if the image fits."""
    # An input that is off the lattice is that of an image that is not over the network's size.
    if height * width <= _widest(size, lattice) ** 2 or height % lattice or width % lattice:
        return [[(0, height)], [(0, width)]]
    return [tile_places(side, size, lattice) for side in (height, width)]


def _widest(size: int, lattice: int) -> int:
    return max(2, WIDTH * size // lattice) * lattice


def _overlap(size: int, lattice: int) -> int:
    """Return the least overlap of neighbouring tiles, in pixels."""
    return math.ceil(_OVERLAP * _widest(size, lattice) / lattice) * lattice
