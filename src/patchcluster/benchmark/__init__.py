"""The paper's experiments on a data set: categories x settings x methods, resumable per cell.

    tables.py    the paper's tables, and which of them are asked for
    features.py  images of a category -> what the network gives, by the paper's input rule
    cells.py     variants of methods on a category in a setting -> figures
    report.py    the tables, measured and published
    figures.py   what the paper's figures show

OUT/
  report.md       the paper's tables in its layout, measured and published
  results.csv     a row a cell
  figures/        what the paper's figures 1, 3, 4 and 5 show, if asked for
  benchmark.json  what was asked
  cells/          a file a cell
  .work/          features of the network, removed at the end
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from .. import __version__
from ..datasets import SETTINGS, Category, Setting, read_dataset, select
from ..errors import InputError, RunError, SettingError
from ..images.inputs import local_path
from ..methods import METHODS
from ..network.backbones import STRIDES, Backbone, load_backbone
from ..network.devices import choose_device
from ..network.patches import grid_channels, grid_stride
from ..pipeline import costs
from ..pipeline.extraction import BATCH_PIXELS
from ..pipeline.job import Progress
from ..runs import storage
from ..settings import Settings
from .cells import CategoryRunner, Cell, CellStore, Group, group_variants
from .features import ImageInfo, Images, InputRule, load_images, name_state
from .figures import write_figures
from .report import write_report, write_results
from .tables import DEFAULT_METHODS, PAPER_SIZE, TABLE_NUMBERS, Plan

__all__ = ["Benchmark", "benchmark"]

RUN_FILE = "benchmark.json"
_WORK = ".work"
_VALUE_BYTES = 14  # of a patch: float16, float32, centred, and while the bank is made
_FORMAT = 2  # of the folder
_STAGE_BYTES = 2  # of a value of the network's stages, as float16
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


def benchmark(
    root: str | Path,
    output: str | Path,
    *,
    settings: Sequence[str] = SETTINGS,
    methods: Sequence[str] = DEFAULT_METHODS,
    tables: Sequence[int] = TABLE_NUMBERS,
    categories: Sequence[str] | None = None,
    figures: bool = False,
    backbone: str = Settings.backbone,
    weights: str | None = Settings.weights,
    size: int = PAPER_SIZE,
    crop: bool = True,
    device: str = Settings.device,
    seed: int = Settings.seed,
    max_memory: int | str | None = None,
    progress: Progress | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Benchmark:
    """Run the paper's methods in its settings on a data set and write its tables.

    root: a data set in a layout that `datasets` knows. output: the folder to write; cells that it
    holds are not run again, so that a killed benchmark resumes and a finished one can be extended.
    size, crop: the network's input, by default the paper's. max_memory: bytes, or text such as
    "8GB". progress(step, done, total) and tell(line) are called as work gets done.

    Raises InputError, SettingError, WeightsError or RunError.
    """
    folder, there = local_path(output), {one.name: one for one in read_dataset(root)}
    names = list(there) if categories is None else categories
    plan = Plan(
        str(root),
        [there[name] for name in _known(names, list(there), "category")],
        _known(settings, SETTINGS, "setting"),
        _known(tables, TABLE_NUMBERS, "table"),
        _known(methods, list(METHODS), "method"),
        figures,
        InputRule(size, crop),
        seed,
    )
    network = load_backbone(backbone, weights, choose_device(device), _needed_strides(plan))
    with storage.lock(folder):
        advice = "fewer --categories or --methods, or a smaller --size"
        limit = costs.parse_limit(max_memory)
        costs.check_memory(predict_memory(plan, network), limit, lambda _: advice)
        asked = _claim(folder, plan, network)
        running = _Running(folder, plan, network, progress or (lambda *_: None), tell)
        return running.run(asked)


def _known(asked: Sequence[Any], there: Sequence[Any], kind: str) -> list[Any]:
    for value in asked:
        if value not in there:
            raise SettingError(f"no {kind} {value!r}: choose from {', '.join(map(str, there))}")
    return list(asked)


def _needed_strides(plan: Plan) -> tuple[int, ...]:
    """Strides of the stages that the variants need; the usual ones, if there are no variants."""
    variants = (v for s in plan.settings for v in plan.variants(s))
    return (
        tuple(sorted({stride for v in variants for stride in METHODS[v.method].strides})) or STRIDES
    )


def predict_memory(plan: Plan, network: Backbone) -> int:
    """Predict the peak memory in bytes: that of the largest category and the costliest method."""
    images = max(len(category.samples) for category in plan.categories)
    waiting = 2 * (BATCH_PIXELS // plan.rule.size**2 + 1)  # images whose stages wait for the disk
    grid = (plan.rule.size // network.strides[0]) ** 2
    needs = [waiting * grid * sum(network.channels) * _STAGE_BYTES]
    for variant in {v for s in plan.settings for v in plan.variants(s)}:
        settings = plan.scan_settings(variant)
        channels, strides = network.stages(settings.strides)
        patches = (plan.rule.size // grid_stride(strides, settings.layout)) ** 2
        width = grid_channels(channels, strides, settings.layout)
        extra = plan.make_method(variant, network).extra_memory(images, patches, width)
        needs.append(images * patches * width * _VALUE_BYTES + extra)
    return costs.resident_memory() + max(needs) + _SLACK


def _claim(folder: Path, plan: Plan, network: Backbone) -> dict[str, Any]:
    """Say in the folder whose it is. Raises RunError if it holds something else."""
    mine = {
        "root": plan.root,
        "backbone": network.name,
        "weights": network.weights_hash,
        "size": plan.rule.size,
        "crop": plan.rule.crop,
        "seed": plan.seed,
        "version": __version__,
        "format": _FORMAT,
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


@dataclass
class _Running:
    """Runs the cells that a folder does not hold yet."""

    folder: Path
    plan: Plan
    network: Backbone
    progress: Progress
    tell: Callable[[str], None]
    left_out: list[str] = field(default_factory=list)
    done: float = 0.0  # cost of the groups that are done

    def __post_init__(self) -> None:
        self.cells = CellStore(self.folder / "cells")
        self.missing = {
            (category.name, setting): self._find_missing(category, setting)
            for category in self.plan.categories
            for setting in self.plan.settings
        }
        self.total = sum(group.cost for groups in self.missing.values() for group in groups)

    def run(self, asked: dict[str, Any]) -> Benchmark:
        """Run all, write the tables and say in the folder what it took."""
        start = time.perf_counter()
        infos = {c.name: self._run_category(c) for c in self.plan.categories}
        asked["seconds"] = round(asked["seconds"] + time.perf_counter() - start, 1)
        asked["peak_memory"] = max(asked["peak_memory"], costs.peak_memory())
        storage.write_json(self.folder / RUN_FILE, asked)
        found = [
            self.cells.read(category.name, setting, variant)
            for setting in self.plan.settings
            for category in self.plan.categories
            for variant in self.plan.variants(setting)
        ]
        cells = [cell for cell in found if cell is not None]
        write_results(self.folder / "results.csv", cells)
        write_report(self.folder / "report.md", asked, self.plan, infos, cells, self.left_out)
        storage.remove(self.folder / _WORK)
        return Benchmark(self.folder, cells, self.left_out)

    def _find_missing(self, category: Category, setting: Setting) -> list[Group]:
        try:
            split = select(category, setting)
        except InputError as error:
            self.left_out.append(f"{setting}: {str(error).split(':')[0]}")
            return []
        missing = [
            variant
            for variant in self.plan.variants(setting)
            if self.cells.read(category.name, setting, variant) is None
        ]
        return group_variants(missing, self.plan, self.network, split)

    def _run_category(self, category: Category) -> list[ImageInfo]:
        """Run what is missing of a category, draw its figures, and say what its images are."""
        path = self.cells.folder / category.name / "images.json"
        identity = name_state(category)
        known = storage.read_json(path) if path.is_file() else None
        if known is not None and known["identity"] != identity:
            raise RunError(
                f"the images of {category.name} have changed since {str(self.folder)!r} was "
                "written: choose another -o"
            )
        missing = {setting: self.missing[category.name, setting] for setting in self.plan.settings}
        if known is not None and not any(missing.values()) and not self.plan.figures:
            return [ImageInfo(**image) for image in known["images"]]
        images = load_images(
            category,
            self.folder / _WORK / category.name,
            self.network,
            self.plan.rule,
            lambda done, total: self.progress("features", done, total),
        )
        known = {"identity": identity, "images": [dataclasses.asdict(one) for one in images.infos]}
        storage.write_json(path, known)
        for setting, groups in missing.items():
            if groups:
                self._run_groups(groups, images, setting)
        if self.plan.figures:
            write_figures(self.folder / "figures", images, self.cells, self.plan)
        return images.infos

    def _run_groups(self, groups: list[Group], images: Images, setting: Setting) -> None:
        runner = CategoryRunner(images, setting, self.plan, self.network)
        while groups:
            group = groups.pop(0)  # whose bank is not kept
            for cell, kept in runner.run(group, partial(self._advance, group.cost)):
                self.cells.write(cell, kept)
                self.tell(_describe(cell))
            self.done += group.cost

    def _advance(self, cost: float, share: float) -> None:
        """Show how far a group of such a cost is."""
        self.progress("cells", round(self.done + share * cost), round(self.total))


def _describe(cell: Cell) -> str:
    where = f"{cell.setting} {cell.category} {cell.variant}"
    if cell.figures is None:
        return f"{where}: {cell.error}"
    figures = [cell.figures.image_auroc, cell.figures.pixel_auroc, cell.figures.pro]
    shown = " / ".join("-" if f is None else f"{100 * f:.1f}" for f in figures)
    shared = f", shared by {cell.shared_by}" if cell.shared_by > 1 else ""
    return f"{where}: {shown} ({cell.seconds:.0f} s{shared})"
