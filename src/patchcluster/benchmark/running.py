"""One start of a benchmark: what is missing is run, then the tables are written again."""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..datasets import Category, Setting, Split, select
from ..errors import InputError, RunError
from ..methods import METHODS
from ..network.backbones import Backbone
from ..network.patches import grid_channels, grid_stride
from ..pipeline import costs
from ..runs import storage
from .cells import CategoryRunner, Cell, CellStore, Group, group_variants
from .features import Features, FeatureStore, ImageInfo
from .figures import write_figures
from .plan import Plan
from .report import write_report, write_results
from .tables import SHOWN_VARIANTS

Progress = Callable[[str, int, int], None]  # step, done, total
RUN_FILE = "benchmark.json"
_WORK = ".work"
_VALUE_BYTES = 14  # of a patch: float16, float32, centred, and while the bank is made
_SLACK = 256 * costs.MIB


@dataclass(frozen=True)
class Benchmark:
    """A finished benchmark; `left_out` says what of the asked there is no cell of, and why."""

    folder: Path
    cells: list[Cell]
    left_out: list[str]

    @property
    def report(self) -> Path:
        return self.folder / "report.md"


@dataclass(frozen=True)
class Work:
    """What is missing of a category in a setting."""

    category: Category
    setting: Setting
    groups: list[Group]
    split: Split

    def cost(self, group: Group) -> float:
        bank = self.split.scored if self.split.bank is None else self.split.bank
        return group.cost(len(self.split.scored), len(bank))


