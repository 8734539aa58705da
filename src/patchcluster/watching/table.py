"""The table of a watch: its results, its memory of what was scored, and what is still to be told.

Rows are only ever appended, each with one write that is on disk before anybody hears of it. A kill
can leave a torn row at the end, which the next start takes off.
"""

import csv
import dataclasses
import io
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from errno import ENOSPC
from pathlib import Path
from typing import IO, Annotated, Any, ClassVar

from annotated_types import Ge
from pydantic import ConfigDict, TypeAdapter, ValidationError

from .. import runfolder, scoring, storage
from ..errors import RunError
from ..runfolder import round_as_written
from ..scoring import ScoredImage

HEADER = [
    *scoring.HEADER, "time", "sha256", "file_size", "modified", "threshold", "boxes",
    "same_as", "skipped",
]  # fmt: skip
_ADVICE = "Make room or choose another -o; the same command goes on where it stopped"
_MOST_BOXES = 1000  # of an image: a cell of a CSV file cannot hold any number
_BINARY = getattr(os, "O_BINARY", 0)  # Windows


@dataclass(frozen=True)
class Box:
    """A region of a map, in pixels of the image; x to the right, y downwards."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", allow_inf_nan=False)

    x: int
    y: int
    width: int
    height: int
    area: int
    peak: float


@dataclass(frozen=True)
class Row:
    """What a watch says of a file, once it has settled.

    `path` is absolute; `score`, `percentile`, `flagged`, `nearest` and `same_as` as in
    `ScoredImage`, the first three None if the file cannot be read: `skipped` then says why, and is
    "" otherwise; `regions`: highest peak first; `threshold`: of the run; `time`: when, UTC;
    `sha256`: of the file, "" if it could not be read at all; `file_size` in bytes; `modified`: its
    time of change in ns.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", allow_inf_nan=False)

    path: str
    score: float | None
    percentile: float | None
    flagged: bool | None
    regions: list[Box]
    nearest: str
    time: str
    sha256: str
    file_size: Annotated[int, Ge(0)]
    modified: int
    threshold: float
    same_as: str
    skipped: str

    @staticmethod
    def of_image(image: ScoredImage, modified: int, threshold: float) -> "Row":
        """Figures are as the table has them."""
        regions = [
            Box(r.x, r.y, r.width, r.height, r.area, round_as_written(r.peak))
            for r in image.regions[:_MOST_BOXES]
        ]
        return Row(
            image.path, round_as_written(image.score), round(image.percentile, 2), image.flagged,
            regions, image.nearest, _now(), image.record.sha256, image.record.bytes, modified,
            threshold, image.same_as, "",
        )  # fmt: skip

    @staticmethod
    def of_unreadable(
        path: str, reason: str, sha256: str, size: int, modified: int, threshold: float
    ) -> "Row":
        return Row(
            path, None, None, None, [], "", _now(), sha256, size, modified, threshold, "", reason
        )

    def as_json(self) -> str:
        """One JSON object in a line of ASCII: bytes of paths that are not UTF-8 are escaped."""
        return json.dumps(dataclasses.asdict(self))

    def to_line(self) -> bytes:
        """Its row of the table."""
        boxes = [dataclasses.asdict(box) for box in self.regions]
        cells = dataclasses.asdict(self) | {
            "score": "" if self.score is None else f"{self.score:.9g}",
            "percentile": "" if self.percentile is None else f"{self.percentile:.2f}",
            "flagged": "" if self.flagged is None else str(self.flagged).lower(),
            "regions": "" if self.score is None else len(boxes),
            "boxes": json.dumps(boxes, separators=(",", ":")) if boxes else "",
        }
        return runfolder.to_csv([cells[name] for name in HEADER], [])

    @staticmethod
    def from_cells(cells: dict[str, str]) -> "Row":
        """The row of some cells by column. Raises ValueError if they are none of a table."""
        value: dict[str, Any] = dict(cells)
        value["regions"] = json.loads(value.pop("boxes") or "[]")
        for name in ("score", "percentile", "flagged"):
            value[name] = value[name] or None
        try:
            row: Row = _ROW.validate_python(value)
        except ValidationError as error:
            raise ValueError(str(error.errors()[0]["msg"])) from error
        return row


