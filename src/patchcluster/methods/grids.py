"""Sequences whose items are read when they are asked for, so that a set need not fit in memory."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import SettingError

Item = TypeVar("Item")


class Lazy(Sequence[Item]):
    """So many items, each read again whenever it is asked for."""

    def __init__(self, length: int, read: Callable[[int], Item]) -> None:
        self._length = length
        self.read = read

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: Any) -> Any:  # of one item; the base class has slices too
        if not 0 <= index < self._length:
            raise IndexError(f"item {index} of {self._length}")
        return self.read(index)


class Grids(Lazy[Tensor]):
    """Patches [h_i, w_i, c] of images; `shapes` are known without reading them."""

    def __init__(self, shapes: Sequence[tuple[int, ...]], read: Callable[[int], Tensor]) -> None:
        super().__init__(len(shapes), read)
        self.shapes = shapes

    @classmethod
    def of(cls, grids: Sequence[Tensor]) -> Self:
        """Wrap patches that are in memory."""
        return cls([tuple(grid.shape) for grid in grids], grids.__getitem__)

    @property
    def counts(self) -> list[int]:
        """Return the number of patches of each image."""
        return [height * width for height, width, _ in self.shapes]


Patches = NDArray[Any] | Tensor | Sequence[NDArray[Any]] | Sequence[Tensor]
Kind = TypeVar("Kind", NDArray[Any], Tensor, Sequence[NDArray[Any]], Sequence[Tensor])


COMPARED_PATCHES = 12_544  # a batch of comparisons, about; enough to keep matrix products busy


def batch_by_patches(counts: Sequence[int]) -> Iterator[list[int]]:
    """Cut images of so many patches each into consecutive batches of about equal work."""
    batch: list[int] = []
    patches = 0
    for image, count in enumerate(counts):
        batch.append(image)
        patches += count
        if patches >= COMPARED_PATCHES:
            yield batch
            batch, patches = [], 0
    if batch:
        yield batch


def digest(grid: Tensor) -> int:
    """Return a hash of patches, as a number."""
    values = grid.contiguous().cpu().numpy()
    return int.from_bytes(hashlib.blake2b(values.tobytes(), digest_size=8).digest(), "little")


def flatten(grid: Tensor) -> Tensor:
    """Reshape patches of one image [h, w, c] to [h * w, c], row-major."""
    return grid.reshape(-1, grid.shape[-1])


def as_grids(patches: Patches) -> Grids:
    """Check patches of any kind, as `Grids`, which are not copied. Raises SettingError."""
    if isinstance(patches, Grids):
        return patches
    grids = [torch.as_tensor(grid) for grid in patches]
    if not grids:
        raise SettingError("no patches: give an array [n, h, w, c] or a list of [h, w, c]")
    shapes = {tuple(grid.shape) for grid in grids}
    if any(len(s) != 3 or 0 in s for s in shapes) or len({s[-1] for s in shapes}) > 1:
        raise SettingError(
            f"patches of an image must be [h, w, c] with one c for all, not {sorted(shapes)[:3]}"
        )
    for image, grid in enumerate(grids):
        if not grid.isfinite().all():
            raise SettingError(f"patches of image {image} are not all finite: leave it out")
    return Grids.of(grids)


def as_given(patches: Kind, grids: list[Tensor]) -> Any:
    """Convert score grids to the kind of array that the patches came as."""
    if isinstance(patches, Tensor):
        return torch.stack(grids)
    if isinstance(patches, np.ndarray):
        return torch.stack(grids).numpy()
    if isinstance(patches[0], np.ndarray):
        return [grid.numpy() for grid in grids]
    return grids
