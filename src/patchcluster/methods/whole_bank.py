"""Base of the methods whose bank holds all patches of its images."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .base import Method
from .grids import Grids


class WholeBank(Method):
    """Base class; the rows of the bank are the patches of its images, one after the other."""

    shapes_: Tensor  # int64 [b, 2]: (h, w) of the grid of each image of the bank

    def _hold(self, grids: Grids, chosen: Sequence[int] | None = None) -> None:
        super()._hold(grids, chosen)
        images = range(len(grids)) if chosen is None else chosen
        self.shapes_ = torch.tensor([grids.shapes[image][:2] for image in images])

    @property
    def whole(self) -> bool:
        return not self.bounded

    def _counts(self, ratio: int) -> list[int]:
        """Count the cells of each image of the bank, on a grid `ratio` times coarser."""
        counts: list[int] = (self.shapes_ // ratio).prod(1).tolist()
        return counts

    def _bank_grid(self, image: int) -> Tensor:
        """Return the patches [h, w, c] of one of the bank's images."""
        height, width = self.shapes_[image].tolist()
        start = int(self.shapes_[:image].prod(1).sum())
        return self.bank_[start : start + height * width].view(height, width, -1)

    def _bank_grids(self) -> list[Tensor]:
        parts = torch.split(self.bank_, self._counts(1))
        return [p.view(*s, -1) for p, s in zip(parts, self.shapes_.tolist(), strict=True)]
