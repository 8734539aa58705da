"""PatchCore's bank with the local outlier factor (the paper's PatchCore-LoF, section 5.1)."""

import torch
from torch import Tensor

from . import FACTS
from .base import Comparison, Given
from .grids import Grids
from .neighbour_method import NeighbourMethod, check_k

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
    facts = FACTS[name]
    layout = "fine"
    learned = ("density", "reach")

    def __init__(self, k: int = 100) -> None:
        self.k = k

    def _fit(self, grids: Grids, given: Given) -> None:
        super()._fit(grids, given)
        self.density_: Tensor | None = None
        self.reach_: Tensor | None = None

    def neighbour_count(self, blind: bool) -> int:
        return check_k(self.k, len(self.bank_) - int(blind))

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
            self.calibrate(self._compare_bank())
        assert self.density_ is not None
        around = self.density_[comparison.neighbours].mean(1)
        return around / self._density(comparison)

    def _density(self, comparison: Comparison) -> Tensor:
        """Local reachability density of compared patches, float32 [p]."""
        assert self.reach_ is not None
        reach = self.reach_[comparison.neighbours]
        return 1 / (torch.maximum(reach, comparison.distances).mean(1) + _TINY)
