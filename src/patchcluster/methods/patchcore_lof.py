"""PatchCore's bank with the local outlier factor (the paper's PatchCore-LoF, section 5.1)."""

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from ..lazy import Grids
from ..neighbors import to_float
from .base import (
    Comparison,
    Labels,
    NeighbourMethod,
    Progress,
    check_k,
    compare_bank,
    flatten,
    place_counted,
)
from .patchcluster import search_bank

_TINY = 1e-10  # keeps the density of identical patches finite, as in scikit-learn


class PatchCoreLOF(NeighbourMethod):
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

    def _fit(
        self,
        grids: Grids,
        keys: Sequence[int] | None,  # noqa: ARG002 (nothing is random)
        labels: Labels | None,  # noqa: ARG002
        progress: Progress | None,  # noqa: ARG002 (takes no time)
    ) -> None:
        self.bank_ = torch.cat([to_float(flatten(grid)) for grid in grids])
        self.bank_image_, self.bank_patch_ = place_counted(range(len(grids)), grids.counts)
        self.image_count_ = len(grids)
        self.density_: Tensor | None = None
        self.reach_: Tensor | None = None
        self.neighbour_count(blind=len(grids) > 1)

    def bank_key(self) -> Hashable:
        return ("patches", 1.0)

    def neighbour_count(self, blind: bool) -> int:
        return check_k(self.k, len(self.bank_) - int(blind))

    def search(self, grids: Sequence[Tensor], own: Sequence[int] | None, k: int) -> Comparison:
        return search_bank(self.bank_, grids, own is not None, k)

    def summarise(self, found: Comparison) -> Comparison:
        distances = found.distances[:, : self.k]
        return Comparison(distances, found.neighbours[:, : self.k], distances)

    def extra_memory(self, images: int, patches: int, channels: int) -> int:
        del channels
        return images * patches * self.k * 24  # distances and neighbours, in parts and joined

    def calibrate(self, bank: Comparison) -> None:
        self.reach_ = bank.distances[:, -1].clone()
        self.density_ = self._density(bank)

    def to_scores(self, comparison: Comparison) -> Tensor:
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
