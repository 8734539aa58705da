"""Images in memory -> patches: the first step of the way to a score."""

from collections.abc import Sequence

from torch import Tensor

from ..images.decode import Pixels, network_size
from ..network.backbones import Backbone
from ..network.patches import patch_grid
from ..network.tiling import find_lattice, native_size, tiled_features
from ..settings import Settings


def input_shapes(
    width: int, height: int, settings: Settings, strides: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    """Say what the network sees of an image of width x height: (height, width) at each size.

    strides: of the network's stages, which tiles must line up with.
    """
    if not settings.tile:
        return tuple(network_size(width, height, size) for size in settings.size)
    lattice = find_lattice(strides)
    return tuple(native_size(width, height, size, lattice) for size in settings.size)


def extract(
    pixels: Sequence[Pixels], network: Backbone, settings: Settings, size: int
) -> list[Tensor]:
    """Turn images of one shape, at one network size, into patches float16 [h, w, c] of each.

    They lie where the network is.
    """
    tiled = settings.tile
    stages = tiled_features(network, pixels, size) if tiled else network.features(pixels)
    return list(patch_grid(stages, settings.layout).half())
