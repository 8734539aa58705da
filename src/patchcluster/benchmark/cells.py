"""Cells: one variant of a method on one category in one setting, measured.

Variants that share a bank are fitted once and search once: all K of a table, PatchCore and its LOF
next to PatchCluster; smaller coresets are the beginnings of the largest.
"""

import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..datasets import Setting, Split, select
from ..errors import SettingError
from ..methods import (
    Comparison,
    Method,
    NeighbourMethod,
    PaDiM,
    PatchCluster,
    PatchClusterPlus,
    ReverseDistillation,
    SpadeCluster,
)
from ..methods.base import join
from ..methods.grids import make_batches
from ..methods.patchcluster import shrink
from ..network.backbones import Backbone
from ..runs import storage
from ..scores import maps
from ..scores.maps import Floats
from ..scores.metrics import PixelMetrics, image_metrics
from .features import Features
from .tables import Variant

Advance = Callable[[float], None]  # share of the group's work that is done


@dataclass(frozen=True)
class Figures:
    """Fractions between 0 and 1; None where the setting or the truth does not allow a figure."""

    image_auroc: float | None
    image_ap: float | None
    image_f1max: float | None
    pixel_auroc: float | None
    pixel_ap: float | None
    pixel_f1max: float | None
    pro: float | None


@dataclass(frozen=True)
class Cell:
    """What a cell gave: figures, or why there are none."""

    category: str
    setting: Setting
    variant: str
    figures: Figures | None
    error: str  # "" if there are figures
    seconds: float  # of fitting, searching and scoring
    shared_by: int  # variants that the fitting and searching served


class CellStore:
    """Cells on disk, a file each: written when they are done, so that a kill loses one group."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _path(self, category: str, setting: Setting, variant: str) -> Path:
        name = variant.replace("%", "").replace(" ", "-").replace("=", "")
        return self.folder / category / setting / f"{name}.safetensors"

    def read(self, category: str, setting: Setting, variant: Variant) -> Cell | None:
        """A finished cell, or None."""
        note = storage.read_note(self._path(category, setting, variant.name))
        if note is None:
            return None
        figures = None if note["figures"] is None else Figures(**note["figures"])
        return Cell(**{**note, "figures": figures})

    def write(self, cell: Cell, grids: Tensor | None, image_scores: NDArray[np.float64]) -> None:
        """Write a cell with its score grids float32 [n, h, w], if they are to be kept."""
        tensors = {"image_scores": torch.from_numpy(image_scores)}
        if grids is not None:
            tensors["grids"] = grids
        path = self._path(cell.category, cell.setting, cell.variant)
        storage.write_tensors(path, tensors, asdict(cell))

    def read_grids(self, category: str, setting: Setting, variant: Variant) -> Tensor | None:
        """Score grids [n, h, w] of a cell's images, in the order of `select`; None if not kept."""
        path = self._path(category, setting, variant.name)
        if storage.read_note(path) is None:
            return None
        return storage.read_tensors(path)[0].get("grids")


@dataclass(frozen=True)
class Group:
    """Variants that one fitted method serves, from the smallest K to the largest."""

    variants: list[Variant]
    methods: list[Method]

    def cost(self, scored: int, bank: int) -> float:
        """Rough cost for progress; 1 is the search of one image in another's patches."""
        method = self.methods[0]
        if isinstance(method, ReverseDistillation):
            return 150 * bank
        if isinstance(method, PaDiM):
            return 10 * bank
        if isinstance(method, PatchClusterPlus):
            return 0.1 * scored * bank
        if isinstance(method, SpadeCluster):
            return scored * min(bank, method.images)
        ratio = getattr(method, "ratio", 1.0)
        choosing = 0.5 * bank * bank * ratio if ratio < 1 else 0.0
        return scored * bank * ratio + choosing


