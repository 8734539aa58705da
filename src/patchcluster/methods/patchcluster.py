"""PatchCluster, the paper's method (section 4.2), and PatchCore, which is its K = 1."""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from ..errors import SettingError
from ..search.coreset import greedy_coreset
from ..search.neighbors import nearest, to_float
from . import FACTS
from .base import NEIGHBOURS_KEPT, Comparison, Given, Method
from .grids import Grids, flatten
from .neighbour_method import NeighbourMethod, check_k, mean_of_nearest


class PatchCluster(NeighbourMethod):
    """Score a patch by the mean distance to its k nearest neighbours in the bank (equation 2).

    The bank holds the patches of all images, or a greedy coreset of them. Scored blindly, a patch's
    first neighbour is skipped: it is the patch itself (section 5, implementation details).

    Parameters: `ratio`, the share of all patches in the bank (1.0: all; the paper also uses 0.25,
    0.10, 0.01). `k`, the number of neighbours; None: the number of images times the ratio, which
    is the paper's rule (section 5.2).
    """

    name = "patchcluster"
    facts = FACTS[name]
    layout = "fine"

    def __init__(self, k: int | None = None, ratio: float = 0.25) -> None:
        self.k = k
        self.ratio = ratio

    def _fit(self, grids: Grids, given: Given) -> None:
        if not 0 < self.ratio <= 1:
            raise SettingError(f"ratio {self.ratio} of the patches: choose a ratio in (0, 1]")
        super()._fit(grids, given)
        if self.ratio == 1:
            return
        size = self.coreset_size(len(self.bank_))
        chosen = greedy_coreset(self.bank_, size, progress=given.progress)
        self.bank_, places = self.bank_[chosen], chosen.cpu()
        self.bank_image_, self.bank_patch_ = self.bank_image_[places], self.bank_patch_[places]
        self.neighbour_count(blind=len(grids) > 1)

    def coreset_size(self, patches: int) -> int:
        """Rows of the bank of a set of so many patches."""
        return max(1, round(patches * self.ratio))

    def reuse(self, fitted: Method, patches: int) -> Self | None:
        if not isinstance(fitted, PatchCluster) or not self.ratio < fitted.ratio < 1:
            return super().reuse(fitted, patches)
        # The greedy choice of fewer rows is the beginning of any longer one of the same set.
        state, size = fitted.state(), self.coreset_size(patches)
        cut = {name: state[name][:size] for name in ("bank", "bank_image", "bank_patch")}
        return self.from_state({**state, **cut}, **self.parameters())

    def relative_cost(self, scored: int, bank: int) -> float:
        coreset = 0.5 * bank**2 if self.ratio < 1 else 0.0
        return self.ratio * (scored * bank + coreset)

    def neighbour_count(self, blind: bool) -> int:
        left = len(self.bank_) - int(blind)
        return max(self._k(left), min(NEIGHBOURS_KEPT, left))

    def summarise(self, found: Comparison) -> Comparison:
        return mean_of_nearest(found, self._k(found.distances.shape[1]))

    def score_images(
        self,
        grids: Sequence[Tensor],
        scores: Sequence[Tensor],
        own: Sequence[int] | None = None,
    ) -> Tensor:
        peaks = [int(score.argmax()) for score in scores]
        rows = [flatten(grid)[peak] for grid, peak in zip(grids, peaks, strict=True)]
        highest = torch.stack([score.max() for score in scores])
        device = self.bank_.device
        return self.reweight(torch.stack(rows).to(device), highest.to(device), own is not None)

    def reweight(self, patches: Tensor, scores: Tensor, own: bool, b: int = 9) -> Tensor:
        """Image scores by equation 3, with the weight that PatchCore gives it.

            (1 - exp |p - f*| / sum over f in N(f*) of exp |p - f|) * a*

        patches [n, c]: each image's most anomalous patch p; scores [n]: its score a*; own: whether
        the images are in the bank, so that the first neighbour is skipped. N(f*) holds the b
        nearest rows of the bank to the nearest neighbour f* of p, f* among them.

        The paper writes exp a* for exp |p - f*|, which is the same for K = 1. For a larger K the
        mean distance a* exceeds all |p - f|, and the weight would be negative without bound; the
        paper also says that the function is PatchCore's.
        """
        queries = to_float(patches)
        skip = int(own)
        gap, first = map(torch.as_tensor, nearest(queries, self.bank_, skip + 1))
        around = first[:, skip]
        _, support = nearest(self.bank_[around], self.bank_, min(b, len(self.bank_)))
        distances = (self.bank_[torch.as_tensor(support)] - queries[:, None]).norm(dim=2)
        # in logarithms, so that large distances do not overflow
        share = torch.exp(gap[:, skip] - torch.logsumexp(distances, dim=1)).clamp_max(1)
        return (1 - share) * scores

    def _k(self, left: int) -> int:
        """K, at most what the bank has left besides a skipped neighbour. Raises SettingError."""
        rule = min(left, max(1, round(self.image_count_ * self.ratio)))
        return check_k(rule if self.k is None else self.k, left)


class PatchCore(PatchCluster):
    """Score a patch by the distance to its nearest neighbour in the bank.

    By Roth et al. (CVPR 2022), in the blind settings. Scored blindly, the first neighbour, which
    is the patch itself, is skipped (the paper, section 5): with the whole bank this is PatchCluster
    with K = 1. The image score is the re-weighted maximum (equation 3 with b = 9), see `reweight`.

    Parameters: `ratio`, the share of all patches in the coreset (the paper: 1.0, 0.25, 0.10).
    """

    name = "patchcore"
    facts = FACTS[name]

    def __init__(self, ratio: float = 0.25) -> None:
        super().__init__(k=1, ratio=ratio)
