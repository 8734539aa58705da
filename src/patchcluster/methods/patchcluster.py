"""PatchCluster, the paper's method (section 4.2)."""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from ..coreset import greedy_coreset
from ..errors import SettingError
from ..neighbors import nearest, to_float
from .base import (
    NEIGHBOURS_KEPT,
    Comparison,
    Method,
    Patches,
    Progress,
    as_tensors,
    flatten,
    place_rows,
)


class PatchCluster(Method):
    """Score a patch by the mean distance to its k nearest neighbours in the bank (equation 2).

    The bank holds the patches of all images, or a greedy coreset of them. Scored blindly, a patch's
    first neighbour is skipped: it is the patch itself (section 5, implementation details).

    Parameters: `ratio`, the share of all patches in the bank (1.0: all; the paper also uses 0.25,
    0.10, 0.01). `k`, the number of neighbours; None: the number of images times the ratio, which
    is the paper's rule (section 5.2).
    """

    name = "patchcluster"
    layout = "fine"
    image_scores = ("reweighted",)

    def __init__(self, k: int | None = None, ratio: float = 0.25) -> None:
        self.k = k
        self.ratio = ratio

    def fit(
        self,
        patches: Patches,
        keys: Sequence[int] | None = None,  # noqa: ARG002 (nothing is random)
        progress: Progress | None = None,
    ) -> Self:
        if not 0 < self.ratio <= 1:
            raise SettingError(f"ratio {self.ratio} of the patches: choose a ratio in (0, 1]")
        grids = as_tensors(patches)
        rows = torch.cat([to_float(flatten(grid)) for grid in grids])
        image, patch = place_rows(grids)
        if self.ratio < 1:
            size = max(1, round(len(rows) * self.ratio))
            chosen = greedy_coreset(rows, size, progress=progress)
            rows, image, patch = rows[chosen], image[chosen.cpu()], patch[chosen.cpu()]
        self.bank_, self.bank_image_, self.bank_patch_ = rows, image, patch
        self.image_count_ = len(grids)
        self._neighbour_count(skip=1)
        return self

    def compare(self, grids: Sequence[Tensor], own: Sequence[int] | None = None) -> Comparison:
        rows = torch.cat([flatten(grid) for grid in grids])
        skip = 0 if own is None else 1
        k = self._neighbour_count(skip)
        wanted = max(k, min(NEIGHBOURS_KEPT, len(self.bank_) - skip))
        distances, indices = nearest(rows, self.bank_, skip + wanted)
        distances, indices = (
            torch.as_tensor(distances)[:, skip:],
            torch.as_tensor(indices)[:, skip:],
        )
        return Comparison(
            distances[:, :k].mean(1, keepdim=True),
            indices[:, :NEIGHBOURS_KEPT],
            distances[:, :NEIGHBOURS_KEPT],
        )

    def grade(self, comparison: Comparison) -> Tensor:
        return comparison.distances.squeeze(1)

    def score_images(
        self, rule: str, grids: Sequence[Tensor], scores: Sequence[Tensor], comparison: Comparison
    ) -> Tensor:
        if rule not in self.image_scores:
            return super().score_images(rule, grids, scores, comparison)
        peaks = [int(score.argmax()) for score in scores]
        rows = [flatten(grid)[peak] for grid, peak in zip(grids, peaks, strict=True)]
        highest = torch.stack([score.max() for score in scores])
        device = self.bank_.device
        return self.reweight(torch.stack(rows).to(device), highest.to(device), own=True)

    def reweight(self, patches: Tensor, scores: Tensor, own: bool, b: int = 9) -> Tensor:
        """Image scores by equation 3.

        patches [n, c]: each image's most anomalous patch f*; scores [n]: its score a*; own: whether
        the images are in the bank, so that the first neighbour is skipped. N(f*) holds the b
        nearest rows of the bank to the nearest neighbour of f*, that neighbour among them.
        """
        queries = to_float(patches)
        skip = int(own)
        _, first = nearest(queries, self.bank_, skip + 1)
        around = torch.as_tensor(first)[:, skip]
        _, support = nearest(self.bank_[around], self.bank_, min(b, len(self.bank_)))
        distances = (self.bank_[torch.as_tensor(support)] - queries[:, None]).norm(dim=2)
        # exp(a*) / sum of exp(distances), in logarithms so that large distances do not overflow
        share = torch.exp(scores - torch.logsumexp(distances, dim=1))
        return (1 - share) * scores

    def _neighbour_count(self, skip: int) -> int:
        """K, at most what the bank has beside the skipped neighbour. Raises SettingError."""
        left = len(self.bank_) - skip
        rule = min(left, max(1, round(self.image_count_ * self.ratio)))
        k = rule if self.k is None else self.k
        if not 1 <= k <= left:
            raise SettingError(
                f"k={k} neighbours, but the bank offers {left}: choose a smaller k or more images"
            )
        return k