def group_variants(variants: Iterable[Variant], network: Backbone, seed: int) -> list[Group]:
    """Group variants by the bank that they need; coresets from the largest to the smallest."""
    found: dict[Hashable, list[tuple[int, Variant, Method]]] = {}
    for variant in variants:
        method = variant.make(network, seed)
        key: Hashable = variant.name
        if isinstance(method, NeighbourMethod):
            key = (method.layout, method.bank_key())
        found.setdefault(key, []).append((getattr(method, "k", None) or 0, variant, method))
    groups = []
    for members in found.values():
        members.sort(key=lambda member: member[0])
        groups.append(Group([v for _, v, _ in members], [m for _, _, m in members]))
    return sorted(groups, key=lambda group: -getattr(group.methods[0], "ratio", 1.0))


class CategoryRunner:
    """Runs groups of variants on one category in one setting."""

    def __init__(self, features: Features, setting: Setting, size: int, network: Backbone) -> None:
        self.features = features
        self.setting = setting
        self.split: Split = select(features.category, setting)
        self.size = size
        self.network = network
        self._coreset: dict[str, Tensor] | None = None  # state with the largest one so far

    def run(
        self, group: Group, advance: Advance
    ) -> Iterable[tuple[Cell, Tensor | None, NDArray[np.float64]]]:
        """Yield each variant's cell, its score grids float32 [n, h, w] and image scores [n]."""
        start = time.perf_counter()
        method = group.methods[0]
        patches = self._patches(self.split.scored, method)
        bank = patches if self.split.bank is None else self._patches(self.split.bank, method)
        blind = self.split.bank is None
        ready, failed = self._fit(group, bank, blind, lambda share: advance(0.3 * share))
        for variant, error in failed:
            yield self._cell(variant, None, error, 0.0, 1), None, np.empty(0)
        if not ready:
            return
        comparisons = self._compare(
            [m for _, m in ready], patches, blind, lambda share: advance(0.3 + 0.6 * share)
        )
        shared = time.perf_counter() - start
        for done, ((variant, member), comparison) in enumerate(
            zip(ready, comparisons, strict=True), start=1
        ):
            start = time.perf_counter()
            grids, image_scores = self._score(variant, member, patches, comparison, blind)
            figures = measure(grids, image_scores, self.features, self.split, self.size)
            seconds = shared + time.perf_counter() - start
            advance(0.9 + 0.1 * done / len(ready))
            yield self._cell(variant, figures, "", seconds, len(ready)), grids, image_scores

    def _cell(
        self, variant: Variant, figures: Figures | None, error: str, seconds: float, shared: int
    ) -> Cell:
        name = self.features.category.name
        return Cell(name, self.setting, variant.name, figures, error, round(seconds, 2), shared)

    def _patches(self, indices: Sequence[int], method: Method) -> list[Tensor]:
        grids = self.features.patches(method.layout, method.strides, indices)
        return [grid.to(self.network.mean.device) for grid in grids]

    def _fit(
        self, group: Group, bank: list[Tensor], blind: bool, advance: Advance
    ) -> tuple[list[tuple[Variant, Method]], list[tuple[Variant, str]]]:
        """Fit the first method that can be, and give what it learned to the others."""
        keys = [int(self.features.images[i].sha256[:16], 16) for i in self._bank_indices()]
        ready: list[tuple[Variant, Method]] = []
        failed: list[tuple[Variant, str]] = []
        for variant, method in zip(group.variants, group.methods, strict=True):
            try:
                state = ready[0][1].state() if ready else self._coreset_state(method, bank)
                if state is None:
                    fitted = method.fit(
                        bank, keys, progress=lambda done, total: advance(done / total)
                    )
                    self._keep_coreset(fitted)
                else:
                    fitted = type(method).from_state(state, **method.parameters())
                if isinstance(fitted, NeighbourMethod):
                    fitted.neighbour_count(blind)
                ready.append((variant, fitted))
            except SettingError as error:
                failed.append((variant, str(error)))
        return ready, failed

    def _bank_indices(self) -> list[int]:
        return self.split.scored if self.split.bank is None else self.split.bank

    def _keep_coreset(self, method: Method) -> None:
        if isinstance(method, PatchCluster) and method.ratio < 1:
            self._coreset = method.state()

    def _coreset_state(self, method: Method, bank: list[Tensor]) -> dict[str, Tensor] | None:
        """Cut the state of a method from a larger coreset; None: there is none."""
        if not isinstance(method, PatchCluster) or method.ratio == 1 or self._coreset is None:
            return None
        size = method.coreset_size(sum(grid.shape[0] * grid.shape[1] for grid in bank))
        if size > len(self._coreset["bank"]):
            return None
        return shrink(self._coreset, size)

    def _compare(
        self, methods: list[Method], patches: list[Tensor], blind: bool, advance: Advance
    ) -> list[Comparison]:
        """Compare all patches with the bank."""
        parts: list[list[Comparison]] = [[] for _ in methods]
        for batch in make_batches([grid.shape[0] * grid.shape[1] for grid in patches]):
            found = _compare_batch(methods, [patches[i] for i in batch], batch if blind else None)
            for part, comparison in zip(parts, found, strict=True):
                # A copy, since a view would keep the whole search in memory.
                copied = {name: value.clone() for name, value in comparison.tensors().items()}
                kept = Comparison(**copied)
                part.append(kept)
            advance((batch[-1] + 1) / len(patches))
        return [join(part) for part in parts]

    def _score(
        self,
        variant: Variant,
        method: Method,
        patches: list[Tensor],
        comparison: Comparison,
        blind: bool,
    ) -> tuple[Tensor, NDArray[np.float64]]:
        """Score grids float32 [n, h, w] and image scores [n]."""
        counts = [grid.shape[0] * grid.shape[1] for grid in patches]
        if blind:
            method.calibrate(comparison.select(method.bank_rows(counts)))
        flat = method.to_scores(comparison).float()
        grids = flat.view(len(patches), *patches[0].shape[:2]).cpu()
        rule = variant.image_score
        if rule in method.image_scores:
            own = range(len(patches)) if blind else None
            scores = method.score_images(rule, patches, list(torch.split(flat, counts)), own)
            return grids, scores.double().cpu().numpy()
        frames = [smooth(grid.numpy(), self.size) for grid in grids]
        return grids, np.array([maps.score_image(frame, rule) for frame in frames])


