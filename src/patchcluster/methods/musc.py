"""MuSc (Li, Huang, Xue and Zhou, ICLR 2024): mutual scoring of unlabelled images."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import SettingError
from ..network.patches import pool_neighbourhood, spread_cells
from ..search.neighbors import Blocks
from . import FACTS
from .base import NEIGHBOURS_KEPT, Comparison, Given
from .grids import Grids
from .stages import StageMethod

_VALUE_BYTES = 4  # of a normalised bank, as float32
_COUNTED_BYTES = 8  # a value of a patch, that a prediction allows for normalised banks
_SEARCH_BYTES = 48 << 20  # of the distances to all images, a batch of queries at a time


class MuSc(StageMethod):
    """Score a patch by the mean distance to the images that have the most similar patches.

    For each stage and each r of `neighbourhoods` (the names of the steps are the authors'):

    1. LNAMD: the mean of an image over all cells and channels of the stage is subtracted; a cell
       becomes the mean over r x r cells around it, scaled to length 1.
    2. MSM: with d_j the distance of a patch to the nearest patch of image j, for all images but its
       own, the score is the mean of the lowest `share` of all d_j, at least of one.

    The score of a patch is the mean over stages and neighbourhoods. A coarser stage is searched on
    its own grid, and its scores are brought bilinearly to the patches'. The neighbours that explain
    a patch are those of the last stage on the patches' grid and the middle neighbourhood.

    The image score `rescored` is RsCIN: the highest patch score of each image, scaled so that those
    of the set lie from 0 to 1, becomes for each k of `similar` the mean over the image itself and
    the k - 1 images most similar to it, weighted by their similarity: the cosine of the images'
    descriptors, 1 for the image itself. The mean over all k is the image score. New images are
    averaged with images of the set.

    Differences from the authors' code (github.com/xrli-U/MuSc): the stages are those of any
    network, not four layers of a CLIP ViT-L/14 at 518 pixels; an image's descriptor is the mean of
    its deepest stage, not the class token; similarities below 0 count as 0; maps are smoothed, and
    `max` is the maximum of the smoothed map. Division by an image's deviation and zeros beyond the
    edge of its grid are left out, since scaling to length 1 undoes both.

    Parameters: `share`; `neighbourhoods`, odd; `similar` (the authors take 1, 8, 9 for VisA);
    `stages`, the channels of each stage in the last axis of the patches, and `strides`, their
    strides in pixels; None: one stage.
    """

    name = "musc"
    facts = FACTS[name]
    layout = "stages"
    strides = (8, 16)
    learned = ("shapes", "peaks")

    def __init__(
        self,
        share: float = 0.3,
        neighbourhoods: Sequence[int] = (1, 3, 5),
        similar: Sequence[int] = (1, 2, 3),
        stages: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
    ) -> None:
        self.share = share
        self.neighbourhoods = neighbourhoods
        self.similar = similar
        self.stages = stages
        self.stage_strides = strides

    def _fit(self, grids: Grids, given: Given) -> None:  # noqa: ARG002 (nothing is random)
        self._check(grids)
        self._hold(grids)
        self.peaks_: Tensor | None = None
        self._derive()

    def compare(
        self,
        grids: Sequence[Tensor],
        own: Sequence[int] | None = None,
        blocks: Sequence[Tensor] | None = None,
    ) -> Comparison:
        del blocks  # grids are whole
        shapes = [grid.shape[:2] for grid in grids]
        parts: list[Tensor] = []
        for bank in self._banks:
            rows = [self._normalise(grid, bank.stage, bank.size) for grid in grids]
            scores, neighbours, distances = self._search(bank, rows, own)
            parts.append(spread_cells(scores, shapes, self._layout.ratios[bank.stage]))
            if bank is self._banks[self._shown]:
                shown = neighbours, distances
        return Comparison(torch.stack(parts).mean(0)[:, None], *shown)

    def calibrate(self, bank: Comparison) -> None:
        parts = torch.split(self.to_scores(bank), self._counts(1))
        self.peaks_ = torch.stack([part.max() for part in parts])

    def score_images(
        self,
        grids: Sequence[Tensor],
        scores: Sequence[Tensor],
        own: Sequence[int] | None = None,
    ) -> Tensor:
        if self.peaks_ is None:  # fitted, but not on the way of fit_score
            self.calibrate(self._compare_bank())
        assert self.peaks_ is not None
        peaks = self.peaks_.to(self._descriptors.device)
        spread = (peaks.max() - peaks.min()).clamp_min(torch.finfo(peaks.dtype).tiny)
        rescored = []
        for i, (grid, score) in enumerate(zip(grids, scores, strict=True)):
            similarity = self._descriptors @ self._descriptor(grid.to(peaks.device))
            if own is not None:
                similarity[own[i]] = -torch.inf
            others = self.image_count_ - int(own is not None)
            near = similarity.topk(min(max(self.similar) - 1, others))
            weights = torch.cat([peaks.new_ones(1), near.values.clamp_min(0)])
            values = torch.cat([score.max().to(peaks)[None], peaks[near.indices]])
            shares = (weights * (values - peaks.min()) / spread).cumsum(0) / weights.cumsum(0)
            rescored.append(shares[[min(k, len(shares)) - 1 for k in self.similar]].mean())
        return torch.stack(rescored)

    def extra_memory(self, images: int, patches: int, channels: int) -> int:
        layout = self._layout
        normalised = sum(
            width * _VALUE_BYTES * patches // ratio**2
            for width, ratio in zip(layout.widths(channels), layout.ratios, strict=True)
        ) * len(self.neighbourhoods)
        counted = channels * patches * _COUNTED_BYTES
        return images * max(0, normalised - counted) + _SEARCH_BYTES

    def _check(self, grids: Grids) -> None:
        if not 0 < self.share <= 1:
            raise SettingError(f"share {self.share} of the images: choose a share in (0, 1]")
        if not self.neighbourhoods or any(r < 1 or r % 2 == 0 for r in self.neighbourhoods):
            raise SettingError(
                f"neighbourhoods {tuple(self.neighbourhoods)}: choose odd sizes of at least 1"
            )
        if not self.similar or min(self.similar) < 1:
            raise SettingError(
                f"similar {tuple(self.similar)}: choose numbers of images of at least 1, the image "
                "itself counted"
            )
        self._layout.check(grids)

    @property
    def _shown(self) -> int:
        """Return the bank whose neighbours explain a patch."""
        return self._layout.shown * len(self.neighbourhoods) + len(self.neighbourhoods) // 2

    def _normalise(self, grid: Tensor, stage: int, size: int) -> Tensor:
        """Compute LNAMD of one stage of an image's patches [h, w, c]: float32 [cells, c_s]."""
        values = self._layout.take(grid, stage)
        # In float64, so that nothing is left of an image without contrast.
        apart = values - values.mean(dtype=torch.float64)
        pooled = pool_neighbourhood(apart.permute(2, 0, 1), size)
        return F.normalize(pooled.flatten(1).T, dim=1)

    def _descriptor(self, grid: Tensor) -> Tensor:
        """Describe an image [h, w, c] by the mean of its deepest stage, of length 1."""
        return F.normalize(self._layout.take(grid, -1).float().mean((0, 1)), dim=0)

    def _derive(self) -> None:
        grids = self._bank_grids()
        self._descriptors = torch.stack([self._descriptor(grid) for grid in grids])
        self._banks = []
        for stage, ratio in enumerate(self._layout.ratios):
            offsets = np.cumsum([0, *self._counts(ratio)]).tolist()
            for size in self.neighbourhoods:
                rows = torch.cat([self._normalise(grid, stage, size) for grid in grids])
                centre = rows.mean(0)
                self._banks.append(_Bank(stage, size, centre, Blocks(rows.sub_(centre), offsets)))

    def _search(
        self, bank: "_Bank", rows: Sequence[Tensor], own: Sequence[int] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute MSM of cells [cells_i, c_s]: scores [p], neighbours and distances [p, j].

        Parameters and the last two as in `compare`.
        """
        others = self.image_count_ - int(own is not None)
        lowest, kept = max(1, int(self.share * others)), min(NEIGHBOURS_KEPT, others)
        counts = torch.tensor([len(r) for r in rows])
        owners = torch.empty(len(rows), 0) if own is None else torch.tensor(own)[:, None]
        owners = owners.long().repeat_interleave(counts, 0).to(bank.centre.device)
        tile = bank.blocks.tile
        parts = []
        for queries, owner in zip(
            torch.split(torch.cat(list(rows)) - bank.centre, tile),
            torch.split(owners, tile),
            strict=True,
        ):
            distances, found = bank.blocks.nearest_of_each(queries)
            distances.scatter_(1, owner, torch.inf)
            near = distances.topk(max(lowest, kept), largest=False)
            score = near.values[:, :lowest].mean(1)
            neighbours = found.gather(1, near.indices[:, :kept])
            parts.append((score, neighbours, near.values[:, :kept]))
        scores, neighbours, distances = map(torch.cat, zip(*parts, strict=True))
        return scores, neighbours, distances


@dataclass(frozen=True)
class _Bank:
    """The bank's cells by one stage and one neighbourhood."""

    stage: int
    size: int  # of the neighbourhood
    centre: Tensor  # [c_s], which was subtracted
    blocks: Blocks
