"""SPADE as the paper modifies it, and SPADE-Cluster (sections 5 and 5.2)."""

from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import Tensor

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


class SpadeCluster(Method):
    """Score a patch by the mean distance to its k nearest patches in the images most like its own.

    The images are the `images` nearest ones by pooled features, the mean over all patches of an
    image; the image itself is left out (the paper, section 5), so that no neighbour is skipped. The
    image score `global` is SPADE's own: the mean distance of the pooled features to those images'.

    Parameters: `k` (the paper's Table 6 varies it from 1 to 150); `images`, 50 in the paper.
    """

    name = "spade-cluster"
    layout = "fine"
    learned = ("pooled",)
    pooled_: Tensor
    image_scores = ("global",)

    def __init__(self, k: int = 20, images: int = 50) -> None:
        self.k = k
        self.images = images

    def fit(
        self,
        patches: Patches,
        keys: Sequence[int] | None = None,  # noqa: ARG002 (nothing is random)
        progress: Progress | None = None,  # noqa: ARG002 (takes no time)
    ) -> Self:
        grids = as_tensors(patches)
        if len(grids) < 2:
            raise SettingError("one image has nothing to be compared with: give at least 2 images")
        if self.k < 1 or self.images < 1:
            raise SettingError(f"k={self.k} of {self.images} images: choose at least 1 of each")
        flat = [to_float(flatten(grid)) for grid in grids]
        self.bank_ = torch.cat(flat)
        self.bank_image_, self.bank_patch_ = place_rows(grids)
        self.pooled_ = torch.stack([rows.mean(0) for rows in flat])
        self.image_count_ = len(grids)
        self._index()
        return self

    def compare(self, grids: Sequence[Tensor], own: Sequence[int] | None = None) -> Comparison:
        parts = [
            self._compare_image(to_float(flatten(grid)), None if own is None else own[i])
            for i, grid in enumerate(grids)
        ]
        return Comparison(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))

    def _compare_image(self, rows: Tensor, own: int | None) -> tuple[Tensor, Tensor, Tensor]:
        """Distances [p, 2]: of the patches, and of the image as a whole, repeated."""
        gaps = (self.pooled_ - rows.mean(0)).norm(dim=1)
        if own is not None:
            gaps[own] = torch.inf
        others = self.image_count_ - int(own is not None)
        near = gaps.topk(min(self.images, others), largest=False)
        places = torch.cat([self._places[image] for image in near.indices.tolist()])
        kept = min(max(self.k, NEIGHBOURS_KEPT), len(places))
        if self.k > kept:
            raise SettingError(
                f"k={self.k} neighbours, but {len(near.indices)} images offer {kept}: choose a "
                "smaller k"
            )
        distances, indices = map(torch.as_tensor, nearest(rows, self.bank_[places], kept))
        score = distances[:, : self.k].mean(1)
        whole = near.values.mean().expand(len(rows))
        rows_found = places[indices[:, :NEIGHBOURS_KEPT]]
        return torch.stack([score, whole], 1), rows_found, distances[:, :NEIGHBOURS_KEPT]

    def grade(self, comparison: Comparison) -> Tensor:
        return comparison.distances[:, 0]

    def score_images(
        self, rule: str, grids: Sequence[Tensor], scores: Sequence[Tensor], comparison: Comparison
    ) -> Tensor:
        if rule not in self.image_scores:
            return super().score_images(rule, grids, scores, comparison)
        counts = torch.tensor([0, *(len(score) for score in scores)])
        return comparison.distances[counts.cumsum(0)[:-1], 1]

    def restore(self, state: Mapping[str, Tensor]) -> Self:
        super().restore(state)
        self._index()
        return self

    def _index(self) -> None:
        sizes = torch.bincount(self.bank_image_, minlength=self.image_count_).tolist()
        rows = torch.arange(len(self.bank_), device=self.bank_.device)
        self._places = torch.split(rows, sizes)


class Spade(SpadeCluster):
    """Score a patch by the distance to its nearest patch in the images most like its own.

    It is SpadeCluster with k = 1 (the paper, Table 2 and the first column of Table 6).
    """

    name = "spade"

    def __init__(self, images: int = 50) -> None:
        super().__init__(k=1, images=images)
