"""The stages of a network in patches: each on its own grid, normalised, and indexed as a bank."""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import SettingError
from ..network.patches import Layout, dealt_channels, gather_up, middle_ratios
from ..search.neighbors import to_float
from ..search.row_index import RowIndex, find_distinct
from .base import Method
from .grids import Grids, flatten
from .ranked_images import RankedImages

_TINY = torch.finfo(torch.float32).tiny


class Stages:
    """The layout of a network's stages in patches [h, w, c], one after the other.

    channels: of each stage; None: the patches are one stage. strides: of each, in pixels. layout:
    as of `patch_grid`; `middle` deals the channels of stages coarser than the second out over the
    patches' grid, `stages` repeats the cells of those coarser than the first.
    """

    def __init__(
        self, channels: Sequence[int] | None, strides: Sequence[int] | None, layout: Layout
    ) -> None:
        self.channels, self.layout = channels, layout
        # How many times coarser than the grid of the patches each stage is; finer ones: 1.
        if channels is None or strides is None:
            self.ratios = [1] * len(channels or [1])
        elif layout == "middle":
            self.ratios = middle_ratios(strides)
        else:
            self.ratios = [stride // strides[0] for stride in strides]

    def check(self, grids: Grids) -> None:
        """Raise SettingError if patches of a set are not made of these stages."""
        channels = grids.shapes[0][-1]
        if sum(self.widths(channels)) != channels:
            raise SettingError(
                f"stages {list(self.channels or [])} do not add up to {channels} channels"
            )
        ratio = max(self.ratios)
        if any(side % ratio for shape in grids.shapes for side in shape[:2]):
            raise SettingError(
                f"grids of patches must be multiples of {ratio} here: choose another"
            )

    @property
    def count(self) -> int:
        return len(self.ratios)

    @property
    def shown(self) -> int:
        """Return the stage whose neighbours explain a patch: the last on the patches' grid."""
        return max(stage for stage, ratio in enumerate(self.ratios) if ratio == 1)

    def widths(self, channels: int) -> list[int]:
        """Return the channels of each stage in patches of so many."""
        if self.channels is None:
            return [channels]
        if self.layout == "stages":
            return list(self.channels)
        pairs = zip(self.channels, self.ratios, strict=True)
        return [dealt_channels(stage, ratio) for stage, ratio in pairs]

    def full_widths(self, channels: int) -> list[int]:
        """Return the channels of each dealt stage on its own grid, in patches of so many."""
        return [w * r**2 for w, r in zip(self.widths(channels), self.ratios, strict=True)]

    def take(self, grid: Tensor, stage: int) -> Tensor:
        """Return one stage of patches [h, w, c] on its own grid, float [h_s, w_s, c_s]."""
        values = to_float(torch.split(grid, self.widths(grid.shape[-1]), -1)[stage])
        ratio = self.ratios[stage]
        if ratio == 1:
            return values
        return gather_up(values, ratio) if self.layout == "middle" else values[::ratio, ::ratio]

    def summarise(self, grids: Grids) -> "Summaries":
        """Summarise the images of a set, each of which is read once."""
        # Into one tensor: small ones that stay, made between large ones that go, would lie where
        # the next large ones could, and memory would grow by the patches of all images.
        every: Summaries | None = None
        for image, grid in enumerate(grids):
            stages = [flatten(self.take(grid, stage)).double() for stage in range(self.count)]
            mean = torch.cat([rows.mean(0) for rows in stages]).float()
            squares = torch.stack([rows.square().sum(1).mean() for rows in stages])
            if every is None:
                every = Summaries(
                    mean.new_empty(len(grids), len(mean)),
                    squares.new_empty(len(grids), len(squares)),
                )
            every.means[image], every.squares[image] = mean, squares
        assert every is not None
        return every


class StageMethod(Method):
    """Base of the methods that compare stage by stage.

    The rows of the bank are the patches of its images, one image after the other. `stages` and
    `stage_strides`: channels and strides as of `Stages`.
    """

    stages: Sequence[int] | None
    stage_strides: Sequence[int] | None
    shapes_: Tensor  # int64 [b, 2]: (h, w) of the grid of each image of the bank

    def _hold(self, grids: Grids, chosen: Sequence[int] | None = None) -> None:
        super()._hold(grids, chosen)
        images = range(len(grids)) if chosen is None else chosen
        self.shapes_ = torch.tensor([grids.shapes[image][:2] for image in images])

    @property
    def whole(self) -> bool:
        return not self.bounded

    @functools.cached_property
    def _layout(self) -> Stages:
        return Stages(self.stages, self.stage_strides, self.layout)

    def _counts(self, ratio: int) -> list[int]:
        """Count the cells of each image of the bank, on a grid `ratio` times coarser."""
        counts: list[int] = (self.shapes_ // ratio).prod(1).tolist()
        return counts

    def _bank_grids(self) -> list[Tensor]:
        parts = torch.split(self.bank_, self._counts(1))
        return [p.view(*s, -1) for p, s in zip(parts, self.shapes_.tolist(), strict=True)]


@dataclass(frozen=True)
class Summaries:
    """Statistics of n images from their patches, as the network gave them.

    means float32 [n, c]: over the image, one stage after the other, each on its own grid; squares
    float64 [n, stages]: mean of the squared length.
    """

    means: Tensor
    squares: Tensor


@dataclass(frozen=True)
class NormalisedStages:
    """Stages whose vectors are comparable: x, centred on the mean of the set, over its length.

    mean float32 [c]: one stage after the other, each on its own grid; energies float32 [stages]:
    s^2 m, m the mean of |x|^2 over the set and s the saturation. A vector is divided by
    sqrt(|x|^2 + s^2 m).
    """

    stages: Stages
    mean: Tensor
    energies: Tensor

    @classmethod
    def of_set(
        cls, stages: Stages, counts: Sequence[int], images: Summaries, saturation: float
    ) -> "NormalisedStages":
        """Learn mean and energies from the statistics of images with so many patches each."""
        weights = torch.tensor(counts, dtype=torch.float64, device=images.means.device)
        shares = weights / weights.sum()
        mean = shares @ images.means.double()
        parts = torch.split(mean.square(), stages.full_widths(len(mean)))
        squares = shares @ images.squares - torch.stack([part.sum() for part in parts])
        return cls(stages, mean.float(), (saturation**2 * squares.clamp_min(0)).float())

    def rows(self, grid: Tensor, stage: int) -> Tensor:
        """Normalise one stage of an image's patches [h, w, c]: float32 [cells, c_s]."""
        mean = torch.split(self.mean, self.stages.full_widths(len(self.mean)))[stage]
        centred = (flatten(self.stages.take(grid, stage)) - mean).float()
        energy = centred.square().sum(1, keepdim=True) + self.energies[stage]
        return centred.mul_(energy.clamp_min(_TINY).rsqrt())

    def image_means(self, images: Summaries) -> Tensor:
        """Normalise the means of images, stage by stage, float32 [n, c]."""
        scales = self.energies.clamp_min(_TINY).rsqrt()
        widths = torch.tensor(self.stages.full_widths(len(self.mean)), device=scales.device)
        return (images.means - self.mean) * scales.repeat_interleave(widths)

    def queries(self, stage: int, grids: Sequence[Tensor], columns: Tensor) -> "Queries":
        """Collect a stage of the patches of images [h_i, w_i, c]; columns int64 [i] in the bank."""
        parts = [self.rows(grid, stage) for grid in grids]
        counts = torch.tensor([len(part) for part in parts], device=columns.device)
        image = torch.arange(len(grids), device=columns.device).repeat_interleave(counts)
        return Queries(torch.cat(parts), image, columns[image])

    def describe(self, grid: Tensor) -> Tensor:
        """Describe patches [h, w, c] by the stages from their own grid on, float32 [h * w, d]."""
        height, width = grid.shape[:2]
        vectors = []
        for stage in range(self.stages.shown, self.stages.count):
            ratio = self.stages.ratios[stage]
            rows = self.rows(grid, stage).view(height // ratio, width // ratio, -1)
            vectors.append(flatten(rows.repeat_interleave(ratio, 0).repeat_interleave(ratio, 1)))
        return torch.cat(vectors, 1)


@dataclass(frozen=True)
class Queries:
    """Patches of one stage of a batch of images, image after image.

    rows float32 [q, c]; image int64 [q]: place in the batch; own int64 [q]: column of that image in
    the bank, -1 if it is not there.
    """

    rows: Tensor
    image: Tensor
    own: Tensor

    def select(self, which: Tensor) -> "Queries":
        return Queries(self.rows[which], self.image[which], self.own[which])


@dataclass(frozen=True)
class StageBank:
    """The distinct rows of a stage of the bank's images, so many columns.

    owners int64 [m]: the column of each row; places int64 [m]: its row in the bank.
    """

    index: RowIndex
    owners: Tensor
    places: Tensor
    columns: int

    @classmethod
    def of(
        cls,
        stages: NormalisedStages,
        stage: int,
        grids: Iterable[Tensor],
        counts: Sequence[int],
        marked: set[int],
    ) -> "StageBank":
        """Index a stage of images, of so many cells each, but for those in the marked columns.

        Equal rows of an image are taken once, or one with a flat background could be all of the
        nearest rows.
        """
        width = stages.stages.full_widths(len(stages.mean))[stage]
        rows = stages.mean.new_empty(sum(counts), width)
        owners = torch.empty(sum(counts), dtype=torch.int64, device=rows.device)
        places, start, kept = torch.empty_like(owners), 0, 0
        for column, grid in enumerate(grids):
            every = stages.rows(grid, stage)
            if column not in marked:
                distinct = find_distinct(every).sort().values
                these = slice(kept, kept + len(distinct))
                rows[these], owners[these] = every[distinct], column
                places[these] = start + distinct
                kept += len(distinct)
            start += len(every)
        return cls(RowIndex(rows[:kept]), owners[:kept], places[:kept], len(counts))

    def search(self, queries: Queries, nearest: int, at_a_time: int, kept: int) -> RankedImages:
        """Find the images that contain the nearest rows of each patch, `kept` at most."""
        parts = []
        for part in torch.split(torch.arange(len(queries.rows)), at_a_time):
            some = queries.select(part.to(queries.own.device))
            found = self.index.search(some.rows, nearest)
            ranked = RankedImages.of_rows(*found, self.owners, self.columns, some.own, kept)
            parts.append(replace(ranked, rows=self.places[ranked.rows.clamp_min(0)]))
        return RankedImages.join(parts)