class Running:
    """Runs the cells that a folder does not hold yet."""

    def __init__(
        self,
        folder: Path,
        plan: Plan,
        backbone: Backbone,
        progress: Progress,
        tell: Callable[[str], None],
    ) -> None:
        self.folder = folder
        self.plan = plan
        self.backbone = backbone
        self.progress = progress
        self.tell = tell
        self.cells = CellStore(folder / "cells")
        self.features = FeatureStore(folder / _WORK, backbone, plan.rule, torch.get_num_threads())
        self.left_out: list[str] = []
        self.work = [
            work
            for category in plan.categories
            for setting in plan.settings
            if (work := self._pending(category, setting))
        ]
        self.total = sum(work.cost(group) for work in self.work for group in work.groups)
        self.done = 0.0

    def run(self, asked: dict[str, Any]) -> Benchmark:
        """Run all, write the tables and say in the folder what it took."""
        start = time.perf_counter()
        infos = {c.name: self._run_category(c) for c in self.plan.categories}
        asked["seconds"] = round(asked["seconds"] + time.perf_counter() - start, 1)
        asked["peak_memory"] = max(asked["peak_memory"], costs.peak_memory())
        storage.write_json(self.folder / RUN_FILE, asked)
        cells = self._read_cells()
        write_results(self.folder / "results.csv", cells)
        write_report(self.folder / "report.md", asked, self.plan, infos, cells, self.left_out)
        storage.remove(self.folder / _WORK)
        return Benchmark(self.folder, cells, self.left_out)

    def _pending(self, category: Category, setting: Setting) -> Work | None:
        try:
            split = select(category, setting)
        except InputError as error:
            self.left_out.append(f"{setting}: {str(error).split(':')[0]}")
            return None
        missing = [
            variant
            for variant in self.plan.variants(setting)
            if self.cells.read(category.name, setting, variant) is None
        ]
        groups = group_variants(missing, self.backbone, self.plan.seed)
        return Work(category, setting, groups, split)

    def _run_category(self, category: Category) -> list[ImageInfo]:
        """Run what is missing of a category, draw its figures, and say what its images are."""
        path = self.cells.folder / category.name / "images.json"
        identity = self.features.identity(category)
        known = storage.read_json(path) if path.is_file() else None
        if known is not None and known["identity"] != identity:
            raise RunError(
                f"the images of {category.name} have changed since {str(self.folder)!r} was "
                "written: choose another -o"
            )
        work = [w for w in self.work if w.category is category and w.groups]
        if work or known is None or self.plan.figures:
            features = self.features.load(category, self._show_features)
            known = {"identity": identity, "images": list(map(dataclasses.asdict, features.images))}
            storage.write_json(path, known)
            for one in work:
                self._run_work(one, features)
            if self.plan.figures:
                write_figures(self.folder / "figures", features, self.cells, self.plan)
        assert known is not None
        return [ImageInfo(**image) for image in known["images"]]

    def _run_work(self, work: Work, features: Features) -> None:
        runner = CategoryRunner(features, work.setting, self.plan.rule.size, self.backbone)
        shown = {variant.name for variant in SHOWN_VARIANTS}
        for group in work.groups:
            cost = work.cost(group)
            for cell, grids, image_scores in runner.run(group, self._advance(cost)):
                keep = work.setting == "test" and cell.variant in shown
                self.cells.write(cell, grids if keep else None, image_scores)
                self.tell(_describe(cell))
            self.done += cost

    def _show_features(self, done: int, total: int) -> None:
        self.progress("features", done, total)

    def _advance(self, cost: float) -> Callable[[float], None]:
        """What shows how far a group of such a cost is."""
        return lambda share: self.progress(
            "cells", round(self.done + share * cost), round(self.total)
        )

    def _read_cells(self) -> list[Cell]:
        found = [
            self.cells.read(category.name, setting, variant)
            for setting in self.plan.settings
            for category in self.plan.categories
            for variant in self.plan.variants(setting)
        ]
        return [cell for cell in found if cell is not None]

    def check_memory(self, limit: int | None) -> None:
        """Raise SettingError if the largest category would not fit."""
        advice = "fewer --categories or --methods, or a smaller --size"
        costs.check_memory(self.predict_memory(), limit, lambda _: advice)

    def predict_memory(self) -> int:
        """Peak memory in bytes: features as read and as cut, then the costliest method."""
        size, strides, channels = self.plan.rule.size, self.backbone.strides, self.backbone.channels
        images = max(len(category.samples) for category in self.plan.categories)
        values = sum(c * (size // s) ** 2 for c, s in zip(channels, strides, strict=True))
        needs = [0]
        for variant in {v for s in self.plan.settings for v in self.plan.variants(s)}:
            method = variant.make(self.backbone, self.plan.seed)
            stages = self.backbone.stages(method.strides)
            patches = (size // grid_stride(stages[1], method.layout)) ** 2
            width = grid_channels(*stages, method.layout)
            bank = images * patches * width * _VALUE_BYTES
            needs.append(bank + method.extra_memory(images, patches, width))
        return costs.resident_memory() + 4 * images * values + max(needs) + _SLACK


def needed_strides(plan: Plan) -> tuple[int, ...]:
    """Strides of the stages that the variants need."""
    variants = (v for s in plan.settings for v in plan.variants(s))
    return tuple(sorted({stride for v in variants for stride in METHODS[v.method].strides}))


def claim(folder: Path, plan: Plan, backbone: Backbone) -> dict[str, Any]:
    """Say in the folder whose it is. Raises RunError if it holds something else."""
    mine = {
        "root": plan.root,
        "backbone": backbone.name,
        "weights": backbone.weights_hash,
        "size": plan.rule.size,
        "crop": plan.rule.crop,
        "seed": plan.seed,
        "version": __version__,
    }
    path = folder / RUN_FILE
    if path.is_file():
        found: dict[str, Any] = storage.read_json(path)
        other = [name for name, value in mine.items() if found.get(name) != value]
        if other:
            raise RunError(
                f"{str(folder)!r} holds a benchmark with another {', '.join(other)}: choose "
                "another -o"
            )
        return found
    ours = (storage.LOCK_FILE, storage.part_path(path).name)  # a kill can have left them
    others = sorted(p.name for p in folder.iterdir() if p.name not in ours)
    if others:
        raise RunError(
            f"{str(folder)!r} holds other files ({', '.join(others[:3])}): choose a new or empty "
            "folder with -o"
        )
    asked = {**mine, "seconds": 0.0, "peak_memory": 0}
    storage.write_json(path, asked)
    return asked


def _describe(cell: Cell) -> str:
    where = f"{cell.setting} {cell.category} {cell.variant}"
    if cell.figures is None:
        return f"{where}: {cell.error}"
    figures = [cell.figures.image_auroc, cell.figures.pixel_auroc, cell.figures.pro]
    shown = " / ".join("-" if f is None else f"{100 * f:.1f}" for f in figures)
    shared = f", shared by {cell.shared_by}" if cell.shared_by > 1 else ""
    return f"{where}: {shown} ({cell.seconds:.0f} s{shared})"
