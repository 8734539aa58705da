"""The product's default: blind comparison image by image, stage by stage."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from ..coreset import cover_in_order
from ..errors import SettingError
from ..lazy import Grids
from ..neighbors import GAP_SHARE, BlockBank, to_float
from ..patches import dealt_channels, gather_up, middle_ratios, spread_cells
from .base import (
    NEIGHBOURS_KEPT,
    Comparison,
    Method,
    Patches,
    Products,
    Progress,
    as_grids,
    digest,
    flatten,
)
from .tracing import SPARE, Alike, BankChange, Found, Known, Trace
from .whole_bank import WholeBank

_GLANCE = 128  # patches of an image, at most, by which its near-duplicates are found
_DUPLICATE_GAP = 1.15
_DUPLICATES = (2, 16)  # near-duplicates of an image, at most, in a small and in a large set,
_DUPLICATE_SHARE = 16  # between them 1 in so many images
_LOWERED = 1.5  # a score, at most, that a patch's neighbours lower it by
_LATTICE = (0.7548776662466927, 0.5698402909980532)  # of least discrepancy in two dimensions
_REFERENCES = 8  # images whose mean the patches are centred on
_ENERGY_STEPS = 2  # of the saturation's energy, to a power of two
# A bank that is not asked for has at most so many patches (256 images at the default size), unless
# that is fewer images than the least: so the cost of an image does not grow with the set.
_BANK_PATCHES = 200_704
_BANK_IMAGES = 256


@dataclass(frozen=True)
class _Summaries:
    """What is known of n images from their patches, as the network gave them.

    means float32 [n, c]: over the image, one stage after the other, each on its own grid; squares
    float64 [n, stages]: mean of the squared length.
    """

    means: Tensor
    squares: Tensor


class PatchClusterPlus(WholeBank):
    """Score a patch by the k-th smallest of its distances to the other images.

    It goes beyond the paper in seven ways; docs/quality.md has the figures:

    1. Stages are compared apart, each on a grid of its own if it is coarser than the patches'. A
       stage's vector x, centred on a mean, becomes x / sqrt(|x|^2 + s^2 m), m the mean of |x|^2
       over the set and s `saturation`: a place that is strongly textured or lit is not anomalous by
       its contrast alone. The mean is that of the 8 images whose keys are lowest, and s^2 m is
       rounded to a power of the square root of 2: so the distance of two images hardly ever depends
       on the others, and a set that changes little need not be compared anew.
    2. An image is never compared with itself, nor with near-duplicates: images whose distance, by
       the median of an image's patches, is below `duplicate` times that of the median image and
       lies before a gap, where the next image is 1.15 times as far. A second photograph of the same
       part would hide its defect. They are 1 in 16 of the set at most, between 2 and 16: more that
       are alike are a kind of their own in a mixed set. (But for k others they are needed.)
    3. Distance to an image is the distance to its nearest patch; the score of a patch is the k-th
       smallest over the other images. A defect that k - 1 of them share does not hide itself.
    4. Nor does one that more of them share, if it is far from everything else: of the images in
       order of distance those before the last gap, where the next is `gap` times as far, are left
       out, up to an eighth of all. (Not where the image as a whole is of a kind of its own.)
    5. Only k + `margin` images are searched in full for a patch: those that are nearest by a
       `ratio` of each image's patches, spread evenly over its grid.
    6. A stage's scores are divided by their mean over the images that all are compared with; the
       stages are averaged with `stage_weights`.
    7. Places that are rare but ordinary are lowered: from the score d of a patch `local_weight`
       times the mean of min(d, 1.5) over its 3 nearest patches (by the stage of the patches' grid,
       of 3 images that were not left out) is taken. The limit keeps a defect that is nearest to
       other defects from being lowered by as much as they stand out.

    What a person says of images (`heed`): no image is compared with one marked anomalous; one
    marked normal is no near-duplicate that could hide a defect.

    In a large set a patch is compared with some images only (`bank_size`), so that the cost of an
    image does not grow with the set: those that cover it (`_choose_bank`). They depend on what the
    images show and on their keys, not on their order. All counts of images above are then counts
    of these. `bank_` holds their patches alone, and `fit` reads those of the others without keeping
    them.

    Parameters: `k`; None: 1 in 100 images, at least 3. `ratio`, the share of each image's patches
    in the first pass; `margin`, how many more images than k are searched in full; `bank_images`,
    how many others are compared with, None: as many as have 200,704 patches, at least 256;
    `stages`, the channels of each stage (None: the patches are one stage), and
    `strides`, their strides in pixels: those coarser than the second are taken to be dealt out over
    the patches' grid, as `patch_grid` does.
    """

    name = "patchcluster-plus"
    layout = "middle"
    strides = (8, 16, 32)
    streams = True
    learned = (
        "shapes", "mean", "energies", "bank_scores", "stage_means", "labels", "chosen",
        "image_means", "image_squares",
    )  # fmt: skip

    def __init__(
        self,
        k: int | None = None,
        ratio: float = 0.3,
        margin: int = 16,
        bank_images: int | None = None,
        local_weight: float = 0.5,
        saturation: float = 2.0,
        duplicate: float = 0.8,
        gap: float = 1.35,
        stages: Sequence[int] | None = None,
        stage_weights: Sequence[float] = (1.0, 2.0, 0.5),
        strides: Sequence[int] | None = None,
    ) -> None:
        self.k = k
        self.ratio = ratio
        self.margin = margin
        self.bank_images = bank_images
        self.local_weight = local_weight
        self.saturation = saturation
        self.duplicate = duplicate
        self.gap = gap
        self.stages = stages
        self.stage_strides = strides
        self.stage_weights = stage_weights
        self._heard: Sequence[str | None] = ()
        self._recalled: dict[int, tuple[Tensor, Tensor]] = {}
        self._indexed: list[BlockBank] | None = None

    def fit(
        self,
        patches: Patches,
        keys: Sequence[int] | None = None,
        progress: Progress | None = None,  # noqa: ARG002 (takes no time)
    ) -> Self:
        grids = as_grids(patches)
        self._check(grids)
        self.image_count_ = len(grids)
        keys = [digest(grid) for grid in grids] if keys is None else keys
        order = sorted(range(len(grids)), key=keys.__getitem__)
        images = self._summarise(grids)
        self._recalled = {}  # it was of these images
        self._fit_normalisation(grids, images, order)
        self.labels_ = self._read_labels()
        self.chosen_ = self._choose_bank(grids, images, order)
        self.image_means_ = images.means if self.bounded else None
        self.image_squares_ = images.squares if self.bounded else None
        self._hold(grids, None if self.chosen_ is None else self.chosen_.tolist())
        self.bank_scores_: Tensor | None = None
        self.stage_means_: Tensor | None = None
        self._indexed = None
        return self

    def compare(
        self,
        grids: Sequence[Tensor],
        own: Sequence[int] | None = None,
        blocks: Sequence[Tensor] | None = None,
    ) -> Comparison:
        rows, shapes = self._rows_of(grids, own), [grid.shape[:2] for grid in grids]
        typical = self._typical_squares(rows[self._shown], shapes)
        alike = self._find_alike(typical, own)
        stages = [
            self._search_rows(stage, torch.cat(parts), alike.of_rows(parts), own)
            for stage, parts in enumerate(rows)
        ]
        comparison = self._conclude(stages, shapes, blocks, alike)
        if own is None or not self.bounded:
            return comparison
        return replace(comparison, trace=_trace(stages, alike, typical))

    def compare_again(
        self,
        grids: Sequence[Tensor],
        own: Sequence[int],
        blocks: Sequence[Tensor] | None,
        traces: Sequence[Trace | None],
        change: BankChange,
    ) -> Comparison:
        """`compare`, of which what was found with an earlier bank is left as far as it holds.

        traces: of each image, as `compare` gave it then, of one at least; change: see
        `change_from`.
        """
        rows, shapes = self._rows_of(grids, own), [grid.shape[:2] for grid in grids]
        known = next(trace for trace in traces if trace is not None)
        counts = [self.trace_rows(height * width) for height, width in shapes]
        pairs = zip(traces, counts, strict=True)
        trace = Trace.join([known.blank(count) if one is None else one for one, count in pairs])
        there = torch.tensor([one is not None for one in traces])
        shown = rows[self._shown]
        typical = change.bring(trace.typical, self._bank_size())
        typical[:, change.added] = self._typical_squares(shown, shapes, change.added)
        for image in (~there).nonzero()[:, 0].tolist():
            typical[image] = self._typical_squares([shown[image]], [shapes[image]])
        alike = self._find_alike(typical, own)
        before = change.bring(trace.left_out, self._bank_size())
        before[:, change.added] = alike.left_out[:, change.added]
        same = there & (before == alike.left_out).all(1) & (trace.of_a_kind == alike.of_a_kind)
        stages = []
        for stage, parts in enumerate(rows):
            usable = same.repeat_interleave(torch.tensor([len(part) for part in parts]))
            stages.append(
                self._search_again(
                    stage, torch.cat(parts), alike.of_rows(parts), own, trace.known[stage],
                    usable, change,
                )
            )  # fmt: skip
        comparison = self._conclude(stages, shapes, blocks, alike)
        return replace(comparison, trace=_trace(stages, alike, typical))

    def _search_again(
        self,
        stage: int,
        rows: Tensor,
        alike: Alike,
        own: Sequence[int],
        known: Known,
        usable: Tensor,
        change: BankChange,
    ) -> Found:
        """`_search_rows`, with what is known of the rows from an earlier bank; usable bool [q]."""
        bank, (k, wanted) = self._banks[stage], self._wanted(stage, own)
        starts = torch.tensor(bank.offsets)
        placed, good = change.place(stage, known, rows, alike, wanted, self.gap)
        good &= usable
        # All that is left is to search some blocks.
        blocks, distances = placed.searched, placed.distances
        which, at = (distances.isnan() & good[:, None]).nonzero(as_tuple=True)
        if len(which):
            asked = blocks[which, at]
            distances[which, at], nearest = bank.nearest_in_blocks(rows, which, asked)
            placed.rows[which, at] = (nearest - starts[asked]).to(placed.rows.dtype)
        ranked = bank.rank(
            distances, starts[blocks] + placed.rows, wanted, self.gap, alike.of_a_kind
        )
        found = Found.of_nearest(*ranked, placed, k, self._explained(stage))
        stale = (~good).nonzero()[:, 0]
        if len(stale):
            found.put(stale, self._search_rows(stage, rows[stale], alike.select(stale), own))
        return found

    def change_from(self, before: "PatchClusterPlus", columns: Tensor) -> BankChange | None:
        """How this bank came from an earlier one; None: nothing that was found with it holds.

        columns int64 [b]: where each image of the earlier bank is among those of this, -1: nowhere.
        """
        sizes = {self._bank_size(), before._bank_size()}
        if not (
            self.bounded
            and before.bounded
            and len(sizes) == 1
            and self.labels_ is None
            and before.labels_ is None
            and torch.equal(self.mean_.cpu(), before.mean_.cpu())
            and torch.equal(self.energies_.cpu(), before.energies_.cpu())
        ):
            return None
        added = torch.ones(self._bank_size(), dtype=torch.bool)
        added[columns[columns >= 0]] = False
        # The banks are built by now, as images may be compared again in several threads.
        return BankChange(columns, added.nonzero()[:, 0], self._banks)

    def trace_rows(self, patches: int) -> list[int]:
        """Rows of each stage that a trace has of an image with so many patches."""
        return [patches // ratio**2 for ratio in self._ratios()]

    def _rows_of(self, grids: Sequence[Tensor], own: Sequence[int] | None) -> list[list[Tensor]]:
        """Rows of each stage of images [h_i, w_i, c], normalised."""
        columns = [-1] * len(grids) if own is None else self._columns(own)
        pairs = list(zip(grids, columns, strict=True))
        return [
            [self._stage_rows(g, stage) if c < 0 else bank.block(c) for g, c in pairs]
            for stage, bank in enumerate(self._banks)
        ]

    def _conclude(
        self,
        stages: Sequence[Found],
        shapes: Sequence[Sequence[int]],
        blocks: Sequence[Tensor] | None,
        alike: Alike,
    ) -> Comparison:
        """What was found for the rows of all stages, of images (h_i, w_i) -> the comparison."""
        base = [
            spread_cells(found.kth, shapes, ratio, blocks)
            for found, ratio in zip(stages, self._ratios(), strict=True)
        ]
        shown = stages[self._shown]
        return Comparison(
            torch.stack(base, 1), shown.neighbours, shown.distances, alike.near_duplicates
        )

    def calibrate(self, bank: Comparison) -> None:
        self.stage_means_ = bank.distances.mean(0).clamp_min(torch.finfo(torch.float32).tiny)
        self.bank_scores_ = self._base(bank)

    def grade(self, comparison: Comparison) -> Tensor:
        if self.bank_scores_ is None:  # fitted, but not on the way of fit_score
            self.calibrate(self._compare_bank())
        assert self.bank_scores_ is not None
        around = self.bank_scores_[comparison.neighbours].clamp_max(_LOWERED).mean(1)
        return self._base(comparison) - self.local_weight * around

    def recall(self, before: Method, images: Sequence[int]) -> None:
        assert isinstance(before, PatchClusterPlus)
        means, squares = before.image_means_, before.image_squares_
        if means is not None and squares is not None:
            places = enumerate(images)
            self._recalled = {new: (means[old], squares[old]) for new, old in places if old >= 0}

    def heed(self, labels: Sequence[str | None]) -> None:
        self._heard = labels

    def restore(self, state: Mapping[str, Tensor]) -> Self:
        super().restore(state)
        if len(self.shapes_) != self._bank_size():
            raise ValueError(f"{len(self.shapes_)} shapes of {self._bank_size()} images")
        self._indexed = None
        return self

    @property
    def bounded(self) -> bool:
        return self.chosen_ is not None

    @property
    def members(self) -> Sequence[int]:
        return super().members if self.chosen_ is None else self.chosen_.tolist()

    def basis(self, contents: Sequence[str]) -> list[Any]:
        return [*super().basis(contents), self.mean_.tolist(), self.energies_.tolist()]

    def describe(self, image: int) -> Tensor | None:
        column = self._columns([image])[0]
        return None if column < 0 else self.describe_grid(self._bank_grid(column))

    def describe_grid(self, grid: Tensor) -> Tensor:
        """The stages from the patches' grid on, normalised: coarse ones say most of what it is."""
        height, width = grid.shape[:2]
        stages = []
        for stage in range(self._shown, self._stage_count):
            ratio = self._ratios()[stage]
            rows = self._stage_rows(grid, stage).view(height // ratio, width // ratio, -1)
            stages.append(rows.repeat_interleave(ratio, 0).repeat_interleave(ratio, 1))
        return torch.cat([flatten(stage) for stage in stages], 1)

    def bank_size(self, images: int, patches: float) -> int:
        fitting = max(_BANK_IMAGES, int(_BANK_PATCHES / patches))
        return min(images, fitting if self.bank_images is None else self.bank_images)

    def check_count(self, images: int) -> None:
        if images < 2:
            raise SettingError("one image has nothing to be compared with: give at least 2 images")
        if self.bank_images is not None and self.bank_images < 2:
            raise SettingError(f"a bank of {self.bank_images} images: choose 2 or more")
        others = min(images, self.bank_images or images) - 1
        if self.k is not None and not 1 <= self.k <= others:
            raise SettingError(f"k={self.k} of {others} other images: choose 1 to {others}")

    def count_products(self, images: int, patches: float, channels: int) -> Products:
        bank = self.bank_size(images, patches)
        searched = min(
            bank, (max(3, round(bank / 100)) if self.k is None else self.k) + self.margin
        )
        first = full = 0.0
        for width, ratio in zip(self._full_widths(channels), self._ratios(), strict=True):
            cells = patches / ratio**2
            pairs = images * cells * cells * width
            first += pairs * bank * (self.ratio if ratio == 1 else 1)
            full += pairs * searched
        return Products(first, full, (images + bank) * patches * channels)

    def _check(self, grids: Grids) -> None:
        self.check_count(len(grids))
        channels = grids.shapes[0][-1]
        if not 0 < self.ratio <= 1:
            raise SettingError(f"ratio {self.ratio} of the patches: choose a ratio in (0, 1]")
        if self._stage_count > len(self.stage_weights):
            raise SettingError(
                f"stage_weights {tuple(self.stage_weights)}: give one for each of the "
                f"{self._stage_count} stages"
            )
        if sum(self._widths(channels)) != channels:
            assert self.stages is not None
            raise SettingError(f"stages {list(self.stages)} do not add up to {channels} channels")
        ratio = max(self._ratios())
        if any(side % ratio for shape in grids.shapes for side in shape[:2]):
            raise SettingError(
                f"grids of patches must be multiples of {ratio} here: choose another"
            )

    def _read_labels(self) -> Tensor | None:
        """1 for images marked normal, -1 for anomalous, 0 for others, int8 [n]; None: no labels."""
        if not any(self._heard):
            return None
        if len(self._heard) != self.image_count_:
            raise SettingError(
                f"{len(self._heard)} labels for {self.image_count_} images: give as many"
            )
        codes = {None: 0, "normal": 1, "anomalous": -1}
        labels = torch.tensor([codes[label] for label in self._heard], dtype=torch.int8)
        if int((labels >= 0).sum()) < 2:
            raise SettingError(
                "all images but one at most are marked anomalous: leave some to compare with"
            )
        return labels

    def _choose_bank(self, grids: Grids, images: _Summaries, order: Sequence[int]) -> Tensor | None:
        """Images that cover the set, ascending, int64 [b]; None: all.

        By the means of their patches, those of lower keys first (`cover_in_order`). None of them is
        marked anomalous.
        """
        size = self.bank_size(len(grids), sum(grids.counts) / len(grids))
        if size >= len(grids):
            return None
        usable = torch.tensor(order)
        if self.labels_ is not None:
            usable = usable[self.labels_[usable] >= 0]
        if size < len(usable):
            scales = self.energies_.clamp_min(torch.finfo(torch.float32).tiny).rsqrt()
            widths = torch.tensor(self._full_widths(len(self.mean_)))
            scales = scales.repeat_interleave(widths.to(scales.device))
            means = (images.means - self.mean_).mul_(scales)
            usable = usable[cover_in_order(means[usable], size)]
        return usable.sort().values

    def _columns(self, images: Sequence[int]) -> list[int]:
        """Where images of the set are among those of the bank; -1: they are not."""
        if self.chosen_ is None:
            return list(images)
        place = {image: column for column, image in enumerate(self.chosen_.tolist())}
        return [place.get(image, -1) for image in images]

    def _marked(self, label: int) -> Tensor:
        """Which images of the bank have a label, int64 [j]."""
        if self.labels_ is None:
            return torch.empty(0, dtype=torch.int64)
        labels = self.labels_ if self.chosen_ is None else self.labels_[self.chosen_]
        return (labels == label).nonzero()[:, 0]

    def _bank_size(self) -> int:
        return self.image_count_ if self.chosen_ is None else len(self.chosen_)

    def _others(self, own: Sequence[int] | None) -> int:
        """How many images each is compared with, at least; own as in `compare`."""
        return self._bank_size() - len(self._marked(-1)) - int(own is not None)

    def _order(self) -> int:
        """Which of the other images, from the nearest, a patch's score is the distance to."""
        return max(3, round(self._bank_size() / 100)) if self.k is None else self.k

    def _ratios(self) -> list[int]:
        """How many times coarser than the grid of the patches each stage is; finer ones: 1."""
        if self.stages is None or self.stage_strides is None:
            return [1] * len(self.stages or [1])
        return middle_ratios(self.stage_strides)

    @property
    def _stage_count(self) -> int:
        return len(self._ratios())

    @property
    def _shown(self) -> int:
        """The stage whose neighbours explain a patch: the last on the grid of the patches."""
        return max(stage for stage, ratio in enumerate(self._ratios()) if ratio == 1)

    def _widths(self, channels: int) -> list[int]:
        """Channels that each stage has in the patches."""
        if self.stages is None:
            return [channels]
        pairs = zip(self.stages, self._ratios(), strict=True)
        return [dealt_channels(stage, ratio) for stage, ratio in pairs]

    def _take(self, grid: Tensor, stage: int) -> Tensor:
        """One stage of an image's patches [h, w, c] -> float [cells, c_s], on its own grid."""
        widths = self._widths(grid.shape[-1])
        values = to_float(torch.split(grid, widths, -1)[stage])
        ratio = self._ratios()[stage]
        return flatten(values if ratio == 1 else gather_up(values, ratio))

    def _summarise(self, grids: Grids) -> _Summaries:
        """What is kept of the images of a set, each of which is read once, or known."""
        # Into one tensor: small ones that stay, made between large ones that go, would lie where
        # the next large ones could, and memory would grow by the patches of all images.
        every: _Summaries | None = None
        for image in range(len(grids)):
            known = self._recalled.get(image) or self._summary(grids[image])
            if every is None:
                every = _Summaries(*(one.new_empty(len(grids), len(one)) for one in known))
            every.means[image], every.squares[image] = known
        assert every is not None
        return every

    def _summary(self, grid: Tensor) -> tuple[Tensor, Tensor]:
        """The same of one image [h, w, c]: means float32 [c], squares float64 [stages]."""
        stages = [self._take(grid, stage).double() for stage in range(self._stage_count)]
        mean = torch.cat([rows.mean(0) for rows in stages]).float()
        return mean, torch.stack([rows.square().sum(1).mean() for rows in stages])

    def _fit_normalisation(self, grids: Grids, images: _Summaries, order: Sequence[int]) -> None:
        """Mean [c] of each stage, one after the other, and s^2 m of each."""
        counts = torch.tensor(grids.counts, dtype=torch.float64, device=images.means.device)
        reference = list(order[:_REFERENCES])
        mean = counts[reference] @ images.means[reference].double() / counts[reference].sum()
        widths = self._full_widths(len(mean))
        squares = images.squares.clone()
        for stage, (part, centre) in enumerate(
            zip(torch.split(images.means, widths, 1), torch.split(mean, widths), strict=True)
        ):
            squares[:, stage] += centre.square().sum() - 2 * (part @ centre.float())
        energies = self.saturation**2 * (counts @ squares.clamp_min(0)) / counts.sum()
        steps = (_ENERGY_STEPS * energies.log2()).round()
        self.mean_ = mean.float()
        self.energies_ = (2 ** (steps / _ENERGY_STEPS)).float()

    def _stage_rows(self, grid: Tensor, stage: int) -> Tensor:
        """One stage of an image's patches [h, w, c], normalised -> float32 [cells, c_s]."""
        rows = self._take(grid, stage)
        centred = (
            rows - torch.split(self.mean_, self._full_widths(len(self.mean_)))[stage]
        ).float()
        energy = centred.square().sum(1, keepdim=True) + self.energies_[stage]
        return centred.mul_(energy.clamp_min(torch.finfo(torch.float32).tiny).rsqrt())

    def _full_widths(self, channels: int) -> list[int]:
        """Channels of each stage on its own grid, of patches of so many channels."""
        return [w * r**2 for w, r in zip(self._widths(channels), self._ratios(), strict=True)]

    def _lattice(self, height: int, width: int) -> Tensor:
        """About `ratio` of the cells of a grid, row-major and ascending, spread evenly.

        A rank-1 lattice, which does so for any share.
        """
        y, x = torch.arange(height)[:, None], torch.arange(width)
        phase = (_LATTICE[0] * y.double() + _LATTICE[1] * x).remainder(1)
        return (phase < self.ratio).flatten().nonzero()[:, 0]

    def _sample(self, shapes: Sequence[Sequence[int]]) -> Tensor:
        """Rows of images of so many patches (h, w) for the first pass, ascending."""
        starts = np.cumsum([0, *(height * width for height, width in shapes)])
        return torch.cat(
            [s + self._lattice(*shape) for s, shape in zip(starts, shapes, strict=False)]
        )

    @property
    def _banks(self) -> list[BlockBank]:
        """The bank of each stage, built when it is first searched."""
        if self._indexed is None:
            grids = self._bank_grids()
            sample = self._sample([grid.shape[:2] for grid in grids]).to(self.bank_.device)
            self._indexed = [
                self._build_bank(grids, sample, stage) for stage in range(self._stage_count)
            ]
        return self._indexed

    def _build_bank(self, grids: Sequence[Tensor], sample: Tensor, stage: int) -> BlockBank:
        ratio = self._ratios()[stage]
        counts = [grid.shape[0] * grid.shape[1] // ratio**2 for grid in grids]
        width = self._full_widths(grids[0].shape[-1])[stage]
        rows = torch.empty(sum(counts), width, device=sample.device)
        for grid, part in zip(grids, torch.split(rows, counts), strict=True):
            part.copy_(self._stage_rows(grid, stage))
        offsets = np.cumsum([0, *counts]).tolist()
        if ratio > 1:  # a coarse stage is small: its first pass takes all of it
            sample = torch.arange(len(rows), device=rows.device)
        return BlockBank(rows, offsets, sample)

    def _wanted(self, stage: int, own: Sequence[int] | None) -> tuple[int, int]:
        """The order k of a stage's nearest images that counts, and how many are asked for."""
        others = self._others(own)
        k = min(self._order(), others)
        return k, max(k, min(NEIGHBOURS_KEPT, others)) if stage == self._shown else k

    def _explained(self, stage: int) -> int:
        """How many of a row's nearest are to explain it."""
        return NEIGHBOURS_KEPT if stage == self._shown else 0

    def _search_rows(
        self, stage: int, rows: Tensor, alike: Alike, own: Sequence[int] | None
    ) -> Found:
        """Search the bank of a stage for rows [q, c]; alike: of each of them."""
        k, wanted = self._wanted(stage, own)
        bank = self._banks[stage]
        starts = torch.tensor(bank.offsets, device=rows.device)
        candidates = k + self.margin
        deciding = max(self._bank_size() // GAP_SHARE + wanted, candidates)
        kept = min(deciding + SPARE, self._bank_size())

        def search(rows: Tensor, left_out: Tensor, gap: float) -> Found:
            distances, nearest, chosen = bank.nearest_blocks(
                rows, wanted, candidates, left_out, gap, kept
            )
            known = Known.of_search(chosen, starts, kept)
            return Found.of_nearest(distances, nearest, known, k, self._explained(stage))

        if not alike.of_a_kind.any():
            return search(rows, alike.left_out, self.gap)
        parts, places = [], []
        # Images of a kind of their own have gaps of their own.
        for which, gap in ((~alike.of_a_kind, self.gap), (alike.of_a_kind, math.inf)):
            at = which.nonzero()[:, 0]
            if len(at):
                there = at.to(rows.device)
                parts.append(search(rows[there], alike.left_out[at], gap))
                places.append(there)
        return Found.join(parts, places)

    def _find_alike(self, typical: Tensor, own: Sequence[int] | None) -> Alike:
        """Which images of the bank are alike as a whole to each image.

        typical [i, b]: see `_typical_squares`. Near-duplicates are left in if too few others would
        remain.
        """
        needed, typical = self._wanted(self._shown, own)[1], typical.clone()
        if own is not None:
            columns = torch.tensor(self._columns(own))
            member = columns >= 0
            typical[torch.arange(len(typical))[member], columns[member]] = torch.inf
        typical[:, self._marked(-1)] = torch.inf
        others = self._others(own)
        values = typical.sort(1).values
        middle = values[:, (others - 1) // 2, None]
        # Before a gap, as sets of many views hold images that are merely much alike.
        gaps = (values[:, 1:] > _DUPLICATE_GAP**2 * values[:, :-1]) & (
            values[:, :-1] < self.duplicate**2 * middle
        )
        few, many = _DUPLICATES
        most = min(max(few, others // _DUPLICATE_SHARE), many)
        of_a_kind = gaps[:, most:].any(1)
        gaps[:, most:] = False
        last = torch.where(gaps, values[:, :-1], -1.0).amax(1, keepdim=True)
        duplicates = typical <= last
        pairs = duplicates.nonzero()
        if own is None:
            pairs = pairs[:0]
        else:
            pairs[:, 0] = torch.as_tensor(own, device=pairs.device)[pairs[:, 0]]
            pairs[:, 1] = torch.tensor(self.members, device=pairs.device)[pairs[:, 1]]
        duplicates[:, self._marked(1)] = False
        duplicates &= others - duplicates.sum(1, keepdim=True) >= needed
        return Alike(duplicates | typical.isinf(), pairs, of_a_kind)

    def _typical_squares(
        self,
        rows: Sequence[Tensor],
        shapes: Sequence[Sequence[int]],
        columns: Tensor | None = None,
    ) -> Tensor:
        """Squared distance of each image to images of the bank: the median of some patches, [i, n].

        They are at the places of the first pass, where a second photograph is at no distance.
        rows: of `_shown`, [h_i * w_i, c] each; shapes: (h_i, w_i); columns int64 [n]: of the bank,
        None: all.
        """
        glances = []
        for image, shape in zip(rows, shapes, strict=True):
            places = self._lattice(*shape)
            glances.append(image[places[:: -(-len(places) // _GLANCE)].to(image.device)])
        squares = self._banks[self._shown].block_squares(torch.cat(glances), columns)
        parts = torch.split(squares, [len(glance) for glance in glances], 1)
        return torch.stack([part.median(1).values for part in parts])

    def _base(self, comparison: Comparison) -> Tensor:
        assert self.stage_means_ is not None
        weights = torch.tensor(self.stage_weights[: self._stage_count])
        weights = (weights / weights.sum()).to(comparison.distances.device)
        return (comparison.distances / self.stage_means_) @ weights


def _trace(stages: Sequence[Found], alike: Alike, typical: Tensor) -> Trace:
    """What is kept of the search of all stages."""
    known = [found.known for found in stages]
    return Trace(known, typical, alike.left_out, alike.of_a_kind)
