"""labels.sqlite: what people said of a run's images, as a history that only grows.

    history      id, time, path, label, who, action, undoes
    group_names  id, time, group_number, name, members, who

A label is normal, anomalous or unsure; NULL takes it away. Rows that were written together share
their action, the id of the first. The row of an undo says which action it undoes, and what holds
again. What holds now is the last row of each path. A change is on the disk when the call returns,
a power cut included.
"""

import datetime
import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self, get_args

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
"""


@dataclass(frozen=True)
class GroupName:
    """A name that was given to a group of regions, and the regions that it had then."""

    group: int
    name: str  # "": the name was taken away
    members: list[Box]


@dataclass
class _Said:
    """What was said of one image and was not undone, the latest last: action, who, label."""

    labels: list[tuple[int, str, Mark | None]] = field(default_factory=list)

    @property
    def now(self) -> Mark | None:
        return self.labels[-1][2] if self.labels else None


class LabelStore:
    """The labels of one run. One process at a time may write; threads may share it."""

    def __init__(self, file: Path) -> None:
        """Open the file, or make it. Raises RunError if it cannot be used."""
        self._file = file
        self._lock = threading.RLock()
        self._said: dict[str, _Said] = {}
        self._changed: list[tuple[int, str]] = []  # id of the row, path
        with self._sqlite("read"):
            self._database = sqlite3.connect(file, check_same_thread=False, isolation_level=None)
            # EXTRA: as FULL, and the folder is synced too when the journal goes, so that a power
            # cut cannot bring a finished transaction's journal back.
            self._database.execute("PRAGMA synchronous = EXTRA")
            self._database.executescript(_SCHEMA)
            rows = self._database.execute(
                "SELECT id, path, label, who, action, undoes FROM history ORDER BY id"
            ).fetchall()
            named = self._database.execute(
                "SELECT group_number, name, members FROM group_names ORDER BY id"
            ).fetchall()
        self._names = [_to_name(*row) for row in named]
        for row in rows:
            if row[2] is not None and row[2] not in get_args(Mark):
                raise RunError(
                    f"{str(file)!r} is damaged (a label {row[2]!r}): move it away to begin anew"
                )
            self._apply(*row)

    def close(self) -> None:
        with self._lock:
            self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def last(self) -> int:
        """Id of the latest row of the history; 0: there is none."""
        with self._lock:
            return self._changed[-1][0] if self._changed else 0

    def labels(self) -> dict[str, Mark]:
        """What holds now, by path; images without a label are left out."""
        with self._lock:
            return {path: said.now for path, said in self._said.items() if said.now is not None}

    def mentioned(self) -> set[str]:
        """Paths that the history has a row of."""
        with self._lock:
            return set(self._said)

    def changes(self, since: int) -> dict[str, Mark | None]:
        """What holds now of the paths with a row behind the row `since`."""
        with self._lock:
            paths: list[str] = []
            for number, path in reversed(self._changed):
                if number <= since:
                    break
                paths.append(path)
            return {path: self._said[path].now for path in reversed(paths)}

    def add(self, labels: Mapping[str, Mark | None], who: str) -> None:
        """Label images, all of them or, if that fails, none. Raises RunError."""
        with self._lock:
            self._write(list(labels.items()), who, None)

    def undo(self, who: str) -> list[str]:
        """Take back the latest change of one `who`; gives the paths of which something else holds.

        Images that somebody else has labelled since keep that label.
        """
        with self._lock:
            said = {path: said.labels for path, said in self._said.items() if said.labels}
            mine = [labels[-1][0] for labels in said.values() if labels[-1][1] == who]
            if not mine:
                return []
            action = max(mine)
            back = [
                (path, labels[-2][2] if len(labels) > 1 else None)
                for path, labels in said.items()
                if labels[-1][0] == action
            ]
            self._write(back, who, action)
            return [path for path, _ in back]

    def name_group(self, group: int, name: str, members: Iterable[Box], who: str) -> None:
        """Name a group of regions; "" takes the name away. Raises RunError."""
        # JSON in ASCII: paths that are not valid UTF-8 survive as escapes.
        boxes = json.dumps(list(members))
        with self._lock:
            with self._sqlite("write"):
                self._database.execute(
                    "INSERT INTO group_names (time, group_number, name, members, who) "
                    "VALUES (?, ?, ?, ?, ?)",
                    (_now(), group, name, boxes, who),
                )
            self._names.append(_to_name(group, name, boxes))

    def group_names(self) -> list[GroupName]:
        """All names that were ever given, in their order."""
        with self._lock:
            return list(self._names)

    def _write(
        self, labels: Sequence[tuple[str, Mark | None]], who: str, undoes: int | None
    ) -> None:
        time, rows = _now(), []
        with self._sqlite("write"), self._transaction():
            action = self._next_id()
            for number, (path, label) in enumerate(labels, start=action):
                rows.append((number, _to_column(path), label, who, action, undoes))
            self._database.executemany(
                "INSERT INTO history (id, path, label, who, action, undoes, time) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                [(*row, time) for row in rows],
            )
        for row in rows:
            self._apply(*row)

    def _next_id(self) -> int:
        (last,) = self._database.execute("SELECT COALESCE(MAX(id), 0) FROM history").fetchone()
        return int(last) + 1

    def _apply(
        self,
        number: int,
        column: str | bytes,
        label: Mark | None,
        who: str,
        action: int,
        undoes: int | None,
    ) -> None:
        """Take a row of the history into memory."""
        path = column if isinstance(column, str) else column.decode("utf-8", "surrogateescape")
        said = self._said.setdefault(path, _Said())
        if undoes is None:
            said.labels.append((action, who, label))
        elif said.labels and said.labels[-1][0] == undoes:
            said.labels.pop()
        self._changed.append((number, path))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
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


def _to_name(group: int, name: str, boxes: str) -> GroupName:
    return GroupName(group, name, [(p, x, y, w, h) for p, x, y, w, h in json.loads(boxes)])


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
