"""labels.sqlite: the labels of a run's images, as a history that only grows.

    history      id, time, path, label, who, action, undoes
    group_names  id, time, group_number, name, members, who

A label is normal, anomalous or unsure; NULL removes it. The current label of a path is that of its
last row. Rows that were written together share their action, the id of the first. A row with
`undoes` restores the label from before that action. A change is on the disk when the call returns,
also after a power cut.
"""

import datetime
import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from ..errors import RunError

Mark = Literal["normal", "anomalous", "unsure"]
Box = tuple[str, int, int, int, int]  # path of the image; x, y, width, height of the region

_SCHEMA = """
CREATE TABLE IF NOT EXISTS history (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    time TEXT NOT NULL,
    path NOT NULL,  -- TEXT; BLOB if it is not valid UTF-8
    label TEXT CHECK (label IN ('normal', 'anomalous', 'unsure')),
    who TEXT NOT NULL,
    action INTEGER NOT NULL,
    undoes INTEGER
);
CREATE TABLE IF NOT EXISTS group_names (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    time TEXT NOT NULL,
    group_number INTEGER NOT NULL,
    name TEXT NOT NULL,
    members TEXT NOT NULL,  -- JSON: [path, x, y, width, height] of its regions at that time
    who TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS by_path ON history (path);
-- Labels that were not undone, and of these the last of each path.
CREATE TEMP VIEW standing AS SELECT * FROM history AS said WHERE undoes IS NULL AND NOT EXISTS (
    SELECT 1 FROM history WHERE path = said.path AND undoes = said.action
);
CREATE TEMP VIEW latest AS SELECT * FROM standing AS said WHERE NOT EXISTS (
    SELECT 1 FROM standing WHERE path = said.path AND id > said.id
);
"""
# The last action of one `who` that still holds: the paths for which it does, their labels before.
_LAST_ACTION = """
SELECT action, path, (
    SELECT label FROM standing WHERE path = latest.path AND id < latest.id ORDER BY id DESC LIMIT 1
)
FROM latest WHERE action = (SELECT action FROM latest WHERE who = ? ORDER BY id DESC LIMIT 1)
"""
_INSERT = """
INSERT INTO history (id, time, path, label, who, action, undoes) VALUES (?, ?, ?, ?, ?, ?, ?)
"""


@dataclass(frozen=True)
class GroupName:
    """A name that was given to a group of regions, and the regions that it had then."""

    group: int
    name: str  # "": the name was removed
    members: list[Box]


class LabelStore:
    """The labels of one run. One process at a time may write; threads may share it."""

    def __init__(self, file: Path) -> None:
        """Open the file, or create it. Raises RunError if it cannot be used."""
        self._file = file
        self._lock = threading.RLock()
        with self._sqlite("read"):
            self._database = sqlite3.connect(file, check_same_thread=False, isolation_level=None)
            # EXTRA: as FULL, and the folder is synced too when the journal is removed, so that a
            # power cut cannot bring a finished transaction's journal back.
            self._database.execute("PRAGMA synchronous = EXTRA")
            self._database.executescript(_SCHEMA)
        self.group_names()  # fails now rather than later if the table has other columns
        labels = {label for (label,) in self._read("SELECT DISTINCT label FROM history")}
        for label in labels - {None, *get_args(Mark)}:
            raise RunError(
                f"{str(file)!r} is damaged (a label {label!r}): move it away to begin anew"
            )

    def close(self) -> None:
        with self._lock:
            self._database.close()

    @property
    def last(self) -> int:
        """Id of the latest row of the history; 0: there is none."""
        return int(self._read("SELECT COALESCE(MAX(id), 0) FROM history")[0][0])

    def labels(self) -> dict[str, Mark]:
        """Return the current labels by path, without images that have none."""
        return {path: label for path, label in self.changes(0).items() if label is not None}

    def changes(self, since: int) -> dict[str, Mark | None]:
        """Return the current labels of the paths with a row after the row `since`."""
        rows = self._read("SELECT path, label FROM history WHERE id > ? ORDER BY id", since)
        return {_to_path(column): label for column, label in rows}

    def add(self, labels: Mapping[str, Mark | None], who: str) -> None:
        """Label images, all of them or, if that fails, none. Raises RunError."""
        with self._lock:
            self._write({_to_column(path): label for path, label in labels.items()}, who, None)

    def undo(self, who: str) -> list[str]:
        """Undo the latest action of one `who` and return the paths whose labels changed.

        Images that somebody else has labelled since keep that label.
        """
        with self._lock:
            rows = self._read(_LAST_ACTION, who)
            if rows:
                self._write({column: label for _, column, label in rows}, who, rows[0][0])
            return [_to_path(column) for _, column, _ in rows]

    def name_group(self, group: int, name: str, members: Iterable[Box], who: str) -> None:
        """Name a group of regions; "" removes the name. Raises RunError."""
        # JSON in ASCII: paths that are not valid UTF-8 survive as escapes.
        row = (_now(), group, name, json.dumps(list(members)), who)
        with self._lock, self._sqlite("write"):
            self._database.execute(
                "INSERT INTO group_names (time, group_number, name, members, who) "
                "VALUES (?, ?, ?, ?, ?)",
                row,
            )

    def group_names(self) -> list[GroupName]:
        """Return all names that were ever given, in their order."""
        rows = self._read("SELECT group_number, name, members FROM group_names ORDER BY id")
        return [
            GroupName(group, name, [(p, x, y, w, h) for p, x, y, w, h in json.loads(boxes)])
            for group, name, boxes in rows
        ]

    def _read(self, query: str, *values: object) -> list[Any]:
        with self._lock, self._sqlite("read"):
            return self._database.execute(query, values).fetchall()

    def _write(
        self, labels: Mapping[str | bytes, Mark | None], who: str, undoes: int | None
    ) -> None:
        """Append a row for each path, in one transaction."""
        action = self.last + 1
        rows = [
            (number, _now(), column, label, who, action, undoes)
            for number, (column, label) in enumerate(labels.items(), start=action)
        ]
        with self._sqlite("write"):
            self._database.execute("BEGIN IMMEDIATE")
            try:
                self._database.executemany(_INSERT, rows)
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise

    @contextmanager
    def _sqlite(self, doing: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise RunError(
                f"cannot {doing} {str(self._file)!r} ({error}): make room, or end what else uses "
                "it, and try again"
            ) from error


def _to_column(path: str) -> str | bytes:
    try:
        path.encode()
    except UnicodeEncodeError:
        return path.encode("utf-8", "surrogateescape")
    return path


def _to_path(column: str | bytes) -> str:
    return column if isinstance(column, str) else column.decode("utf-8", "surrogateescape")


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