def _compare_batch(
    methods: Sequence[Method], grids: list[Tensor], own: Sequence[int] | None
) -> list[Comparison]:
    """The comparisons of methods of one group."""
    sharing = [method for method in methods if isinstance(method, NeighbourMethod)]
    if not sharing:
        return [method.compare(grids, own) for method in methods]
    most = max(method.neighbour_count(own is not None) for method in sharing)
    found = sharing[0].search(grids, own, most)
    return [method.summarise(found) for method in sharing]


def smooth(grid: Floats, size: int) -> Floats:
    """Score grid [h, w] -> map [size, size]: bilinear, then a Gaussian of sigma 4 (section 4.2)."""
    return maps.smooth(grid, size, size, size)


def measure(
    grids: Tensor, image_scores: NDArray[np.float64], features: Features, split: Split, size: int
) -> Figures:
    """Measure score grids [n, h, w] against the masks, in the network's field of view."""
    images = [features.images[i] for i in split.scored]
    pixels = PixelMetrics(float(grids.min()), float(grids.max()))
    for i, grid, info in zip(split.scored, grids, images, strict=True):
        if info.anomalous and not info.has_mask:
            continue  # nobody knows where
        mask = features.masks[i].numpy()
        pixels.add(smooth(grid.numpy(), size), mask if info.anomalous else None)
    anomalous = np.array([info.anomalous for info in images])
    return Figures(
        *image_metrics(image_scores, anomalous),
        pixels.auroc(),
        pixels.average_precision(),
        pixels.f1max(),
        pixels.pro(),
    )
