"""The product's default: blind comparison image by image, stage by stage."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ..errors import SettingError
from ..network.patches import spread_cells
from ..search.coreset import cover_in_order
from ..search.row_index import NEAREST_ROWS
from . import FACTS
from .base import NEIGHBOURS_KEPT, Comparison, Given, Labels, SearchCost
from .grids import COMPARED_PATCHES, Grids
from .ranked_images import DUPLICATES, RANKS, RankedImages, find_near_duplicates
from .stages import NormalisedStages, Queries, StageBank, StageMethod, Summaries

_RETRIES = (4, 16)  # times as many rows, for patches whose nearest lie in too few images:
_FEW = 3  # less than so many times k
_GAP_SHARE, _GAP_IMAGES = 8, 32  # before a gap lies 1 in so many images at most, and so many
_SAME_KIND = 0.12  # closeness above the median image's: the same pose, or kind of object
_LOWERED = 1.5  # a score, at most, that a patch's neighbours lower it by
# A bank that is not asked for has at most so many patches (256 images at the default size), unless
# that is fewer images than the least: so the cost of an image does not grow with the set.
_BANK_PATCHES, _BANK_IMAGES = 200_704, 256


def _encode_labels(labels: Labels | None) -> Tensor | None:
    """1 for images marked normal, -1 for anomalous, 0 for others, int8 [n]; None: no labels."""
    if labels is None or not any(labels):
        return None
    codes = {None: 0, "normal": 1, "anomalous": -1}
    encoded = torch.tensor([codes[label] for label in labels], dtype=torch.int8)
    if bool((encoded < 0).any()) and int((encoded >= 0).sum()) < 2:
        raise SettingError(
            "all images but one at most are marked anomalous: leave some to compare with"
        )
    return encoded


class PatchClusterPlus(StageMethod):
    """Score a patch by its distances to the nearest other images.

    It goes beyond the paper in seven ways; docs/quality.md has the figures:

    1. Stages are compared apart, each on a grid of its own if it is coarser than the patches'. A
       stage's vector x, centred on the mean of the set, becomes x / sqrt(|x|^2 + s^2 m), m the mean
       of |x|^2 over the set and s `saturation`: a place that is strongly textured or lit is not
       anomalous by its contrast alone.
    2. The distance to an image is that to its nearest patch. It is known of the images in which the
       96 nearest rows of the bank lie (48 of stages finer than the patches); the others are taken
       to be as far as the last of these rows. Where they lie in fewer than 3 k images, more rows
       are searched.
    3. The score of a patch is the mean of the distances d(i) to the i-th nearest image with weights
       (1 - 1/k)^(i-1): a few images that share a defect do not hide it.
    4. An image is not compared with itself, nor with near-duplicates: images that are more than
       `duplicate` times as close to it as a whole as the next image. A second photograph of the
       same part would hide its defect. They are 1 in 16 of the set at most, between 2 and 16: more
       that are similar are a kind of their own in a mixed set. (But for k others they are needed.)
    5. A defect that many images share does not hide itself if it is far from everything else: of
       the images in order of distance those before the last gap, where the next is `gap` times as
       far, are left out: 2 at least, up to an eighth of all and 32, or k - 1. (Unless they are
       also close elsewhere, at the patches without a gap: then they show the same pose or kind of
       object.)
    6. A stage's scores are divided by their mean over the bank's images; the stages are averaged
       with `stage_weights`.
    7. Places that are rare but ordinary are lowered: from the score d of a patch `local_weight`
       times the mean of min(d, 1.5) over its 3 nearest patches (by the stage of the patches' grid,
       of 3 images that were not left out) is taken. The limit keeps a defect that is nearest to
       other defects from being lowered by as much as they stand out.

    How close images are as wholes: see `RankedImages.closeness`, by the stage of the patches' grid.

    What a person says of images (`labels` of `fit`): no image is compared with one marked
    anomalous; one marked normal is no near-duplicate that could hide a defect.

    In a large set a patch is compared with some images only (`bank_size`), so that memory and the
    cost of an image do not grow with the set: those that cover it (`_choose_bank`). They depend on
    what the images show and on their keys, not on their order. All counts of images above are then
    counts of these. `bank_` holds their patches alone, and `fit` reads those of the others without
    keeping them.

    Parameters: `k`; None: 1 in 100 images of the bank, at least 3. `bank_images`, how many images
    the bank has at most, None: as many as have 200,704 patches, at least 256. `stages` and
    `strides`: channels and strides as of `Stages`.
    """

    name = "patchcluster-plus"
    facts = FACTS[name]
    layout = "middle"
    strides = (8, 16, 32)
    learns_from_labels = True
    streams = True
    comparison_cost = 0.1
    learned = ("shapes", "mean", "energies", "bank_scores", "stage_means", "labels", "chosen")

    def __init__(
        self,
        k: int | None = None,
        bank_images: int | None = None,
        local_weight: float = 0.5,
        saturation: float = 2.0,
        duplicate: float = 2.5,
        gap: float = 1.25,
        stages: Sequence[int] | None = None,
        stage_weights: Sequence[float] = (1.0, 2.0, 0.5),
        strides: Sequence[int] | None = None,
    ) -> None:
        self.k = k
        self.bank_images = bank_images
        self.local_weight = local_weight
        self.saturation = saturation
        self.duplicate = duplicate
        self.gap = gap
        self.stages, self.stage_strides = stages, strides
        self.stage_weights = stage_weights
        self._indexed: list[StageBank] | None = None

    def _fit(self, grids: Grids, given: Given) -> None:
        self._check(grids)
        self.image_count_ = len(grids)
        keys = given.keys_of(grids)
        images = self._layout.summarise(grids)
        stages = NormalisedStages.of_set(self._layout, grids.counts, images, self.saturation)
        self.mean_, self.energies_ = stages.mean, stages.energies
        self.labels_ = _encode_labels(given.labels)
        order = sorted(range(len(grids)), key=keys.__getitem__)
        self.chosen_ = self._choose_bank(grids, images, order)
        self._hold(grids, None if self.chosen_ is None else self.chosen_.tolist())
        self.bank_scores_: Tensor | None = None
        self.stage_means_: Tensor | None = None
        self._indexed = None

    def compare(
        self,
        grids: Sequence[Tensor],
        own: Sequence[int] | None = None,
        blocks: Sequence[Tensor] | None = None,
    ) -> Comparison:
        shapes = [grid.shape[:2] for grid in grids]
        columns = torch.full((len(grids),), -1) if own is None else self._columns(own)
        columns = columns.to(self.bank_.device)
        stages = self._stages
        asked = [stages.queries(stage, grids, columns) for stage in range(self._layout.count)]
        found = [self._search(stage, queries, 1) for stage, queries in enumerate(asked)]
        shown = self._layout.shown
        left_out, pairs = self._leave_out(found[shown], asked[shown], columns)
        excess = self._find_excess(found[shown], asked[shown], left_out)
        base = []
        for stage, queries in enumerate(asked):
            ranked, start = self._rank(stage, queries, found[stage], left_out, excess)
            others = (~left_out).sum(1)[queries.image]
            values = ranked.average_from(start, others, self._order())
            base.append(spread_cells(values, shapes, self._layout.ratios[stage], blocks))
            if stage == shown:
                compared = len(self.shapes_) - len(self._marked(-1)) - int(own is not None)
                kept = min(NEIGHBOURS_KEPT, compared)
                distances, neighbours = ranked.from_rank(start, kept)
        if own is None:
            pairs = pairs[:0]
        else:
            pairs[:, 0] = torch.as_tensor(own, device=pairs.device)[pairs[:, 0]]
            pairs[:, 1] = self._members.to(pairs.device)[pairs[:, 1]]
        return Comparison(torch.stack(base, 1), neighbours, distances, pairs)

    def calibrate(self, bank: Comparison) -> None:
        self.stage_means_ = bank.distances.mean(0).clamp_min(torch.finfo(torch.float32).tiny)
        self.bank_scores_ = self._base(bank)

    def to_scores(self, comparison: Comparison) -> Tensor:
        if self.bank_scores_ is None:  # fitted, but not on the way of fit_score
            self.calibrate(self._compare_bank())
        assert self.bank_scores_ is not None
        around = self.bank_scores_[comparison.neighbours].clamp_max(_LOWERED).mean(1)
        return self._base(comparison) - self.local_weight * around

    def check_labels(self, labels: Iterable[str | None]) -> None:
        _encode_labels(list(labels))

    def _derive(self) -> None:
        count = self.image_count_ if self.chosen_ is None else len(self.chosen_)
        if len(self.shapes_) != count:
            raise ValueError(f"{len(self.shapes_)} shapes of {count} images")

    @property
    def bounded(self) -> bool:
        return self.chosen_ is not None

    @property
    def _members(self) -> Tensor:
        """The images of the set that are in the bank, ascending, int64 [b]."""
        return torch.arange(self.image_count_) if self.chosen_ is None else self.chosen_.cpu()

    def describe(self, image: int) -> Tensor | None:
        column = int(self._columns([image]))
        return None if column < 0 else self.describe_grid(self._bank_grids()[column])

    def describe_grid(self, grid: Tensor) -> Tensor:
        """The stages from the patches' grid on, normalised: coarse ones say most of what it is."""
        return self._stages.describe(grid)

    def bank_size(self, images: int, patches: float) -> int:
        fitting = max(_BANK_IMAGES, int(_BANK_PATCHES / patches))
        return min(images, fitting if self.bank_images is None else self.bank_images)

    def check_count(self, images: int, patches: float) -> None:
        super().check_count(images, patches)
        if self.bank_images is not None and self.bank_images < 2:
            raise SettingError(f"a bank of {self.bank_images} images: choose 2 or more")
        others = self.bank_size(images, patches) - 1
        if self.k is not None and not (self.k == int(self.k) and 1 <= self.k <= others):
            raise SettingError(f"k={self.k} of {others} other images: choose 1 to {others}")

    def search_costs(self, images: int, patches: float, channels: int) -> list[SearchCost]:
        bank, layout = self.bank_size(images, patches), self._layout
        return [
            SearchCost(images * patches / ratio**2, bank * patches / ratio**2, width)
            for width, ratio in zip(layout.full_widths(channels), layout.ratios, strict=True)
        ]

    def _check(self, grids: Grids) -> None:
        if self._layout.count > len(self.stage_weights):
            raise SettingError(
                f"stage_weights {tuple(self.stage_weights)}: give one for each of the "
                f"{self._layout.count} stages"
            )
        weights = self.stage_weights[: self._layout.count]
        if min(weights) < 0 or not sum(weights) > 0:
            raise SettingError(f"stage_weights {tuple(weights)}: choose 0 or more, one above 0")
        for name, least in (("gap", 1), ("duplicate", 0), ("saturation", 0), ("local_weight", 0)):
            if not getattr(self, name) >= least:
                raise SettingError(f"{name}={getattr(self, name)}: choose {least} or more")
        self._layout.check(grids)

    def _choose_bank(self, grids: Grids, images: Summaries, order: Sequence[int]) -> Tensor | None:
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
            means = self._stages.image_means(images)
            usable = usable[cover_in_order(means[usable], size).cpu()]
        return usable.sort().values

    def _columns(self, images: Sequence[int]) -> Tensor:
        """Return the columns of images of the set in the bank, int64 [i]; -1: not there."""
        asked, members = torch.tensor(images), self._members
        columns = torch.searchsorted(members, asked).clamp_max(len(members) - 1)
        return torch.where(members[columns] == asked, columns, -1)

    def _marked(self, label: int) -> Tensor:
        """Which images of the bank have a label, int64 [j]."""
        if self.labels_ is None:
            return torch.empty(0, dtype=torch.int64)
        return (self.labels_[self._members] == label).nonzero()[:, 0]

    def _order(self) -> int:
        """Return k: how far the weights of the nearest images reach."""
        return max(3, round(len(self.shapes_) / 100)) if self.k is None else int(self.k)

    @property
    def _stages(self) -> NormalisedStages:
        return NormalisedStages(self._layout, self.mean_, self.energies_)

    @property
    def _banks(self) -> list[StageBank]:
        """The bank of each stage, without images marked anomalous, when it is first searched."""
        if self._indexed is None:
            marked = set(self._marked(-1).tolist())
            self._indexed = [
                StageBank.of(self._stages, stage, self._bank_grids(), self._counts(ratio), marked)
                for stage, ratio in enumerate(self._layout.ratios)
            ]
        return self._indexed

    def _search(self, stage: int, queries: Queries, effort: int) -> RankedImages:
        """Find the nearest images by the nearest rows; effort: how many times the usual number."""
        size = len(self.shapes_)
        kept = min(size, _GAP_IMAGES + DUPLICATES[1] + RANKS * self._order())
        # Fewer rows of a finer stage lie in one image than of others.
        nearest = effort * (NEAREST_ROWS // 2 if stage < self._layout.shown else NEAREST_ROWS)
        # A patch takes memory for all its rows, and for all images of the bank.
        at_a_time = max(1, COMPARED_PATCHES // effort // max(1, size // _BANK_IMAGES))
        return self._banks[stage].search(queries, nearest, at_a_time, kept)

    def _rank(
        self,
        stage: int,
        queries: Queries,
        found: RankedImages,
        left_out: Tensor,
        excess: Tensor,
    ) -> tuple[RankedImages, Tensor]:
        """Rank the images that patches are compared with; where too few were found, find more.

        found: what `_search` gave; left_out bool [i, b]: see `_leave_out`; excess float32
        [i, b]: see `_find_excess`.
        -> the images, and how many of them, nearest first, share a defect with each patch, int64
        [q].
        """
        others = (~left_out).sum(1)[queries.image]
        enough = others.clamp_max(_FEW * self._order())
        ranked = found.without(left_out, queries.image)
        start = self._shared(ranked, others, excess, queries.image)
        for effort in _RETRIES:
            lacking = (ranked.known < enough) | (ranked.known < start + NEIGHBOURS_KEPT) & (
                start > 0
            )
            which = lacking.nonzero()[:, 0]
            if len(which):
                some = queries.select(which)
                again = self._search(stage, some, effort).without(left_out, some.image)
                ranked.replace(which, again)
                start[which] = self._shared(again, others[which], excess, some.image)
        return ranked, start

    def _shared(
        self, ranked: RankedImages, others: Tensor, excess: Tensor, image: Tensor
    ) -> Tensor:
        """Count the images that share a defect with each patch, int64 [q].

        others int64 [q]: how many there are in all; excess float32 [i, b]: see `_find_excess`;
        image int64 [q]: which of the i each patch is of.
        """
        most = (others - NEIGHBOURS_KEPT).clamp_max(self._most_before_gap())
        excused = excess[image[:, None], ranked.images.clamp_min(0)] - _SAME_KIND
        return ranked.last_gap(self.gap, most, excused)

    def _most_before_gap(self) -> int:
        return max(self._order() - 1, min(len(self.shapes_) // _GAP_SHARE, _GAP_IMAGES))

    def _leave_out(
        self, shown: RankedImages, queries: Queries, columns: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Say which of the bank's images each of i images is not compared with, bool [i, b].

        They are the image itself, those that are marked anomalous, and near-duplicates, unless too
        few others would remain. shown: what `_search` gave for the queries, by the stage that is
        shown; columns int64 [i]: of the images in the bank. Second, all pairs that are
        near-duplicates, int64 [d, 2].
        """
        close = shown.closeness(queries.image, queries.own, len(columns), len(self.shapes_))
        member = columns >= 0
        close[member.nonzero()[:, 0], columns[member]] = -torch.inf
        close[:, self._marked(-1)] = -torch.inf
        near = find_near_duplicates(close, self.duplicate)
        pairs = near.nonzero()
        near[:, self._marked(1)] = False
        others = close.isfinite().sum(1, keepdim=True)
        needed = others.clamp_max(max(self._order(), NEIGHBOURS_KEPT))
        near &= others - near.sum(1, keepdim=True) >= needed
        return near | close.isinf(), pairs

    def _find_excess(self, shown: RankedImages, queries: Queries, left_out: Tensor) -> Tensor:
        """Compare closeness with that of the median image, float32 [i, b]; 0 for those left out.

        By patches without a gap: where images share a defect says nothing of the rest. By all of
        them if most have a gap, since a defect is a small part of an image.
        """
        most = torch.full_like(queries.image, self._most_before_gap())
        excused = torch.zeros_like(shown.distances)
        even = shown.last_gap(self.gap, most, excused) == 0
        every = torch.bincount(queries.image, minlength=len(left_out))
        left = torch.bincount(queries.image[even], minlength=len(left_out))
        even |= (2 * left < every)[queries.image]
        close = shown.select(even).closeness(
            queries.image[even], queries.own[even], *left_out.shape
        )
        values = close.masked_fill(left_out, torch.nan)
        return (close - values.nanmedian(1, keepdim=True).values).masked_fill(left_out, 0)

    def _base(self, comparison: Comparison) -> Tensor:
        assert self.stage_means_ is not None
        weights = torch.tensor(self.stage_weights[: self._layout.count])
        weights = (weights / weights.sum()).to(comparison.distances.device)
        return (comparison.distances / self.stage_means_) @ weights
