"""Cells: one variant of a method on one category in one setting, measured.

Variants whose methods share a bank are fitted once and compared once: all K of a table, PatchCore
and its LOF next to PatchCluster; smaller coresets are the beginnings of the largest.
"""

import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..datasets import Setting, Split, select
from ..errors import SettingError
from ..methods import Comparison, Method
from ..methods.base import join
from ..methods.grids import Grids, batch_by_patches
from ..network.backbones import Backbone
from ..runs import storage
from ..scores.finish import MapRule, finish
from ..scores.metrics import PixelMetrics, image_metrics
from ..settings import Settings
from .features import Images
from .tables import SHOWN_VARIANTS, Plan, Variant

Advance = Callable[[float], None]  # share of the group's work that is done
Scores = NDArray[np.float64]  # of images [n]


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
    """The figures of a cell, or why there are none."""

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
        """Read a finished cell; None: it is not there."""
        note = storage.read_note(self._path(category, setting, variant.name))
        if note is None:
            return None
        figures = None if note["figures"] is None else Figures(**note["figures"])
        return Cell(**{**note, "figures": figures})

    def write(self, cell: Cell, tensors: dict[str, Tensor]) -> None:
        """Write a cell, with `image_scores` float64 [n] and, to be drawn, `grids` float32 [n, h, w]
        of its images, in the order of `select`."""
        path = self._path(cell.category, cell.setting, cell.variant)
        storage.write_tensors(path, tensors, asdict(cell))

    def read_grids(self, category: str, setting: Setting, variant: Variant) -> Tensor | None:
        """Read the score grids [n, h, w] of a cell; None: it has none."""
        path = self._path(category, setting, variant.name)
        if storage.read_note(path) is None:
            return None
        return storage.read_tensors(path)[0].get("grids")


@dataclass(frozen=True)
class Group:
    """Variants whose methods share a bank; cost: see `Method.relative_cost`."""

    methods: dict[Variant, Method]
    cost: float


def group_variants(
    variants: Iterable[Variant], plan: Plan, network: Backbone, split: Split
) -> list[Group]:
    """Group variants by the bank that they need; coresets from the largest to the smallest."""
    groups: dict[Hashable, dict[Variant, Method]] = {}
    for variant in variants:
        method = plan.make_method(variant, network)
        groups.setdefault(method.bank_key() or variant, {})[variant] = method
    pairs = [(next(iter(methods.values())), methods) for methods in groups.values()]
    return [
        Group(methods, first.relative_cost(len(split.scored), len(split.bank)))
        for first, methods in sorted(pairs, key=lambda pair: -pair[0].ratio)
    ]


