"""Base class of methods: the steps of scoring, for arrays of several kinds.

A method compares patches with a bank in steps that a pipeline can spread over time, devices or
workers:

    fit        builds the bank of a set of images, or trains on it
    compare    patches against the bank; each independent of all other queries
    calibrate  learns the constants of the set from the comparisons of the bank's own patches
    to_scores  comparison -> scores

`score` and `fit_score` run them in order for arrays in memory. Methods of equal `bank_key` share a
bank: it is built once (`reuse`) and searched once (`compare_for`).
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ..errors import SettingError
from ..network.patches import Layout
from ..search.neighbors import to_float
from . import Facts
from .grids import Grids, Kind, Patches, as_given, as_grids, batch_by_patches, digest, flatten

Progress = Callable[[int, int], None]  # done, total
Labels = Sequence[str | None]  # what a person said of each image: normal, anomalous or None
NEIGHBOURS_KEPT = 3
_TOO_FEW = "one image has nothing to be compared with: give at least 2 images"


@dataclass(frozen=True)
class Comparison:
    """p patches against the bank.

    distances float32 [p, d]: what the method makes scores of. neighbours int64 [p, j]: the rows of
    the bank that explain the patch, nearest first, and their distances float32 [p, j]; j is 3 or
    what the method needs. near_duplicates int64 [d, 2]: pairs of images of the fitted set, the
    first among those that were compared.
    """

    distances: Tensor
    neighbours: Tensor
    neighbour_distances: Tensor
    near_duplicates: Tensor = field(default_factory=lambda: torch.empty(0, 2, dtype=torch.int64))

    def tensors(self) -> dict[str, Tensor]:
        """Return all of it by name, as the constructor takes it."""
        return dict(vars(self))

    def select(self, rows: Tensor) -> "Comparison":
        """The comparisons of some of the patches; rows int64 [r]."""
        return Comparison(
            self.distances[rows],
            self.neighbours[rows],
            self.neighbour_distances[rows],
            self.near_duplicates,
        )


def _no_progress(done: int, total: int) -> None:
    del done, total


@dataclass(frozen=True)
class Given:
    """What `Method.fit` is given besides the patches."""

    keys: Sequence[int] | None
    labels: Labels | None
    progress: Progress

    def keys_of(self, grids: Grids) -> Sequence[int]:
        """Return the keys of the images, digests of their patches if none were given."""
        return [digest(grid) for grid in grids] if self.keys is None else self.keys


@dataclass(frozen=True)
class SearchCost:
    """The cost of searching one stage of a bank: so many queries among so many rows [., c]."""

    queries: float
    rows: float
    channels: int


class Method(ABC):
    """Base class of all methods.

    Patches are an array [n, h, w, c], or a sequence of arrays [h_i, w_i, c] where the images of a
    set differ in size; `Grids`, if they are read when they are asked for. After `fit`, row j of the
    bank is patch `bank_patch_[j]` (row-major in its grid) of image `bank_image_[j]`.
    """

    name: ClassVar[str]
    facts: ClassVar[Facts] = Facts()
    layout: ClassVar[Layout]  # the patch grid that the method is made for
    strides: ClassVar[tuple[int, ...]] = (8, 16)  # of the stages that patches are made of
    learned: ClassVar[tuple[str, ...]] = ()  # attributes NAME_ besides the bank, tensors or None
    least_images: ClassVar[int] = 2  # of a set that can be fitted
    one_size: ClassVar[bool] = False  # whether all images of a set must have one grid
    learns_from_labels: ClassVar[bool] = False
    streams: ClassVar[bool] = False  # whether patches are read image by image, but for the bank's
    comparison_cost: ClassVar[float] = 1.0  # of two images; 1: that of all pairs of patches
    ratio: float = 1.0  # share of the patches in the bank

    bank_: Tensor  # float32 [m, c]
    bank_image_: Tensor  # int64 [m]
    bank_patch_: Tensor  # int64 [m]
    image_count_: int

    def fit(
        self,
        patches: Patches,
        keys: Sequence[int] | None = None,
        labels: Labels | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """Build the bank from the patches of a set, or train on them.

        keys, one an image, seed what is random about an image; they should name its content, so
        that a score does not depend on the order of the set. By default a digest of its patches.
        labels: what a person said of each image: normal, anomalous or None.

        Raises SettingError if the set is too small, a parameter does not fit, or the method does
        not learn from labels.
        """
        grids = as_grids(patches)
        if labels is not None:
            if len(labels) != len(grids):
                raise SettingError(f"{len(labels)} labels for {len(grids)} images: give as many")
            self.check_labels(labels)
        self.check_count(len(grids), sum(grids.counts) / len(grids))
        self._fit(grids, Given(keys, labels, progress or _no_progress))
        return self

    @abstractmethod
    def _fit(self, grids: Grids, given: Given) -> None:
        """Do what `fit` says, with parameters that were checked."""

    def _hold(self, grids: Grids, chosen: Sequence[int] | None = None) -> None:
        """Take the patches of a set, or of some of its images, ascending, as the bank."""
        images = range(len(grids)) if chosen is None else chosen
        counts = [grids.counts[image] for image in images]
        self.image_count_ = len(grids)
        self.bank_image_ = torch.tensor(images).repeat_interleave(torch.tensor(counts))
        self.bank_patch_ = torch.cat([torch.arange(count) for count in counts])
        first = grids[images[0]]
        self.bank_ = first.new_empty(sum(counts), first.shape[-1])
        for image, rows in zip(images, torch.split(self.bank_, counts), strict=True):
            rows.copy_(flatten(grids[image]))

    @abstractmethod
    def compare(
        self,
        grids: Sequence[Tensor],
        own: Sequence[int] | None = None,
        blocks: Sequence[Tensor] | None = None,
    ) -> Comparison:
        """Compare the patches of images [h_i, w_i, c] with the bank, all patches in order.

        `own` is each image's index in the set that was fitted, for images of that set: they are not
        compared with themselves. None: other images. `blocks`, if the grids hold blocks of patches
        side by side, of which only some are there: where each image's lie, rows and columns int64
        [m, 2], in blocks (see `Packing`).
        """

    def bank_key(self) -> Hashable | None:
        """Name what decides the bank besides the set; None: no other method has the same."""
        return None

    def reuse(self, fitted: "Method", patches: int) -> Self | None:
        """Build what `fit` would, of a method that was fitted on the same set; None: fit is needed.

        patches: of the whole set.
        """
        del fitted, patches
        return None

    def neighbour_count(self, blind: bool) -> int:
        """How many neighbours a comparison needs; blind: of images of the set that was fitted.

        Raises SettingError if the bank has not so many.
        """
        del blind
        return 0

    def compare_for(
        self, methods: "Sequence[Method]", grids: Sequence[Tensor], own: Sequence[int] | None
    ) -> list[Comparison]:
        """Compare for fitted methods of one `bank_key`, of which this is one, as `compare` does."""
        return [method.compare(grids, own) for method in methods]

    def to_scores(self, comparison: Comparison) -> Tensor:
        """Turn a comparison of p patches into scores float32 [p]; here, its one distance each."""
        return comparison.distances.squeeze(1)

    def check_labels(self, labels: Iterable[str | None]) -> None:
        """Raise SettingError if the method does not learn from labels, or not from these."""
        if any(labels) and not self.learns_from_labels:
            raise SettingError(f"{self.name} does not learn from labels: use patchcluster-plus")

    def check_count(self, images: int, patches: float) -> None:  # noqa: ARG002 (for some methods)
        """Raise SettingError, before any work, if a set of so many images is too small.

        patches: how many an image has, on average.
        """
        if images < self.least_images:
            raise SettingError(_TOO_FEW)

    def calibrate(  # noqa: B027 (not every method has constants)
        self, bank: Comparison
    ) -> None:
        """Learn the set's constants from the comparison of the bank's own rows, in their order."""

    @property
    def bounded(self) -> bool:
        """Whether the bank has only some images of the set, which were chosen, with all patches."""
        return False

    @property
    def whole(self) -> bool:
        """Whether the bank has all patches of the set, image after image."""
        return False

    def parameters(self) -> dict[str, Any]:
        """Return the constructor's parameters by name, defaults included."""
        names = inspect.signature(type(self)).parameters
        # `strides` of the class are those that patches are to be made of.
        kept = {name: "stage_strides" if name == "strides" else name for name in names}
        return {name: getattr(self, attribute) for name, attribute in kept.items()}

    def state(self) -> dict[str, Tensor]:
        """Return all learned values, for `from_state`, besides the constructor's parameters."""
        names = ("bank", "bank_image", "bank_patch", *self.learned)
        values = {name: getattr(self, f"{name}_") for name in names}
        state = {name: value for name, value in values.items() if value is not None}
        return state | {"image_count": torch.tensor(self.image_count_)}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], **parameters: Any) -> Self:
        """Build a fitted method of what `state` and `parameters` gave.

        Raises an error of any kind if the values are not those of such a method.
        """
        method = cls(**parameters)
        for name in ("bank", "bank_image", "bank_patch", *cls.learned):
            setattr(method, f"{name}_", state.get(name))
        method.image_count_ = int(state["image_count"])
        method._derive()
        return method

    def _derive(self) -> None:  # noqa: B027 (not every method has any)
        """Build what follows from the learned values."""

    def score_images(
        self,
        grids: Sequence[Tensor],
        scores: Sequence[Tensor],
        own: Sequence[int] | None = None,
    ) -> Tensor:
        """Image scores float32 [n] by the own rule of the method, which `facts.image_scores` names.

        grids: patches [h_i, w_i, c]; scores: [h_i * w_i] of each image; own: as in `compare`.
        """
        raise NotImplementedError

    def describe(self, image: int) -> Tensor | None:
        """Vectors [p, d] that tell the patches of an image of the fitted set apart, in its order.

        None if the bank does not hold its patches.
        """
        rows = (self.bank_image_ == image).nonzero()[:, 0]
        return to_float(self.bank_[rows]) if len(rows) else None

    def describe_grid(self, grid: Tensor) -> Tensor:
        """Describe patches [h, w, c] that the bank need not hold, as `describe` does: [p, d]."""
        return to_float(flatten(grid))

    def bank_size(self, images: int, patches: float) -> int:
        """Return how many images of a set, of so many patches each, the bank holds."""
        del patches
        return images

    def search_costs(self, images: int, patches: float, channels: int) -> list[SearchCost] | None:
        """Count what `compare` of a whole set takes, stage by stage; None: that is not known.

        images of so many patches each, on average, of so many channels.
        """
        del images, patches, channels
        return None

    def relative_cost(self, scored: int, bank: int) -> float:
        """Estimate, for progress, what it takes to fit a bank of images and compare others with it.

        In units of `comparison_cost`.
        """
        return self.comparison_cost * scored * bank

    def extra_memory(self, images: int, patches: int, channels: int) -> int:
        """Bytes that the method needs besides the patches, the bank and a score a patch.

        images of so many patches each, of so many channels.
        """
        del images, patches, channels
        return 0

    def score(self, patches: Kind) -> Kind:
        """Score images against the bank of other images: [n, h, w, c] -> [n, h, w].

        The kind of array, and a list for a list, is that of the input; values are float32.
        """
        if not hasattr(self, "image_count_"):
            raise SettingError(f"this {self.name} was not fitted: call fit first")
        grids = list(as_grids(patches))
        scores = [self.to_scores(self.compare([grid])).view(grid.shape[:2]) for grid in grids]
        given: Kind = as_given(patches, scores)
        return given

    def fit_score(self, patches: Kind, labels: Labels | None = None) -> Kind:
        """Score the images of a set blindly, against the set itself: [n, h, w, c] -> [n, h, w].

        labels: as in `fit`. Raises SettingError if it is a single image.
        """
        grids = as_grids(patches)
        if len(grids) < 2:
            raise SettingError(_TOO_FEW)
        self.fit(grids, labels=labels)
        counts = grids.counts
        comparison = join(
            [self.compare([grids[i] for i in batch], batch) for batch in batch_by_patches(counts)]
        )
        self.calibrate(comparison.select(self.bank_rows(counts)))
        scores = torch.split(self.to_scores(comparison), counts)
        pairs = zip(grids.shapes, scores, strict=True)
        given: Kind = as_given(patches, [score.view(shape[:2]) for shape, score in pairs])
        return given

    def bank_rows(self, counts: Sequence[int]) -> Tensor:
        """Return the indices of the bank's rows among all patches of the set, int64 [m].

        counts: number of patches of each image, in the order of `fit`.
        """
        starts = torch.tensor([0, *counts]).cumsum(0)
        return starts[self.bank_image_.cpu()] + self.bank_patch_.cpu()

    def _compare_bank(self) -> Comparison:
        """Compare the bank, which holds all patches of its images, with itself."""
        grids, images = Grids.of(self._bank_grids()), torch.unique(self.bank_image_).tolist()
        return join(
            [
                self.compare([grids[i] for i in batch], [images[i] for i in batch])
                for batch in batch_by_patches(grids.counts)
            ]
        )

    def _bank_grids(self) -> list[Tensor]:
        """Return the patches [h_i, w_i, c] of all images of the bank."""
        counts = torch.unique(self.bank_image_, return_counts=True)[1].tolist()
        return [rows[None] for rows in torch.split(self.bank_, counts)]


def join(comparisons: Sequence[Comparison]) -> Comparison:
    """The comparisons of several sets of patches as one, in order."""
    return Comparison(
        torch.cat([c.distances for c in comparisons]),
        torch.cat([c.neighbours for c in comparisons]),
        torch.cat([c.neighbour_distances for c in comparisons]),
        torch.cat([c.near_duplicates for c in comparisons]),
    )
