"""SPADE as the paper modifies it, and SPADE-Cluster (sections 5 and 5.2)."""

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from ..errors import SettingError
from ..search.neighbors import nearest, to_float
from . import FACTS
from .base import NEIGHBOURS_KEPT, Comparison, Given, join
from .grids import Grids, flatten
from .neighbour_method import NeighbourMethod, check_k, mean_of_nearest


class SpadeCluster(NeighbourMethod):
    """Score a patch by the mean distance to its k nearest patches in the images most like its own.

    The images are the `images` nearest ones by pooled features, the mean over all patches of an
    image; the image itself is left out (the paper, section 5), so that no neighbour is skipped. The
    image score `global` is SPADE's own: the mean distance of the pooled features to those images'.

    Parameters: `k` (the paper's Table 6 varies it from 1 to 150); `images`, 50 in the paper.
    """

    name = "spade-cluster"
    facts = FACTS[name]
    layout = "fine"
    learned = ("pooled",)
    least_images = 2
    pooled_: Tensor

    def __init__(self, k: int = 20, images: int = 50) -> None:
        self.k = k
        self.images = images

    def _fit(self, grids: Grids, given: Given) -> None:  # noqa: ARG002 (nothing is random)
        if self.k < 1 or self.images < 1:
            raise SettingError(f"k={self.k} of {self.images} images: choose at least 1 of each")
        self._hold(grids)
        self.bank_ = to_float(self.bank_)
        self._derive()
        self.pooled_ = torch.stack([self.bank_[places].mean(0) for places in self._places])
        self.neighbour_count(blind=True)

    def bank_key(self) -> Hashable:
        return ("images", self.layout, self.images)

    def relative_cost(self, scored: int, bank: int) -> float:
        return scored * min(bank, self.images)

    def neighbour_count(self, blind: bool) -> int:
        """At most what the images with the fewest patches offer."""
        sizes = sorted(len(places) for places in self._places)
        left = sum(sizes[: min(self.images, self.image_count_ - int(blind))])
        return max(check_k(self.k, left), min(NEIGHBOURS_KEPT, left))

    def search(self, grids: Sequence[Tensor], own: Sequence[int] | None, k: int) -> Comparison:
        parts = []
        for i, grid in enumerate(grids):
            rows = to_float(flatten(grid))
            near, _ = self._near_images(rows, None if own is None else own[i])
            places = torch.cat([self._places[image] for image in near.tolist()])
            distances, indices = map(torch.as_tensor, nearest(rows, self.bank_[places], k))
            parts.append(Comparison(distances, places[indices], distances))
        return join(parts)

    def summarise(self, found: Comparison) -> Comparison:
        return mean_of_nearest(found, self.k)

    def score_images(
        self,
        grids: Sequence[Tensor],
        scores: Sequence[Tensor],  # noqa: ARG002 (images are compared as wholes)
        own: Sequence[int] | None = None,
    ) -> Tensor:
        means = []
        for i, grid in enumerate(grids):
            rows = to_float(flatten(grid)).to(self.pooled_.device)
            means.append(self._near_images(rows, None if own is None else own[i])[1].mean())
        return torch.stack(means)

    def _near_images(self, rows: Tensor, own: int | None) -> tuple[Tensor, Tensor]:
        """The images most like one of patches [p, c], and the distances of the pooled features."""
        gaps = (self.pooled_ - rows.mean(0)).norm(dim=1)
        if own is not None:
            gaps[own] = torch.inf
        others = self.image_count_ - int(own is not None)
        near = gaps.topk(min(self.images, others), largest=False)
        return near.indices, near.values

    def _derive(self) -> None:
        sizes = torch.bincount(self.bank_image_, minlength=self.image_count_).tolist()
        rows = torch.arange(len(self.bank_), device=self.bank_.device)
        self._places = torch.split(rows, sizes)


class Spade(SpadeCluster):
    """Score a patch by the distance to its nearest patch in the images most like its own.

    It is SpadeCluster with k = 1 (the paper, Table 2 and the first column of Table 6).
    """

    name = "spade"
    facts = FACTS[name]

    def __init__(self, images: int = 50) -> None:
        super().__init__(k=1, images=images)
