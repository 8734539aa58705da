"""The paper's tables: what each column is, and the figures that were published."""

import csv
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from ..datasets import SETTINGS, Setting
from ..methods import METHODS, Method
from ..network.backbones import Backbone
from ..scores.maps import ImageScore

BLIND: tuple[Setting, ...] = ("mix", "test", "ano")
IMAGE, PIXEL, PRO = "image_auroc", "pixel_auroc", "pro"
METRIC_NAMES = {IMAGE: "Image", PIXEL: "Pixel", PRO: "PRO"}

PAPER_BACKBONE = "wide_resnet50_2"
PAPER_SIZE = 224
PAPER_CATEGORIES = (
    "bottle", "cable", "capsule", "carpet", "grid", "hazelnut", "leather", "metal_nut", "pill",
    "screw", "tile", "toothbrush", "transistor", "wood", "zipper",
)  # fmt: skip
TEXTURES = ("carpet", "grid", "leather", "tile", "wood")

_IMAGE_SCORES: dict[str, ImageScore] = {
    "patchcluster": "reweighted",
    "patchcore": "reweighted",
    "spade": "global",
    "spade-cluster": "global",
    "patchcluster-plus": "top1%",
}


@dataclass(frozen=True)
class Variant:
    """A method with its parameters, as a column of a table has it."""

    name: str
    method: str
    options: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def image_score(self) -> ImageScore:
        return _IMAGE_SCORES.get(self.method, "max")

    def make(self, network: Backbone, seed: int) -> Method:
        """Build the method for patches that are made of stages of a network."""
        channels, strides = network.stages(METHODS[self.method].strides)
        known = {"stages": channels, "strides": strides, "seed": seed}
        taken = inspect.signature(METHODS[self.method]).parameters
        given = {name: value for name, value in known.items() if name in taken}
        return METHODS[self.method](**given, **self.options)


@dataclass(frozen=True)
class Table:
    """A table of figures in the paper's layout: rows are settings and metrics.

    `columns` maps the heading of a published column to the variant that it shows. The paper's Table
    3 has categories for columns; `by_category` says so, and its one variant is the only column.
    `others` are shown next to the paper's own.
    """

    number: int
    title: str
    settings: tuple[Setting, ...]
    metrics: tuple[str, ...]
    columns: dict[str, Variant]
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
            BLIND,
            (IMAGE, PIXEL, PRO),
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
            BLIND,
            (IMAGE, PIXEL, PRO),
            {"patchcluster_25": _patchcluster(0.25)},
            by_category=True,
        ),
        Table(
            4,
            "One-class setting",
            ("one-class",),
            (IMAGE, PIXEL, PRO),
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
            others=(_PLUS,),
        ),
        Table(
            5,
            "PatchCluster-100% by K",
            BLIND,
            (IMAGE, PIXEL, PRO),
            {str(k): _patchcluster(1.0, k) for k in (1, 10, 50, 100, 150, 200)},
        ),
        Table(
            6,
            "SPADE-Cluster by K",
            BLIND,
            (PIXEL, PRO),
            {
                str(k): Variant(f"spade-cluster k={k}", "spade-cluster", {"k": k})
                for k in (1, 10, 20, 50, 100, 150)
            },
        ),
        Table(
            7,
            "PatchCluster by the ratio of the coreset",
            BLIND,
            (IMAGE, PIXEL, PRO),
            {f"{100 * ratio:g}": _patchcluster(ratio) for ratio in (0.01, 0.1, 0.25, 1.0)},
        ),
    )
}
SHOWN_VARIANTS: tuple[Variant, ...] = tuple(TABLES[2].variants)  # side by side in the figures
DETECTED_BY = TABLES[2].columns["patchcluster_25"]  # in figure 1
STATISTICS_TABLE = 1
TABLE_NUMBERS = (STATISTICS_TABLE, *TABLES)

_FILES = {
    1: "table1_settings",
    2: "table2_methods",
    3: "table3_categories_patchcluster_25",
    4: "table4_one_class",
    5: "table5_k_patchcluster_100",
    6: "table6_k_spade_cluster",
    7: "table7_coreset_ratio",
}


def choose_variants(
    tables: Sequence[int], methods: Sequence[str], setting: Setting
) -> list[Variant]:
    """The variants that tables need of some methods in a setting, each once."""
    needed = [
        variant
        for number in tables
        if number in TABLES and setting in TABLES[number].settings
        for variant in TABLES[number].variants
        if variant.method in methods
    ]
    return list(dict.fromkeys(needed))


@cache
def read_published(number: int) -> dict[tuple[str, str], dict[str, float]]:
    """The paper's figures in %: (setting, metric) -> heading of a column -> figure.

    Table 1, which has no metrics, has "" for them.
    """
    text = files(__package__).joinpath(f"published/{_FILES[number]}.csv").read_text("utf-8")
    rows = {}
    for row in csv.DictReader(text.splitlines()):
        key = (row.pop("setting", SETTINGS[-1]), row.pop("metric", ""))
        rows[key] = {heading: float(value) for heading, value in row.items()}
    return rows
