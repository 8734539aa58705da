"""The product's default: blind comparison image by image, stage by stage."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Self

import numpy as np
import torch
from torch import Tensor

from ..errors import SettingError
from ..neighbors import BlockBank, to_float
from .base import (
    NEIGHBOURS_KEPT,
    Comparison,
    Method,
    Patches,
    Progress,
    as_tensors,
    compare_bank,
    digest,
    flatten,
    place_rows,
)


class PatchClusterPlus(Method):
    """Score a patch by the k-th smallest of its distances to the other images.

    It goes beyond the paper in five ways; docs/quality.md has the figures:

    1. Stages are compared apart. Stage s is centred on the set's mean and divided by the set's root
       mean squared norm; the scores of the stages are averaged.
    2. An image is never compared with itself.
    3. Distance to an image is the distance to its nearest patch; a patch's base score d_s is the
       k-th smallest over the other images, divided by the mean over the bank. A defect that k - 1
       other images share is therefore not hidden by them.
    4. Only k + `margin` images are searched in full for a patch: those that are nearest by a random
       share of each image's patches, seeded by the image's key.
    5. Places that are rare but ordinary are lowered: from the base score a patch's `local_weight`
       times the mean base score of its 3 nearest patches (last stage, of 3 other images) is taken.

        score = d - local_weight * mean(d of the 3 nearest bank patches),  d = mean over s of d_s

    Parameters: `k`; None: 1 in 100 images, at least 2. `ratio`, the random share of each image's
    patches; `margin`, how many more images than k are searched in full; `stages`, the channels of
    each stage in the last axis of the patches (None: one stage); `seed` of the random share.
    """

    name = "patchcluster-plus"
    layout = "coarse"
    learned = ("sample", "mean", "scales", "bank_scores", "stage_means")

    def __init__(
        self,
        k: int | None = None,
        ratio: float = 0.3,
        margin: int = 6,
        local_weight: float = 0.3,
        stages: Sequence[int] | None = None,
        seed: int = 0,
    ) -> None:
        self.k = k
        self.ratio = ratio
        self.margin = margin
        self.local_weight = local_weight
        self.stages = stages
        self.seed = seed

    def fit(
        self,
        patches: Patches,
        keys: Sequence[int] | None = None,
        progress: Progress | None = None,  # noqa: ARG002 (takes no time)
    ) -> Self:
        grids = as_tensors(patches)
        self._check(len(grids), grids[0].shape[-1])
        flat = [flatten(grid) for grid in grids]
        self._fit_normalisation(flat)
        keys = [digest(rows) for rows in flat] if keys is None else keys
        counts = [len(rows) for rows in flat]
        starts = np.cumsum([0, *counts])
        sample = [s + self._sample(c, k) for s, c, k in zip(starts, counts, keys, strict=False)]
        self.image_count_ = len(grids)
        self.bank_ = torch.cat(flat)
        self.bank_image_, self.bank_patch_ = place_rows(grids)
        self.sample_ = torch.cat(sample).to(self.bank_.device)
        self.bank_scores_: Tensor | None = None
        self.stage_means_: Tensor | None = None
        self._index_bank()
        return self

    def compare(self, grids: Sequence[Tensor], own: Sequence[int] | None = None) -> Comparison:
        flat = [flatten(grid) for grid in grids]
        rows = torch.cat(flat)
        image = None
        if own is not None:
            counts = torch.tensor([len(r) for r in flat])
            image = torch.tensor(own).repeat_interleave(counts).to(rows.device)
        others = self.image_count_ - int(own is not None)
        k, kept = min(self._order(), others), min(NEIGHBOURS_KEPT, others)
        base = []
        for bank, stage in zip(self._banks, self._normalise(rows), strict=True):
            wanted = max(k, kept) if bank is self._banks[-1] else k
            distances, neighbours = bank.nearest_blocks(stage, wanted, k + self.margin, image)
            base.append(distances[:, k - 1])
        return Comparison(torch.stack(base, 1), neighbours[:, :kept], distances[:, :kept])

    def calibrate(self, bank: Comparison) -> None:
        self.stage_means_ = bank.distances.mean(0).clamp_min(torch.finfo(torch.float32).tiny)
        self.bank_scores_ = self._base(bank)

    def grade(self, comparison: Comparison) -> Tensor:
        if self.bank_scores_ is None:  # fitted, but not on the way of fit_score
            self.calibrate(compare_bank(self))
        assert self.bank_scores_ is not None
        around = self.bank_scores_[comparison.neighbours].mean(1)
        return self._base(comparison) - self.local_weight * around

    def restore(self, state: Mapping[str, Tensor]) -> Self:
        super().restore(state)
        self._index_bank()
        return self

    def _check(self, images: int, channels: int) -> None:
        if not 0 < self.ratio <= 1:
            raise SettingError(f"ratio {self.ratio} of the patches: choose a ratio in (0, 1]")
        if images < 2:
            raise SettingError("one image has nothing to be compared with: give at least 2 images")
        if self.k is not None and not 1 <= self.k < images:
            raise SettingError(f"k={self.k} of {images - 1} other images: choose 1 to {images - 1}")
        if self.stages is not None and sum(self.stages) != channels:
            raise SettingError(f"stages {list(self.stages)} do not add up to {channels} channels")

    def _order(self) -> int:
        """Which of the other images, from the nearest, a patch's score is the distance to."""
        return max(2, round(self.image_count_ / 100)) if self.k is None else self.k

    def _splits(self) -> list[int]:
        return [len(self.mean_)] if self.stages is None else list(self.stages)

    def _fit_normalisation(self, flat: list[Tensor]) -> None:
        """Means [c] and, for each stage, 1 / root mean squared norm about them, in float64."""
        count = sum(len(rows) for rows in flat)
        total = torch.stack([rows.double().sum(0) for rows in flat]).sum(0)
        mean = total / count
        squares = torch.stack([(rows.double() - mean).square().sum(0) for rows in flat]).sum(0)
        self.mean_ = mean.float()
        norms = [(part.sum() / count).sqrt() for part in torch.split(squares, self._splits())]
        self.scales_ = torch.stack([1 / n if n > 0 else torch.ones_like(n) for n in norms]).float()

    def _normalise(self, rows: Tensor) -> Iterator[Tensor]:
        """Rows [p, c] -> float32 [p, c_s] for each stage, centred and scaled, one at a time."""
        splits = self._splits()
        stages = zip(torch.split(rows, splits, 1), torch.split(self.mean_, splits), strict=True)
        for (stage, mean), scale in zip(stages, self.scales_, strict=True):
            yield (to_float(stage) - mean).float().mul_(scale)

    def _sample(self, count: int, key: int) -> Tensor:
        """Patches of an image for the first pass, ascending; the same for the same image."""
        rng = np.random.default_rng([self.seed, key])
        size = max(1, round(count * self.ratio))
        return torch.from_numpy(np.sort(rng.permutation(count)[:size]))

    def _index_bank(self) -> None:
        sizes = torch.bincount(self.bank_image_, minlength=self.image_count_)
        offsets = [0, *sizes.cumsum(0).tolist()]
        self._banks = [
            BlockBank(stage, offsets, self.sample_) for stage in self._normalise(self.bank_)
        ]

    def _base(self, comparison: Comparison) -> Tensor:
        assert self.stage_means_ is not None
        return (comparison.distances / self.stage_means_).mean(1)