class CategoryRunner:
    """Runs groups of variants on one category in one setting."""

    def __init__(self, images: Images, setting: Setting, plan: Plan, network: Backbone) -> None:
        self.images = images
        self.setting: Setting = setting
        self.plan = plan
        self.network = network
        self.split = select(images.category, setting)
        self._fitted: Method | None = None  # the last one, whose bank others may share

    def run(self, group: Group, advance: Advance) -> Iterator[tuple[Cell, dict[str, Tensor]]]:
        """Yield each variant's cell, and what is kept of it: see `CellStore.write`."""
        start = time.perf_counter()
        settings = self.plan.scan_settings(next(iter(group.methods)))
        patches = self._patches(self.split.scored, settings)
        bank = patches if self.split.blind else self._patches(self.split.bank, settings)
        ready: dict[Variant, Method] = {}
        for variant, method in group.methods.items():
            try:
                ready[variant] = self._fit(method, bank, lambda share: advance(0.3 * share))
            except SettingError as error:
                yield self._cell(variant, None, str(error), 0.0, 1), {}
        if not ready:
            return
        comparisons = self._compare(
            list(ready.values()), patches, lambda share: advance(0.3 + 0.6 * share)
        )
        shared = time.perf_counter() - start
        each = zip(ready.items(), comparisons, strict=True)
        for done, ((variant, method), comparison) in enumerate(each, start=1):
            start = time.perf_counter()
            rule = self.plan.scan_settings(variant).map_rule({})
            grids, own_scores = self._score(method, patches, comparison, rule)
            figures, scores = measure(grids, self.images, self.split.scored, rule, own_scores)
            seconds = shared + time.perf_counter() - start
            advance(0.9 + 0.1 * done / len(ready))
            kept = {"image_scores": torch.from_numpy(scores)}
            if self.setting == "test" and variant in SHOWN_VARIANTS:
                kept["grids"] = grids
            yield self._cell(variant, figures, "", seconds, len(ready)), kept

    def _cell(
        self, variant: Variant, figures: Figures | None, error: str, seconds: float, shared: int
    ) -> Cell:
        name = self.images.category.name
        return Cell(name, self.setting, variant.name, figures, error, round(seconds, 2), shared)

    def _patches(self, which: Sequence[int], settings: Settings) -> list[Tensor]:
        return [grid.to(self.network.device) for grid in self.images.patches(settings, which)]

    def _fit(self, method: Method, bank: list[Tensor], advance: Advance) -> Method:
        """Fit a method, by the bank of the last one if that will do. Raises SettingError."""
        fitted = None
        if self._fitted is not None:
            fitted = method.reuse(self._fitted, sum(Grids.of(bank).counts))
        if fitted is None:
            self._fitted = None  # or there would be two banks in memory
            keys = [int(self.images.infos[i].sha256[:16], 16) for i in self.split.bank]
            fitted = method.fit(bank, keys, progress=lambda done, total: advance(done / total))
        self._fitted = fitted
        fitted.neighbour_count(self.split.blind)
        return fitted

    def _compare(
        self, methods: list[Method], patches: list[Tensor], advance: Advance
    ) -> list[Comparison]:
        """Compare all patches with the bank that methods share."""
        parts: list[list[Comparison]] = [[] for _ in methods]
        for batch in batch_by_patches(Grids.of(patches).counts):
            own = batch if self.split.blind else None
            found = methods[0].compare_for(methods, [patches[i] for i in batch], own)
            for part, comparison in zip(parts, found, strict=True):
                # A copy, since a view would keep the whole search in memory.
                copied = {name: value.clone() for name, value in comparison.tensors().items()}
                part.append(Comparison(**copied))
            advance((batch[-1] + 1) / len(patches))
        return [join(part) for part in parts]

    def _score(
        self, method: Method, patches: list[Tensor], comparison: Comparison, rule: MapRule
    ) -> tuple[Tensor, Scores | None]:
        """Make score grids float32 [n, h, w]; and image scores, if the rule is the method's own."""
        counts = Grids.of(patches).counts
        if self.split.blind:
            method.calibrate(comparison.select(method.bank_rows(counts)))
        flat = method.to_scores(comparison).float()
        grids = flat.view(len(patches), *patches[0].shape[:2]).cpu()
        if rule.image_score not in method.facts.image_scores:
            return grids, None
        own = range(len(patches)) if self.split.blind else None
        scores = method.score_images(patches, torch.split(flat, counts), own)
        return grids, scores.double().cpu().numpy()


def measure(
    grids: Tensor,
    images: Images,
    scored: Sequence[int],
    rule: MapRule,
    image_scores: Scores | None = None,
) -> tuple[Figures, Scores]:
    """Measure score grids [n, h, w] of some images in the network's field of view.

    image_scores: by a rule of a method's own; None: by the maps. They are returned, too.
    """
    pixels = PixelMetrics(float(grids.min()), float(grids.max()))
    infos = [images.infos[i] for i in scored]
    finished = (finish(grid.numpy(), rule.frame, rule.frame, rule) for grid in grids)
    by_map = []
    for i, info, one in zip(scored, infos, finished, strict=True):
        if image_scores is None:
            by_map.append(one.map_score)
        if info.has_mask or not info.anomalous:  # else nobody knows where
            pixels.add(one.smoothed, images.masks[i] if info.anomalous else None)
    scores = np.array(by_map) if image_scores is None else image_scores
    figures = Figures(
        *image_metrics(scores, np.array([info.anomalous for info in infos])),
        pixels.auroc(),
        pixels.average_precision(),
        pixels.f1max(),
        pixels.pro(),
    )
    return figures, scores
