"""Finds the files of a folder that have arrived, have settled and are not known yet.

The folder is polled: network shares do not report changes.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ..images.finding import walk
from ..images.inputs import natural_key, reason
from ..runs import runfolder

Stamp = tuple[int, int, int]  # size in bytes; mtime and ctime in ns


@dataclass(slots=True)
class Known:
    """The state of a file when it was last seen.

    stamp: its ctime is 0 if the file is known from the table only. sha256: of the content that was
    last read, or "". error: why the file could not be read at all, or "". retry: when to try again.
    """

    stamp: Stamp
    sha256: str = ""
    error: str = ""
    retry: float = 0.0


NEW = Known((-1, -1, -1))  # a file that was never seen


@dataclass
class Arrivals:
    """Finds the files that arrive in a folder.

    folder: absolute; settle: seconds that a file must not have changed for; table: a file to
    ignore; tell: called with lines about folders that cannot be listed.
    """

    folder: Path
    settle: float
    table: Path
    tell: Callable[[str], None]
    known: dict[str, Known] = field(default_factory=dict)  # by absolute path; the caller adds to it
    waiting: dict[str, tuple[Stamp, float]] = field(default_factory=dict)  # unchanged since when
    _unlisted: set[str] = field(default_factory=set)  # folders that could not be listed

    def look(self, now: float) -> list[tuple[str, Stamp]]:
        """Return the files that have settled and are not known, in the order of settling.

        now: seconds of a monotonic clock.
        """
        settled, waiting = [], {}
        for path, stamp in self._list().items():
            if self._is_known(path, stamp, now):
                continue
            before, since = self.waiting.get(path, (stamp, now))
            if before != stamp:
                since = now
            if now - since >= self.settle:
                settled.append((since, natural_key(path), (path, stamp)))
            else:
                waiting[path] = (stamp, since)
        self.waiting = waiting
        return [file for _, _, file in sorted(settled, key=lambda one: one[:2])]

    def take_as_known(self) -> None:
        """Ignore the files that are in the folder now, unless they change."""
        for path, stamp in self._list().items():
            if not self._is_known(path, stamp, 0):
                self.known[path] = Known(stamp)

    def _is_known(self, path: str, stamp: Stamp, now: float) -> bool:
        """Return whether a file is unchanged since it was last seen, and not due for a retry."""
        known = self.known.get(path)
        if known is None or known.stamp[:2] != stamp[:2]:
            return False
        if not known.stamp[2]:
            known.stamp = stamp
        return known.stamp == stamp and (not known.error or now < known.retry)

    def _list(self) -> dict[str, Stamp]:
        """Return the files in the folder, and report folders that cannot be listed."""
        files, unlisted = {}, set()
        for path in walk(self.folder, runfolder.is_run):
            stamp = read_stamp(path)
            if path == str(self.folder) or os.path.isdir(path):
                unlisted.add(path)
            elif stamp is not None and not self._is_table(path):
                files[path] = stamp
        for path in sorted(unlisted - self._unlisted):
            self.tell(f"{path!r} cannot be listed ({_why_unlisted(path)}): waiting until it can")
        for path in sorted(self._unlisted - unlisted):
            self.tell(f"{path!r} can be listed again")
        self._unlisted = unlisted
        return files

    def _is_table(self, path: str) -> bool:
        return os.path.basename(path) == self.table.name and (
            os.path.realpath(path) == os.path.realpath(self.table)
        )


def _why_unlisted(folder: str) -> str:
    try:
        os.scandir(folder).close()
    except OSError as error:
        return reason(error)
    return "it was gone for a moment"


def read_stamp(path: str) -> Stamp | None:
    """Return the stamp of a file, or of a link that leads nowhere; None: there is none."""
    for follow in (True, False):
        try:
            status = os.stat(path, follow_symlinks=follow)
        except OSError:
            continue
        return status.st_size, status.st_mtime_ns, status.st_ctime_ns
    return None
