"""The tables of a run: scores.csv and regions.csv."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..scores.maps import Region
from . import storage
from .info import ImageRecord

SCORES_FILE = "scores.csv"
REGIONS_FILE = "regions.csv"

SCORES_HEADER = ["rank", "path", "score", "percentile", "flagged", "regions", "nearest"]


REGIONS_HEADER = ["path", "region", "x", "y", "width", "height", "area", "peak", "group"]


@dataclass(frozen=True)
class Result:
    """What a scan found out about one file."""

    record: ImageRecord
    content: int  # index of its content in the set; copies share it
    score: float
    flagged: bool
    regions: list[Region]
    nearest: str  # path of the image that its most anomalous patch is nearest to


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file, as `to_csv` makes it. Raises RunError."""
    storage.write_bytes(path, to_csv(header, rows))


def to_csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    """A table as CSV in UTF-8; file names that are not valid UTF-8 keep their bytes."""
    text = io.StringIO()
    plain = csv.writer(text, lineterminator="\n")
    quoted = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in (header, *rows):
        # A carriage return ends a row for who reads it, but is not quoted by itself.
        (quoted if any("\r" in str(value) for value in row) else plain).writerow(row)
    return text.getvalue().encode("utf-8", "surrogateescape")


def round_as_written(score: float) -> float:
    """An image score as scores.csv has it: what follows from one follows from the other."""
    return float(_write_score(score))


def _write_score(score: float) -> str:
    return f"{score:.9g}"


def write_scores(folder: Path, results: Sequence[Result]) -> None:
    """Write scores.csv, most anomalous first."""
    scores = np.array([result.score for result in results])
    order, lower = rank(scores), percentiles(scores)
    rows = []
    for place, i in enumerate(order, start=1):
        result = results[i]
        flag = "true" if result.flagged else "false"
        score, percentile = _write_score(result.score), f"{lower[i]:.2f}"
        rows.append(
            [
                place,
                result.record.path,
                score,
                percentile,
                flag,
                len(result.regions),
                result.nearest,
            ]
        )
    write_table(folder / SCORES_FILE, SCORES_HEADER, rows)


def write_regions(folder: Path, results: Sequence[Result]) -> None:
    """Write regions.csv, images in input order, each image's highest peak first."""
    rows = [
        [result.record.path, n, r.x, r.y, r.width, r.height, r.area, f"{r.peak:.9g}", r.group or ""]
        for result in results
        for n, r in enumerate(result.regions, start=1)
    ]
    write_table(folder / REGIONS_FILE, REGIONS_HEADER, rows)


def rank(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """Indices [n] from the largest score to the smallest; equal scores in input order."""
    return np.argsort(-scores, kind="stable")


def percentiles(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of the other images that score lower than each image [n], in %."""
    return np.searchsorted(np.sort(scores), scores) / max(1, len(scores) - 1) * 100
