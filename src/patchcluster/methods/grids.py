"""Sequences whose items are read when they are asked for, so that a set need not fit in memory."""

from collections.abc import Callable, Sequence
from typing import Any, Self, TypeVar

from torch import Tensor

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
        """Patches that are in memory."""
        return cls([tuple(grid.shape) for grid in grids], grids.__getitem__)

    @property
    def counts(self) -> list[int]:
        """Number of patches of each image."""
        return [height * width for height, width, _ in self.shapes]
