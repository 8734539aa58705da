"""The table of a watch: its results, by which a restart knows what was scored.

Rows are only ever appended, each with one write that is on disk before the row is given to anybody.
A kill can leave a torn row at the end, which the next start removes.
"""

import csv
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from errno import ENOSPC
from pathlib import Path
from typing import IO

from ..errors import RunError
from ..pipeline.scoring import ScoredImage
from ..runs import storage, tables
from ..runs.tables import round_as_written
from .arrivals import NEW, Known

HEADER = [
    *tables.IMAGE_HEADER, "time", "sha256", "file_size", "modified", "threshold", "boxes",
    "same_as", "skipped",
]  # fmt: skip
_HEADER_LINE = tables.to_csv(HEADER, [])
_ADVICE = "Make room or choose another -o; the same command resumes"
_MOST_BOXES = 1000  # of an image: readers of CSV files limit the size of a cell
_BINARY = getattr(os, "O_BINARY", 0)  # Windows
_UTC = b"+00:00,"  # how the time ends, in each row


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@dataclass(frozen=True)
class Box:
    """A region of a map, in pixels of the image; x to the right, y downwards."""

    x: int
    y: int
    width: int
    height: int
    area: int
    peak: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """A file that has settled, scored or skipped.

    `path` is absolute; `score`, `probability`, `percentile`, `flagged`, `nearest`, `remarks` and
    `same_as` as in `ScoredImage`, the first four None if the file cannot be read: `skipped` then
    says why, and is "" otherwise; `regions`: highest peak first; `threshold`: of the run; `time`:
    when, UTC; `sha256`: of the file, "" if it could not be read at all; `file_size` in bytes;
    `modified`: its time of change in ns. Figures have the digits of the table.
    """

    path: str
    score: float | None = None
    probability: float | None = None
    percentile: float | None = None
    flagged: bool | None = None
    regions: list[Box] = field(default_factory=list)
    nearest: str = ""
    remarks: list[str] = field(default_factory=list)
    time: str = field(default_factory=_now)
    sha256: str = ""
    file_size: int
    modified: int
    threshold: float
    same_as: str = ""
    skipped: str = ""

    def with_scores(self, image: ScoredImage) -> "Row":
        regions = [
            Box(r.x, r.y, r.width, r.height, r.area, round_as_written(r.peak))
            for r in image.regions[:_MOST_BOXES]
        ]
        return replace(
            self, score=image.score, probability=image.probability,
            percentile=round(image.percentile, 2), flagged=image.flagged, regions=regions,
            nearest=image.nearest, remarks=list(image.remarks), same_as=image.same_as,
        )  # fmt: skip

    def as_json(self) -> str:
        """Return one JSON object in a line of ASCII; bytes that are not UTF-8 are escaped."""
        return json.dumps(asdict(self))

    def to_line(self) -> bytes:
        """Return the row of the table."""
        cells = asdict(self)
        boxes = cells["regions"]
        cells["boxes"] = json.dumps(boxes, separators=(",", ":")) if boxes else ""
        cells["remarks"] = self.remarks or ""
        cells["regions"] = "" if self.score is None else len(boxes)
        if self.score is not None:
            image = [cells[name] for name in tables.IMAGE_HEADER]
            cells |= zip(tables.IMAGE_HEADER, tables.to_cells(*image), strict=True)
        return tables.to_csv([cells[name] for name in HEADER], [])


class Table:
    """A table open for appending; `known`: the state of each file at its last row."""

    def __init__(self, path: Path, descriptor: int, tell: Callable[[str], None]) -> None:
        """Remove a torn last row. Raises RunError if the file is no table, or OSError."""
        self.known: dict[str, Known] = {}
        self._path = path
        self._descriptor = descriptor
        self._end = 0  # of the last whole row, in bytes
        self._load(tell)
        if not self._end:
            self._write(_HEADER_LINE)

    def append(self, row: Row) -> None:
        """Append a row: it is on disk afterwards, or not there at all. Raises RunError."""
        if not storage.is_at(self._path, self._descriptor):
            raise RunError(
                f"{str(self._path)!r} was moved or removed while it was written: start again"
            )
        with storage.writing(self._path, _ADVICE):
            self._write(row.to_line())

    def _write(self, data: bytes) -> None:
        try:
            if os.write(self._descriptor, data) < len(data):
                raise OSError(ENOSPC, os.strerror(ENOSPC))
            os.fsync(self._descriptor)
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._descriptor, self._end)
            raise
        self._end += len(data)

    def _load(self, tell: Callable[[str], None]) -> None:
        name, header = repr(str(self._path)), HEADER
        with open(self._path, "rb") as file:
            for cells, end in _split(file):
                if self._end:
                    self._remember(cells)
                else:
                    header = cells
                self._end = end
            file.seek(self._end)
            torn = file.read()
        if header != HEADER or not (self._end or _HEADER_LINE.startswith(torn)):
            raise RunError(f"{name} is another file than the table of a watch: choose another -o")
        if torn.count(_UTC) > 1:  # after an unpaired quotation mark, all rows look like one
            raise RunError(
                f"{name} is damaged after byte {self._end}: mend it, or choose another -o"
            )
        if torn:
            os.ftruncate(self._descriptor, self._end)
        if torn and self._end:
            tell(f"the last row of {name} was torn, and was removed: its image comes again")

    def _remember(self, cells: list[str]) -> None:
        row = dict(zip(HEADER, cells, strict=False))
        with suppress(KeyError, ValueError):  # edited: the file comes again
            path, sha256 = row["path"], row["sha256"]
            stamp = (int(row["file_size"]), int(row["modified"]), 0)
            if sha256:
                self.known[path] = Known(stamp, sha256)
            else:
                before = self.known.get(path, NEW).sha256
                self.known[path] = Known(stamp, before, row["skipped"])


@contextmanager
def open_table(path: Path, tell: Callable[[str], None]) -> Iterator[Table]:
    """Hold a table, which is created if it is missing.

    Raises RunError if another process holds it, or it cannot be read or written or is another file.
    """
    with storage.writing(path, _ADVICE):
        path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    taken = f"{str(path)!r} is written by another process: end it, or choose another -o"
    with storage.hold(lock, taken):
        with storage.writing(path, _ADVICE):
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | _BINARY
            descriptor = os.open(path, flags, 0o666)
        try:
            with storage.writing(path, _ADVICE):
                table = Table(path, descriptor, tell)
            yield table
        finally:
            os.close(descriptor)


def _split(file: IO[bytes]) -> Iterator[tuple[list[str], int]]:
    """Yield the cells of each whole row, and where it ends in bytes; stop at what is no whole row.

    The reader asks for a further line only within quotation marks.
    """
    end = 0

    def read_lines() -> Iterator[str]:
        nonlocal end
        for line in file:
            if line.endswith(b"\n"):
                end += len(line)
                yield line.decode("utf-8", "surrogateescape")

    with suppress(csv.Error):
        for cells in csv.reader(read_lines(), strict=True):
            yield cells, end
