"""What methods have in common whose bank holds all patches of all images, grid by grid."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .base import Comparison, Method, flatten, join, make_batches, place_rows


class WholeBank(Method):
    """Base class; the rows of the bank are the patches of the images, one after the other."""

    shapes_: Tensor  # int64 [n, 2]: (h, w) of each image's grid

    def _hold(self, grids: Sequence[Tensor]) -> None:
        """Take the patches [h_i, w_i, c] of a set as the bank."""
        self.image_count_ = len(grids)
        self.bank_ = torch.cat([flatten(grid) for grid in grids])
        self.bank_image_, self.bank_patch_ = place_rows(grids)
        self.shapes_ = torch.tensor([grid.shape[:2] for grid in grids])

    def _counts(self, ratio: int) -> list[int]:
        """Number of cells of each image of the bank, on a grid `ratio` times coarser."""
        counts: list[int] = (self.shapes_ // ratio).prod(1).tolist()
        return counts

    def _bank_grid(self, image: int) -> Tensor:
        """The patches [h, w, c] of an image of the set."""
        height, width = self.shapes_[image].tolist()
        start = int(self.shapes_[:image].prod(1).sum())
        return self.bank_[start : start + height * width].view(height, width, -1)

    def _bank_grids(self) -> list[Tensor]:
        """The patches [h_i, w_i, c] of all images of the set."""
        parts = torch.split(self.bank_, self._counts(1))
        return [p.view(*s, -1) for p, s in zip(parts, self.shapes_.tolist(), strict=True)]

    def _compare_bank(self) -> Comparison:
        grids, counts = self._bank_grids(), self._counts(1)
        return join([self.compare([grids[i] for i in b], b) for b in make_batches(counts)])
