"""results.csv and report.md: the paper's tables in its layout, measured and published."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..datasets import Setting, select
from ..errors import InputError
from ..pipeline.costs import format_bytes
from ..runs import storage
from ..runs.tables import write_table
from .cells import Cell, Figures
from .features import ImageInfo, InputRule
from .tables import (
    METRIC_NAMES,
    PAPER_BACKBONE,
    PAPER_CATEGORIES,
    PAPER_SIZE,
    PIXEL,
    STATISTICS_TABLE,
    TABLES,
    Plan,
    Table,
    Variant,
    read_published,
)

_SETTING_NAMES = {"mix": "Mix", "test": "Test", "ano": "Ano", "one-class": "One-class"}
_METRICS = tuple(field.name for field in dataclasses.fields(Figures))
_PEAK_FROM, _PEAK_TO = 10, 150  # K at which the paper's curves are highest

Averages = dict[tuple[str, str, str], tuple[float, int]]  # setting, variant, metric -> %, how many
Row = Sequence[str]


def write_results(path: Path, cells: Iterable[Cell]) -> None:
    """Write one row a cell, figures as fractions."""
    header = ["setting", "category", "variant", *_METRICS, "seconds", "shared_by", "error"]
    rows = []
    for cell in cells:
        row = dataclasses.asdict(cell) | figures_of(cell)
        row |= {m: "" if row.get(m) is None else f"{row[m]:.6f}" for m in _METRICS}
        rows.append([row[name] for name in header])
    write_table(path, header, rows)


def figures_of(cell: Cell) -> dict[str, float | None]:
    """The figures of a cell by name; none if it has an error."""
    return dataclasses.asdict(cell.figures) if cell.figures else {}


def write_report(
    path: Path,
    asked: Mapping[str, Any],
    plan: Plan,
    infos: Mapping[str, list[ImageInfo]],
    cells: Sequence[Cell],
    left_out: Sequence[str],
) -> None:
    """Write the tables that were asked for."""
    averages = average(cells)
    parts = [_head(asked, plan)]
    for number in sorted(plan.tables):
        if number == STATISTICS_TABLE:
            parts.append(_statistics(plan, infos))
        elif any(setting in plan.settings for setting in TABLES[number].settings):
            parts.append(_section(TABLES[number], plan, cells, averages, asked))
    findings = [*_find_order(averages), *_find_identity(cells), *_find_peaks(averages)]
    parts.append(_list("Do the paper's findings hold here?", findings))
    errors = [f"{c.setting}: {c.category} {c.variant}: {c.error}" for c in cells if c.error]
    parts.append(_list("Left out", [*left_out, *errors]))
    storage.write_bytes(path, "\n".join(part for part in parts if part).encode())


def average(cells: Iterable[Cell]) -> Averages:
    """Means over the categories in %, and over how many."""
    values: dict[tuple[str, str, str], list[float]] = {}
    for cell in cells:
        for metric, value in figures_of(cell).items():
            if value is not None:
                values.setdefault((cell.setting, cell.variant, metric), []).append(100 * value)
    return {key: (sum(found) / len(found), len(found)) for key, found in values.items()}


def incomparable(asked: Mapping[str, Any], categories: Iterable[str]) -> list[str]:
    """In what a benchmark differs from the paper's; empty if figures can be compared."""
    differences = []
    if asked["backbone"].split(".")[0] != PAPER_BACKBONE:
        differences.append(f"the backbone is {asked['backbone']}, not WideResNet-50")
    rule = InputRule(asked["size"], asked["crop"])
    if rule != InputRule(PAPER_SIZE, True):
        differences.append(f"images are {rule}")
    names = set(categories)
    if names != set(PAPER_CATEGORIES):
        differences.append(f"the mean is over {', '.join(sorted(names))}, not its 15 categories")
    return differences


# --- parts of the page --------------------------------------------------------------------------


def _head(asked: Mapping[str, Any], plan: Plan) -> str:
    rule = InputRule(asked["size"], asked["crop"])
    return f"""# Blind anomaly detection on {Path(plan.root).resolve().name}

Figures in %: image AUROC, pixel AUROC and PRO (30 % false positives), as the paper has them; \
average precision and F1max of every cell are in results.csv.

- backbone: {asked["backbone"]} (weights {asked["weights"][:12]}), images {rule}
- categories: {", ".join(category.name for category in plan.categories)}
- patchcluster {asked["version"]}, seed {asked["seed"]}; {asked["seconds"]:.0f} s in all, peak \
memory {format_bytes(asked["peak_memory"])}
"""


def _statistics(plan: Plan, infos: Mapping[str, list[ImageInfo]]) -> str:
    rows = []
    for setting in plan.settings:
        found = []
        for category in plan.categories:
            with suppress(InputError):
                paths = {category.samples[i].path for i in select(category, setting).scored}
                scored = [info for info in infos[category.name] if info.path in paths]
                found.append(describe_images(scored))
        if not found:
            continue
        means = [sum(values) / len(found) for values in zip(*found, strict=True)]
        rows.append([_label(setting, plan), "measured", *_show_statistics(means)])
        theirs = read_published(STATISTICS_TABLE).get((setting, ""))
        if theirs:
            rows.append(["", "*published*", *_show_statistics(list(theirs.values()))])
    header = ["", "", "Normal images", "Anomaly images", "Normal images", "Anomalous pixels"]
    return f"""## Table 1. The settings

Means over the categories; published: the 15 of MVTec AD.

{_table(header, rows)}
"""


def _show_statistics(values: Sequence[float]) -> list[str]:
    normal, anomalous, share, pixel_share = values
    return [f"{normal:.0f}", f"{anomalous:.0f}", f"{share:.0f}%", f"{pixel_share:.1f}%"]


def _label(setting: Setting, plan: Plan) -> str:
    """Name of a setting; if not all categories have the images for it, of how many it is."""
    have = 0
    for category in plan.categories:
        with suppress(InputError):
            select(category, setting)
            have += 1
    of = "" if have == len(plan.categories) else f" ({have} of {len(plan.categories)} categories)"
    return _SETTING_NAMES[setting] + of


def describe_images(infos: Sequence[ImageInfo]) -> list[float]:
    """Count normal and anomalous images; % of images that are normal, of pixels that are not."""
    anomalous = sum(info.anomalous for info in infos)
    pixels = sum(info.pixels for info in infos)
    covered = sum(info.pixels * info.covered for info in infos)
    return [
        len(infos) - anomalous,
        anomalous,
        100 * (1 - anomalous / len(infos)),
        100 * covered / pixels,
    ]


def _section(
    table: Table, plan: Plan, cells: Sequence[Cell], averages: Averages, asked: Mapping[str, Any]
) -> str:
    differences = incomparable(asked, (category.name for category in plan.categories))
    note = "Published figures are the paper's, with the same backbone, input and categories."
    if differences:
        note = (
            f"**Published figures are not comparable**: {'; '.join(differences)}. They show what "
            "the paper found, not what to expect here."
        )
    if table.by_category:
        body = _by_category(table, cells, plan)
    else:
        body = _by_variant(table, averages, plan)
    return f"## Table {table.number}. {table.title}\n\n{note}\n\n{body}\n"


def _by_variant(table: Table, averages: Averages, plan: Plan) -> str:
    """Methods, K or ratios as columns."""
    columns = [*table.columns.items(), *(("", variant) for variant in table.others)]
    columns = [(heading, v) for heading, v in columns if v.method in plan.methods]

    def show(setting: Setting, metric: str) -> list[str]:
        return _best_bold([averages.get((setting, v.name, metric)) for _, v in columns])

    titles = [_title(table, heading, variant) for heading, variant in columns]
    return _rows(table, plan, titles, [heading for heading, _ in columns], show)


def _by_category(table: Table, cells: Sequence[Cell], plan: Plan) -> str:
    """Categories as columns (the paper's Table 3)."""
    (variant,) = table.columns.values()
    names = [category.name for category in plan.categories]
    found = {(c.setting, c.category): figures_of(c) for c in cells if c.variant == variant.name}

    def show(setting: Setting, metric: str) -> list[str]:
        values = [found.get((setting, name), {}).get(metric) for name in names]
        known = [value for value in values if value is not None]
        mean = sum(known) / len(known) if known else None
        return ["-" if v is None else f"{100 * v:.1f}" for v in (*values, mean)]

    return _rows(table, plan, [*names, "mean"], [*names, "average"], show)


def _rows(
    table: Table,
    plan: Plan,
    titles: Sequence[str],
    headings: Sequence[str],
    show: Callable[[Setting, str], list[str]],
) -> str:
    """Settings and metrics as rows, measured and published.

    titles of the columns, their headings in the published table, and the cells of a row.
    """
    published = read_published(table.number)
    rows = []
    for setting in (setting for setting in plan.settings if setting in table.settings):
        for metric in table.metrics_in(setting):
            shown = show(setting, metric)
            if set(shown) <= {"-"}:
                continue
            label = _SETTING_NAMES[setting] if table.by_category else _label(setting, plan)
            theirs = published[setting, metric]
            rows.append([label, METRIC_NAMES[metric], *shown])
            known = [f"{theirs[h]:.1f}" if h in theirs else "" for h in headings]
            rows.append(["", "*published*", *known])
    return _table(["", "", *titles], rows)


def _title(table: Table, heading: str, variant: Variant) -> str:
    if heading.isdecimal():
        return f"K = {heading}" if table.number in (5, 6) else f"{heading}%"
    return variant.name if heading else f"{variant.name} (not in the paper)"


def _best_bold(found: Sequence[tuple[float, int] | None]) -> list[str]:
    """Values with the highest bold; one that is a mean over fewer categories says so."""
    most = max((value[1] for value in found if value), default=0)
    best = max((round(value[0], 1) for value in found if value), default=0.0)
    shown = []
    for value in found:
        if value is None:
            shown.append("-")
            continue
        text = f"{value[0]:.1f}" + (f" ({value[1]} of {most})" if value[1] < most else "")
        shown.append(f"**{text}**" if round(value[0], 1) == best else text)
    return shown


def _find_order(averages: Averages) -> list[str]:
    lines = []
    names = ("patchcluster-25%", "padim", "patchcore-25%")
    for setting in ("mix", "test", "ano"):
        found = [averages.get((setting, name, PIXEL)) for name in names]
        if all(found):
            values = [value[0] for value in found if value]
            holds = _holds(values == sorted(values, reverse=True))
            shown = ", ".join(f"{n} {v:.1f}" for n, v in zip(names, values, strict=True))
            lines.append(
                f"PatchCluster > PaDiM > PatchCore, pixel AUROC, {setting}: {holds} ({shown})"
            )
    return lines


def _find_identity(cells: Sequence[Cell]) -> list[str]:
    by_name = {(c.setting, c.category, c.variant): c.figures for c in cells if c.figures}
    equal = [
        figures == by_name[setting, category, "patchcore-100%"]
        for (setting, category, variant), figures in by_name.items()
        if variant == "patchcluster-100% k=1" and (setting, category, "patchcore-100%") in by_name
    ]
    if not equal:
        return []
    return [f"K = 1 equals PatchCore-100%, all figures of {len(equal)} cells: {_holds(all(equal))}"]


def _find_peaks(averages: Averages) -> list[str]:
    lines = []
    for table in (TABLES[5], TABLES[6]):
        for setting in table.settings:
            for metric in table.metrics_in(setting):
                curve = {
                    int(k): round(value[0], 1)
                    for k, variant in table.columns.items()
                    if (value := averages.get((setting, variant.name, metric)))
                }
                if len(curve) < 3:
                    continue
                peak = max(curve, key=lambda k: curve[k])
                holds = _holds(_PEAK_FROM <= peak <= _PEAK_TO)
                lines.append(
                    f"Table {table.number}, {setting} {METRIC_NAMES[metric]}: the curve over K is "
                    f"highest between {_PEAK_FROM} and {_PEAK_TO}: {holds} (at K = {peak})"
                )
    return lines


def _holds(found: bool) -> str:
    return "holds" if found else "does not hold"


def _list(title: str, lines: Sequence[str]) -> str:
    return f"## {title}\n\n" + "\n".join(f"- {x}" for x in lines) + "\n" if lines else ""


def _table(header: Row, rows: Sequence[Row]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
