"""PatchCore's bank with the local outlier factor (the paper's PatchCore-LoF, section 5.1)."""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from ..errors import SettingError
from ..neighbors import nearest, to_float
from .base import (
    Comparison,
    Method,
    Patches,
    Progress,
    as_tensors,
    compare_bank,
    flatten,
    place_rows,
)

_TINY = 1e-10  # keeps the density of identical patches finite, as in scikit-learn


class PatchCoreLOF(Method):
    """Score a patch by its local outlier factor over the k nearest patches of the full bank.

    With N(p) the k nearest neighbours of p (itself left out) and d_k(o) the distance of o to its
    k-th neighbour (Breunig et al., SIGMOD 2000):

        density(p) = 1 / (mean over o in N(p) of max(d_k(o), |p - o|))
        score(p)   = mean over o in N(p) of density(o) / density(p)

    Parameters: `k`, the number of neighbours; the paper found 100 to be best.
    """

    name = "patchcore-lof"
    layout = "fine"
    learned = ("density", "reach")

    def __init__(self, k: int = 100) -> None:
        self.k = k

    def fit(
        self,
        patches: Patches,
        keys: Sequence[int] | None = None,  # noqa: ARG002 (nothing is random)
        progress: Progress | None = None,  # noqa: ARG002 (takes no time)
    ) -> Self:
        grids = as_tensors(patches)
        self.bank_ = torch.cat([to_float(flatten(grid)) for grid in grids])
        self.bank_image_, self.bank_patch_ = place_rows(grids)
        self.image_count_ = len(grids)
        self.density_: Tensor | None = None
        self.reach_: Tensor | None = None
        if not 1 <= self.k < len(self.bank_):
            raise SettingError(
                f"k={self.k} neighbours, but the bank offers {len(self.bank_) - 1}: choose a "
                "smaller k or more images"
            )
        return self

    def compare(self, grids: Sequence[Tensor], own: Sequence[int] | None = None) -> Comparison:
        rows = torch.cat([flatten(grid) for grid in grids])
        skip = 0 if own is None else 1
        distances, indices = nearest(rows, self.bank_, skip + self.k)
        kept = torch.as_tensor(distances)[:, skip:]
        return Comparison(kept, torch.as_tensor(indices)[:, skip:], kept)

    def calibrate(self, bank: Comparison) -> None:
        self.reach_ = bank.distances[:, -1].clone()
        self.density_ = self._density(bank)

    def grade(self, comparison: Comparison) -> Tensor:
        if self.density_ is None:
            self.calibrate(compare_bank(self))
        assert self.density_ is not None
        around = self.density_[comparison.neighbours].mean(1)
        return around / self._density(comparison)

    def _density(self, comparison: Comparison) -> Tensor:
        """Local reachability density of compared patches, float32 [p]."""
        assert self.reach_ is not None
        reach = self.reach_[comparison.neighbours]
        return 1 / (torch.maximum(reach, comparison.distances).mean(1) + _TINY)