_ROW = TypeAdapter(Row)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Table:
    """A table that is open for appending; `end`: where its last whole row ends."""

    def __init__(self, path: Path, descriptor: int, end: int) -> None:
        self.path = path
        self.end = end
        self._descriptor = descriptor

    def append(self, row: Row) -> None:
        """Append a row; it is on disk afterwards, or not there at all. Raises RunError."""
        self._append(row.to_line())

    def _append(self, data: bytes) -> None:
        if not storage.is_at(self.path, self._descriptor):
            raise RunError(
                f"{str(self.path)!r} was moved or removed while it was written: start again"
            )
        with storage.writing(self.path, _ADVICE):
            try:
                if os.write(self._descriptor, data) < len(data):
                    raise OSError(ENOSPC, os.strerror(ENOSPC))
                os.fsync(self._descriptor)
            except OSError:
                with suppress(OSError):
                    os.ftruncate(self._descriptor, self.end)
                raise
        self.end += len(data)

    def read(self, start: int = 0) -> Iterator[tuple[dict[str, str], int]]:
        """The cells of the rows from a place on, by column, and where each ends.

        No cells: not a row that a watch has written.
        """
        with open(self.path, "rb") as file:
            file.seek(start)
            for line, end in _split(file):
                if end > self.end:
                    return
                cells = _parse(line)
                whole = len(cells) == len(HEADER) and cells != HEADER
                yield dict(zip(HEADER, cells, strict=True)) if whole else {}, end


@contextmanager
def open_table(path: Path, tell: Callable[[str], None]) -> Iterator[Table]:
    """Hold a table, made if it is not there, and mended if a kill has torn its last row.

    Raises RunError if another process holds it, or it cannot be read or written or is another file.
    """
    with storage.writing(path, _ADVICE):
        path.parent.mkdir(parents=True, exist_ok=True)
    lock = companion(path, "lock")
    taken = f"{str(path)!r} is written by another process: end it, or choose another -o"
    with storage.hold(lock, taken):
        with storage.writing(path, _ADVICE):
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | _BINARY
            descriptor = os.open(path, flags, 0o666)
        try:
            with storage.writing(path, _ADVICE):
                end = _mend(path, descriptor, tell)
            table = Table(path, descriptor, end)
            if not end:
                table._append(runfolder.to_csv(HEADER, []))
            yield table
        finally:
            os.close(descriptor)


def companion(table: Path, kind: str) -> Path:
    """A hidden file beside a table, of a kind."""
    return table.with_name(f".{table.name}.{kind}")


def _mend(path: Path, descriptor: int, tell: Callable[[str], None]) -> int:
    """Take off a torn last row; gives where the last whole one ends. Raises RunError."""
    end = 0
    with open(path, "rb") as file:
        for line, after in _split(file):
            if not end and _parse(line) != HEADER:
                raise _other(path)
            end = after
        file.seek(end)
        torn = file.read()
    if not torn:
        return end
    if not end and not runfolder.to_csv(HEADER, []).startswith(torn):
        raise _other(path)
    # A quotation mark too many makes all that follows look like one row: that is no tear.
    if any(len(_parse(line)) == len(HEADER) for line in torn.split(b"\n")[1:-1]):
        raise RunError(f"{str(path)!r} is damaged after byte {end}: mend it, or choose another -o")
    os.ftruncate(descriptor, end)
    if end:
        tell(f"the last row of {str(path)!r} was torn, and was taken off: its image comes again")
    return end


def _other(path: Path) -> RunError:
    return RunError(f"{str(path)!r} is another file than the table of a watch: choose another -o")


def _split(file: IO[bytes]) -> Iterator[tuple[bytes, int]]:
    """The whole rows of a table from where its file stands, and where each ends.

    A row ends where a line does, outside quotation marks.
    """
    lines: list[bytes] = []
    quotes, end = 0, file.tell()
    for line in file:
        lines.append(line)
        quotes += line.count(b'"')
        if line.endswith(b"\n") and quotes % 2 == 0:
            row = b"".join(lines)
            end += len(row)
            yield row, end
            lines, quotes = [], 0


def _parse(line: bytes) -> list[str]:
    text = line.decode("utf-8", "surrogateescape").removesuffix("\n")
    try:
        return next(csv.reader(io.StringIO(text, newline="")), [])
    except csv.Error:  # a NUL, or a cell over the limit
        return []
