"""Which files of a folder have arrived and settled, and are not known yet.

By looking at the folder again and again: shares of a network tell nobody of their changes.
"""

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from ..inputs import natural_key, reason, walk

RETRY = 30.0  # seconds after which a file that could not be read is tried again

Stamp = tuple[int, int, int]  # bytes, time of change, time of change of what is said of it; in ns


@dataclass(slots=True)
class _Known:
    stamp: Stamp  # its last is 0 where the table is the only one to know the file
    sha256: bytes  # of what was seen last, b"" if nothing was
    unread: str  # why the file could not be read last time, or ""
    retry: float = 0.0  # when one that could not be read is tried again


class Memory:
    """The files that were seen, by their absolute paths; about 400 bytes each."""

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}

    def is_known(self, path: str, stamp: Stamp, now: float) -> bool:
        """Whether a file is as it was when it was seen last, and need not be tried again."""
        known = self._known.get(path)
        if known is None or known.stamp[:2] != stamp[:2]:
            return False
        if not known.stamp[2]:
            known.stamp = stamp
        return known.stamp == stamp and (not known.unread or now < known.retry)

    def has_content(self, path: str, sha256: str) -> bool:
        """Whether a file was seen with these bytes last time that it could be read."""
        known = self._known.get(path)
        return known is not None and known.sha256 == bytes.fromhex(sha256)

    def has_failed(self, path: str, why: str) -> bool:
        """Whether a file could not be read last time, for the same reason."""
        known = self._known.get(path)
        return known is not None and known.unread == why

    def note(self, path: str, stamp: Stamp, sha256: str) -> None:
        """A file was seen."""
        self._known[path] = _Known(stamp, bytes.fromhex(sha256), "")

    def note_unread(self, path: str, stamp: Stamp, why: str, retry: float = 0.0) -> None:
        """A file could not be read."""
        known = self._known.get(path)
        content = b"" if known is None else known.sha256
        self._known[path] = _Known(stamp, content, why, retry)


@dataclass(frozen=True)
class Arrival:
    """A file that has settled, and how it was then."""

    path: str
    stamp: Stamp

    def is_still_so(self) -> bool:
        return read_stamp(self.path) == self.stamp


class Arrivals:
    """Looks at a folder again and again.

    Parameters: the folder, absolute; settle: seconds that a file must not have changed for;
    memory: files that are known; leave_out: folders; ours: files in it that are no images.
    """

    def __init__(
        self,
        folder: Path,
        settle: float,
        memory: Memory,
        leave_out: Callable[[Path], bool],
        ours: Collection[Path],
        tell: Callable[[str], None],
    ) -> None:
        self._folder = folder
        self._settle = settle
        self._memory = memory
        self._leave_out = leave_out
        self._ours = ours
        self._tell = tell
        self._waiting: dict[str, tuple[Stamp, float]] = {}  # and since when they are so
        self._told: set[str] = set()  # folders that cannot be listed

    @property
    def waiting(self) -> int:
        """How many files are there that have not settled."""
        return len(self._waiting)

    def look(self, now: float) -> list[Arrival]:
        """Files that have settled and are not known, those that settled first first.

        now: seconds, of a clock that only goes forward.
        """
        found = {
            path: stamp
            for path, stamp in self._list().items()
            if not self._memory.is_known(path, stamp, now)
        }
        settled, waiting = [], {}
        for path, stamp in found.items():
            before, since = self._waiting.get(path, (stamp, now))
            if before != stamp:
                since = now
            if now - since >= self._settle:
                settled.append((since, natural_key(path), Arrival(path, stamp)))
            else:
                waiting[path] = (stamp, since)
        self._waiting = waiting
        return [arrival for _, _, arrival in sorted(settled, key=lambda one: one[:2])]

    def take_as_known(self) -> None:
        """Never give what is there now, unless it changes."""
        for path, stamp in self._list().items():
            if not self._memory.is_known(path, stamp, 0):
                self._memory.note(path, stamp, "")

    def _list(self) -> dict[str, Stamp]:
        """The files that are there."""
        why = self._why_unlisted(self._folder)
        if why:
            self._tell_once(str(self._folder), f"cannot look into it ({why}): waiting")
            return {}
        unlisted, files = set(), {}
        for path in walk(self._folder, self._leave_out):
            stamp = read_stamp(path)
            if stamp is None or self._is_ours(path):
                continue
            if os.path.isdir(path):
                unlisted.add(path)
                self._tell_once(path, "cannot be listed: what is in it is not scored")
            else:
                files[path] = stamp
        for path in self._told - unlisted:
            self._tell(f"{path!r} can be listed again")
        self._told &= unlisted
        return files

    def _why_unlisted(self, folder: Path) -> str:
        try:
            os.scandir(folder).close()
        except OSError as error:
            return reason(error)
        return ""

    def _tell_once(self, path: str, what: str) -> None:
        if path not in self._told:
            self._told.add(path)
            self._tell(f"{path!r} {what}")

    def _is_ours(self, path: str) -> bool:
        name = os.path.basename(path)
        try:
            return any(name == one.name and os.path.samefile(path, one) for one in self._ours)
        except OSError:  # it is gone by now
            return False


def read_stamp(path: str) -> Stamp | None:
    """How a file is now; None: it is not there. Of a link that leads nowhere, the link's own."""
    try:
        status = os.stat(path)
    except OSError:
        try:
            status = os.lstat(path)
        except OSError:
            return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns
