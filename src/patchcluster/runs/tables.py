"""The tables of a run, scores.csv and regions.csv: written, and read with checks."""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..scores.maps import Region
from ..scores.remarks import find_limits, find_remarks
from . import storage
from .info import ImageRecord

SCORES_FILE = "scores.csv"
REGIONS_FILE = "regions.csv"

# What each table says of an image, see `to_cells`.
IMAGE_HEADER = [
    "path", "score", "probability", "percentile", "flagged", "regions", "nearest", "remarks",
]  # fmt: skip
SCORES_HEADER = ["rank", *IMAGE_HEADER]
REGIONS_HEADER = ["path", "region", "x", "y", "width", "height", "area", "peak", "group"]
_SCORES_READ = ["path", "score", "flagged", "nearest"]
_FLAGS = {"true": True, "false": False}


@dataclass(frozen=True)
class Result:
    """The result of a scan for one file."""

    record: ImageRecord
    content: int  # index of its content in the set; copies share it
    score: float
    probability: float | None  # None: not known, of so few images
    flagged: bool
    regions: list[Region]
    nearest: str  # path of the image that its most anomalous patch is nearest to


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file, as `to_csv` makes it. Raises RunError."""
    storage.write_bytes(path, to_csv(header, rows))


def to_csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    """Format a table as CSV in UTF-8; file names that are not valid UTF-8 keep their bytes."""
    text = io.StringIO()
    plain = csv.writer(text, lineterminator="\n")
    quoted = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in (header, *rows):
        # A carriage return ends a row for who reads it, but is not quoted by itself.
        (quoted if any("\r" in str(value) for value in row) else plain).writerow(row)
    return text.getvalue().encode("utf-8", "surrogateescape")


def round_as_written(score: float) -> float:
    """Round an image score as scores.csv has it: what follows from one follows from the other."""
    return float(to_cell(score))


def to_cell(value: Any) -> Any:
    """Format a value as all tables have it: nine digits, true or false, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:.9g}" if isinstance(value, float) else value


def to_cells(
    path: str,
    score: float,
    probability: float | None,
    percentile: float,
    flagged: bool,
    regions: int,
    nearest: str,
    remarks: Sequence[str],
) -> list[Any]:
    """Format the columns of IMAGE_HEADER; probabilities have four decimal places, percentiles 2."""
    probable = "" if probability is None else f"{probability:.4f}"
    cells = [path, to_cell(score), probable, f"{percentile:.2f}", to_cell(flagged)]
    return [*cells, regions, nearest, "; ".join(remarks)]


def write_scores(folder: Path, results: Sequence[Result]) -> None:
    """Write scores.csv, most anomalous first."""
    scores = np.array([result.score for result in results])
    lower = percentiles(scores)
    figures = [result.record.figures for result in results]
    remarks = find_remarks(figures, find_limits(figures))
    rows = []
    for place, i in enumerate(rank(scores), start=1):
        one = results[i]
        count, path = len(one.regions), one.record.path
        cells = to_cells(
            path, one.score, one.probability, lower[i], one.flagged, count, one.nearest, remarks[i]
        )
        rows.append([place, *cells])
    write_table(folder / SCORES_FILE, SCORES_HEADER, rows)


def write_regions(folder: Path, results: Sequence[Result]) -> None:
    """Write regions.csv, images in input order, each image's highest peak first."""
    rows = [
        [result.record.path, n, r.x, r.y, r.width, r.height, r.area, to_cell(r.peak), r.group or ""]
        for result in results
        for n, r in enumerate(result.regions, start=1)
    ]
    write_table(folder / REGIONS_FILE, REGIONS_HEADER, rows)


def read_scores(
    folder: Path, paths: Sequence[str]
) -> tuple[NDArray[np.float64], list[str], NDArray[np.bool_]]:
    """Read score, nearest image and flag of each path [n] from scores.csv. Raises RunError."""
    file = folder / SCORES_FILE
    try:
        rows = {row["path"]: row for row in _read_table(file, _SCORES_READ)}
        scores = np.array([float(rows[path]["score"]) for path in paths])
        nearest = [rows[path]["nearest"] for path in paths]
        flagged = np.array([_FLAGS[rows[path]["flagged"]] for path in paths])
    except (KeyError, ValueError) as error:
        raise storage.damaged(file, error) from error
    if not np.isfinite(scores).all():
        raise storage.damaged(file, "a score is no number")
    return scores, nearest, flagged


def read_regions(folder: Path, images: Iterable[ImageRecord]) -> dict[str, list[Region]]:
    """Read the regions of images from regions.csv, by path. Raises RunError."""
    file = folder / REGIONS_FILE
    sizes = {image.path: (image.width, image.height) for image in images}
    regions: dict[str, list[Region]] = {}
    try:
        for row in _read_table(file, REGIONS_HEADER):
            x, y, width, height, area, group = (
                int(row[name] or 0) for name in ("x", "y", "width", "height", "area", "group")
            )
            region = Region(x, y, width, height, area, float(row["peak"]), group)
            if not _is_within(region, *sizes[row["path"]]):
                raise ValueError("a region that its image does not have")
            regions.setdefault(row["path"], []).append(region)
    except (KeyError, ValueError) as error:
        raise storage.damaged(file, error) from error
    return regions


def _read_table(file: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    try:
        with open(file, encoding="utf-8", errors="surrogateescape", newline="") as opened:
            text = opened.read()
        reader = csv.DictReader(io.StringIO(text, newline=""))
        rows = list(reader)
    except OSError as error:
        raise storage.unreadable(file, error) from error
    except csv.Error as error:
        raise storage.damaged(file, error) from error
    if not text.endswith("\n"):
        raise storage.damaged(file, "it ends within a row")
    missing = set(columns).difference(reader.fieldnames or ())
    if missing:
        raise storage.damaged(file, f"no column {min(missing)!r}")
    if any(None in row or None in row.values() for row in rows):
        raise storage.damaged(file, "a row of another length than the first")
    return rows


def _is_within(region: Region, width: int, height: int) -> bool:
    """Say whether a region can be one of an image of width x height pixels."""
    across = 0 <= region.x < region.x + region.width <= width
    down = 0 <= region.y < region.y + region.height <= height
    filled = 0 < region.area <= region.width * region.height
    return across and down and filled and region.group >= 0 and math.isfinite(region.peak)


def rank(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """Order scores [n] from the largest to the smallest, as indices; equal ones in input order."""
    return np.argsort(-scores, kind="stable")


def percentiles(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the share of the other images that score lower than each image [n], in %."""
    return np.searchsorted(np.sort(scores), scores) / max(1, len(scores) - 1) * 100
