"""The paper's tables: what each column is, the figures that were published, and which are made."""

import csv
import dataclasses
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from ..datasets import SETTINGS, Category, Setting
from ..errors import SettingError
from ..methods import METHODS, PAPER_SETTINGS, Method
from ..network.backbones import Backbone
from ..settings import Settings, check_seed, resolve
from .features import InputRule

BLIND: tuple[Setting, ...] = ("mix", "test", "ano")
IMAGE, PIXEL, PRO = "image_auroc", "pixel_auroc", "pro"
METRIC_NAMES = {IMAGE: "Image", PIXEL: "Pixel", PRO: "PRO"}

PAPER_BACKBONE = "wide_resnet50_2"
(PAPER_SIZE,) = PAPER_SETTINGS["size"]
PAPER_CATEGORIES = (
    "bottle", "cable", "capsule", "carpet", "grid", "hazelnut", "leather", "metal_nut", "pill",
    "screw", "tile", "toothbrush", "transistor", "wood", "zipper",
)  # fmt: skip
TEXTURES = ("carpet", "grid", "leather", "tile", "wood")


@dataclass(frozen=True)
class Variant:
    """A method with its parameters, as a column of a table has it."""

    name: str
    method: str
    options: dict[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Table:
    """A table of figures in the paper's layout: rows are settings and metrics.

    `columns` maps the heading of a published column to the variant that it shows. The paper's Table
    3 has categories for columns; `by_category` says so, and its one variant is the only column.
    `others` are shown next to the paper's own.
    """

    number: int
    title: str
    columns: dict[str, Variant]
    settings: tuple[Setting, ...] = BLIND
    metrics: tuple[str, ...] = (IMAGE, PIXEL, PRO)
    by_category: bool = False
    others: tuple[Variant, ...] = ()

    @property
    def variants(self) -> list[Variant]:
        return [*self.columns.values(), *self.others]

    def metrics_in(self, setting: Setting) -> list[str]:
        """Without image figures where all images are of one kind."""
        return [m for m in self.metrics if not (setting == "ano" and m == IMAGE)]


# Section 5, implementation details: K is 100 with the full bank, and goes down with the ratio.
_K = {1.0: 100, 0.25: 25, 0.1: 10, 0.01: 5}


def _patchcluster(ratio: float, k: int | None = None) -> Variant:
    name = f"patchcluster-{100 * ratio:g}%"
    if k in (None, _K[ratio]):
        return Variant(name, "patchcluster", {"ratio": ratio, "k": _K[ratio]})
    return Variant(f"{name} k={k}", "patchcluster", {"ratio": ratio, "k": k})


def _patchcore(ratio: float) -> Variant:
    return Variant(f"patchcore-{100 * ratio:g}%", "patchcore", {"ratio": ratio})


_PADIM, _SPADE = Variant("padim", "padim"), Variant("spade", "spade")
_PLUS = Variant("patchcluster-plus", "patchcluster-plus")
_MUSC = Variant("musc", "musc")
DEFAULT_METHODS = tuple(name for name in METHODS if name != _MUSC.method)  # it runs if asked for

TABLES: dict[int, Table] = {
    table.number: table
    for table in (
        Table(
            2,
            "Methods in the blind settings",
            {
                "padim": _PADIM,
                "spade": _SPADE,
                "patchcore_lof": Variant("patchcore-lof", "patchcore-lof", {"k": 100}),
                "patchcore_10": _patchcore(0.1),
                "patchcore_25": _patchcore(0.25),
                "patchcore_100": _patchcore(1.0),
                "patchcluster_25": _patchcluster(0.25),
            },
            others=(_PLUS, _MUSC),
        ),
        Table(
            3,
            "PatchCluster-25% for each category",
            {"patchcluster_25": _patchcluster(0.25)},
            by_category=True,
        ),
        Table(
            4,
            "One-class setting",
            {
                "padim": _PADIM,
                "spade": _SPADE,
                "rd": Variant("reverse-distillation", "reverse-distillation"),
                "patchcore_25": _patchcore(0.25),
                "patchcluster_100": _patchcluster(1.0),
                "patchcluster_25": _patchcluster(0.25),
                "patchcluster_10": _patchcluster(0.1),
                "patchcluster_1": _patchcluster(0.01),
            },
            settings=("one-class",),
            others=(_PLUS,),
        ),
        Table(
            5,
            "PatchCluster-100% by K",
            {str(k): _patchcluster(1.0, k) for k in (1, 10, 50, 100, 150, 200)},
        ),
        Table(
            6,
            "SPADE-Cluster by K",
            {
                str(k): Variant(f"spade-cluster k={k}", "spade-cluster", {"k": k})
                for k in (1, 10, 20, 50, 100, 150)
            },
            metrics=(PIXEL, PRO),
        ),
        Table(
            7,
            "PatchCluster by the ratio of the coreset",
            {f"{100 * ratio:g}": _patchcluster(ratio) for ratio in (0.01, 0.1, 0.25, 1.0)},
        ),
    )
}
SHOWN_VARIANTS: tuple[Variant, ...] = tuple(TABLES[2].variants)  # side by side in the figures
DETECTED_BY = TABLES[2].columns["patchcluster_25"]  # in figure 1
STATISTICS_TABLE = 1
TABLE_NUMBERS = (STATISTICS_TABLE, *TABLES)


@cache
def read_published(number: int) -> dict[tuple[str, str], dict[str, float]]:
    """The paper's figures in %: (setting, metric) -> heading of a column -> figure.

    Table 1, which has no metrics, has "" for them.
    """
    text = files(__package__).joinpath(f"published/table{number}.csv").read_text("utf-8")
    rows = {}
    for row in csv.DictReader(text.splitlines()):
        key = (row.pop("setting", SETTINGS[-1]), row.pop("metric", ""))
        rows[key] = {heading: float(value) for heading, value in row.items()}
    return rows


@dataclass(frozen=True)
class Plan:
    """Categories x settings x variants; which variants is decided by the tables and methods.

    Raises SettingError if there is nothing to do, or a value cannot work.
    """

    root: str
    categories: list[Category]
    settings: list[Setting]
    tables: list[int]
    methods: list[str]
    figures: bool
    rule: InputRule
    seed: int

    def __post_init__(self) -> None:
        size = self.rule.size
        if not 32 <= size <= 4096 or size % 32:
            raise SettingError(f"size {size}: choose a multiple of 32 from 32 to 4096 pixels")
        if self.seed < 0:
            raise SettingError(f"seed {self.seed}: choose 0 or more")
        check_seed(self.seed, self.methods)
        if STATISTICS_TABLE not in self.tables and not any(map(self.variants, self.settings)):
            raise SettingError(
                f"tables {', '.join(map(str, self.tables))} show nothing of the methods "
                f"{', '.join(self.methods)} in the settings {', '.join(self.settings)}: choose "
                "more of one"
            )

    def variants(self, setting: Setting) -> list[Variant]:
        """List the variants to run in a setting, each once."""
        found = [
            variant
            for number in self.tables
            if number in TABLES and setting in TABLES[number].settings
            for variant in TABLES[number].variants
        ]
        if self.figures and setting == "test":
            found += SHOWN_VARIANTS
        return list(dict.fromkeys(v for v in found if v.method in self.methods))

    def scan_settings(self, variant: Variant) -> Settings:
        """Say what a scan would be asked for a variant, with input and maps as wide as here."""
        size = self.rule.size
        known = resolve(method=variant.method, size=(size,), frame=size, **variant.options)
        return dataclasses.replace(known, seed=self.seed)

    def make_method(self, variant: Variant, network: Backbone) -> Method:
        """Build the method for patches that are made of the stages of a network."""
        settings = self.scan_settings(variant)
        return settings.make_method(*network.stages(settings.strides))
