"""A run at a URL <-> a working copy on this machine.

A run is written and read in a local folder, with its lock, atomic files and mapped arrays; object
storage has none of these. Each URL has one such folder in the user's cache: a scan works there,
where the same command finds it again after a kill, and is uploaded when it is finished. What reads
a run reads the copy, which is downloaded when run.json there is another one.

An upload never shows half a run: `.uploading` says that one is under way, run.json goes first and
comes last. Storage has no lock: of two machines that write to one URL, the second to finish is told
so, unless both upload in the same moment.

    CACHE/runs/NAME-HASH/
      run/         the copy
      record.json  what of it is there too: see `_Record`
      .lock
"""

import dataclasses
import hashlib
import json
import os
import re
import secrets
import socket
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import runfolder, storage
from .errors import PatchclusterError, RunError
from .inputs import is_url, open_place, reason
from .runfolder import MARKER_FILE, RUN_FILE

Step = Callable[[str, int, int], None]  # "upload" or "download", files done, files in all
Stamp = list[int]  # size in bytes, time of change in ns

_RECORD_FILE = "record.json"
_TEST_FILE = ".writable"  # written and removed before the work, not after it
_AT_A_TIME = 64  # files
_OR_OVERWRITE = ", or add --overwrite"
_AGAIN = "the same command goes on where it stopped"


def cache_folder() -> Path:
    """Where working copies lie: PATCHCLUSTER_CACHE, or else the user's cache folder."""
    named = os.environ.get("PATCHCLUSTER_CACHE")
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "patchcluster"
    return Path(named or usual).absolute()


def name_of(folder: Path) -> str:
    """A run folder as its user names it: by the URL if it is the copy of a remote run."""
    if folder.parent.parent != cache_folder() / "runs":
        return str(folder)
    return _Record.read(folder.parent).url or str(folder)


def fetch(place: str | os.PathLike[str], progress: Step = lambda *_: None) -> Path:
    """A folder to read a run from: the run itself, or the copy of a remote one, as it is now.

    A copy that another process changes is given as it is, as a local run would be.

    Raises RunError if there is no finished run, or it cannot be had; InputError if the protocol is
    not known.
    """
    place = os.fspath(place)
    if not is_url(place):
        return Path(place)
    copy = _Copy(place, progress)
    if not copy.is_in_use():
        with copy.held():
            copy.take(copy.look(), changing=False)
    return copy.folder


@contextmanager
def changing(place: str | os.PathLike[str], progress: Step = lambda *_: None) -> Iterator[Path]:
    """A folder to change a finished run in; a remote one is uploaded at the end.

    Raises as `fetch`, and RunError if the remote run was changed by others meanwhile.
    """
    place = os.fspath(place)
    if not is_url(place):
        yield Path(place)
        return
    copy = _Copy(place, progress)
    with copy.held():
        copy.take(copy.look(), changing=True)
        yield copy.folder
        copy.upload(overwrite=False)


@contextmanager
def writing(
    place: str | os.PathLike[str],
    overwrite: bool,
    check: Callable[[Path], object],
    progress: Step = lambda *_: None,
) -> Iterator[tuple[Path, bool]]:
    """A folder to scan into, which is uploaded at the end, and whether the scan is done already.

    check(folder) raises RunError if run.json in a folder is of another scan. Done: an earlier start
    with `overwrite` finished, and was killed before all was uploaded. Raises RunError, before
    anything is written, if the place holds anything that a scan must not replace.
    """
    place = os.fspath(place)
    if not is_url(place):
        yield Path(place), False
        return
    copy = _Copy(place, progress)
    with copy.held():
        done = copy.begin(overwrite, check)
        yield copy.folder, done
        copy.upload(overwrite)


def write_file(url: str, data: bytes) -> None:
    """Write a file at a URL. Raises RunError, and InputError if the protocol is not known."""
    fs, name = open_place(url)
    with _talking(f"cannot write {url!r}", "Check the address and your credentials"):
        fs.pipe_file(name, data)


@dataclass
class _Record:
    """What is known of a copy. It is lost with the copy, which then is downloaded again."""

    url: str = ""
    by: str = ""  # tells the uploads of this copy from others
    run: str = ""  # SHA-256 of run.json there when the copy was like it; "": there was none
    pulling: str = ""  # the same of the run that is being downloaded
    replacing: bool = False  # a scan with --overwrite is not uploaded yet
    files: dict[str, Stamp] = field(default_factory=dict)  # those here that are the same there

    @classmethod
    def read(cls, home: Path) -> "_Record":
        try:
            return cls(**json.loads((home / _RECORD_FILE).read_bytes()))
        except (OSError, TypeError, ValueError):
            return cls()


@dataclass(frozen=True)
class _There:
    """What is at the URL now."""

    sizes: dict[str, int]  # of the files, by their names in the run
    info: bytes  # run.json; b"": none
    marker: dict[str, Any] | None  # of an upload that is under way, or was interrupted

    @property
    def run(self) -> str:
        return _digest(self.info)


class _Copy:
    """The working copy of the run at a URL."""

    def __init__(self, url: str, progress: Step) -> None:
        self._fs, self._root = open_place(url)
        self.url = self._fs.unstrip_protocol(self._root)
        if any(c in self._root for c in "*?["):
            raise RunError(f"{url!r} has one of * ? [ in it: choose another name for a run")
        tail = re.sub(r"[^A-Za-z0-9._-]", "_", self._root.rstrip("/").rpartition("/")[2])
        name = f"{tail[:40]}-{hashlib.sha256(self.url.encode()).hexdigest()[:16]}"
        self._home = cache_folder() / "runs" / name
        self.folder = self._home / "run"
        self._progress = progress
        self._record = _Record()

    # --- here ---------------------------------------------------------------------------------

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the copy against other processes, and name the URL in what goes wrong."""
        with (
            _named(self._home, self.url),
            _named(self.folder, self.url),
            storage.lock(self._home),
        ):
            record = _Record.read(self._home)
            by = record.by or secrets.token_hex(8)
            self._record = dataclasses.replace(record, url=self.url, by=by)
            yield

    def is_in_use(self) -> bool:
        """Whether another process has a copy, of which the run can be read or says why not."""
        return storage.is_held(self._home) and (self.folder / RUN_FILE).is_file()

    def _save(self, **changes: Any) -> None:
        self._record = dataclasses.replace(self._record, **changes)
        storage.write_json(self._home / _RECORD_FILE, dataclasses.asdict(self._record))

    def _files(self) -> dict[str, Stamp]:
        """The files of the copy that belong to a run, by their names in it."""
        found = {}
        for path in self.folder.rglob("*"):
            name = path.relative_to(self.folder).as_posix()
            if runfolder.is_part(name) and path.is_file():
                status = path.stat()
                found[name] = [status.st_size, status.st_mtime_ns]
        return found

    def _info(self) -> bytes:
        try:
            return (self.folder / RUN_FILE).read_bytes()
        except OSError:
            return b""

    def _is_ahead(self, there: _There) -> bool:
        """Whether the copy holds work that is not there."""
        files, run = self._files(), _digest(self._info())
        if not run:
            return False
        if there.marker is None and self._record.run != there.run == run:
            # It was killed after the upload, before it wrote so down.
            same = {name: mark for name, mark in files.items() if there.sizes.get(name) == mark[0]}
            self._save(run=run, files=same, pulling="", replacing=False)
        # A file that is missing is no work: caches are cleaned.
        return any(self._record.files.get(name) != mark for name, mark in files.items())

    def _clear(self, run: str, pulling: str = "") -> None:
        """Begin a copy anew; run, pulling: as in the record."""
        storage.remove(self.folder)
        self._save(run=run, pulling=pulling, files={}, replacing=False)

    # --- there --------------------------------------------------------------------------------

    def look(self) -> _There:
        """What is at the URL now."""
        with self._reading():
            self._fs.invalidate_cache()
            found = self._fs.find(self._root, detail=True)
            if self._root in found:
                raise RunError(f"{self.url!r} is a file: name the place of a run")
            start = len(self._root.rstrip("/")) + 1
            sizes = {name[start:]: int(info["size"] or 0) for name, info in found.items()}
            sizes = {name: size for name, size in sizes.items() if name and name[-1] != "/"}
            info = self._fs.cat_file(self._at(RUN_FILE)) if RUN_FILE in sizes else b""
            marker = self._fs.cat_file(self._at(MARKER_FILE)) if MARKER_FILE in sizes else None
        return _There(sizes, info, None if marker is None else _parse_marker(marker))

    def _at(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with _talking(f"cannot read {self.url!r}", f"Check address and connection; {_AGAIN}"):
            yield

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with _talking(f"cannot write to {self.url!r}", f"Check address and connection; {_AGAIN}"):
            yield

    def _is_ours(self, there: _There) -> bool:
        """Whether the upload that is under way there is one of this copy."""
        return there.marker is not None and there.marker.get("by") == self._record.by

    # --- between them -------------------------------------------------------------------------

    def take(self, there: _There, changing: bool) -> None:
        """Make the copy like the run there; leave it if it holds a change that is not there yet.

        changing: go on with that change.
        """
        if self._is_ahead(there) or self._is_ours(there):
            if changing:
                self._check_base(there)
            elif self._is_ours(there) or _digest(self._info()) != there.run:
                self._check_readable()
            return
        if there.marker is not None:
            raise RunError(self._say_uploading(there))
        if not there.info:
            raise RunError(f"{self.url!r} is not a run: name the place that scan -o wrote")
        if self._record.run != there.run or self._record.files != self._files():
            self._download(there)

    def _check_readable(self) -> None:
        info, _, _ = runfolder.read_info(self.folder)
        if info.state == "complete":
            raise RunError(
                f"{self.url!r} was changed here and not uploaded to its end: repeat the command "
                "that was interrupted, it goes on where it stopped"
            )  # of other states a Run says which command finishes them

    def _check_base(self, there: _There, advice: str = "") -> None:
        """Raise RunError if others have written there since the copy was like it."""
        if self._is_ours(there):
            return
        if there.marker is not None:
            raise RunError(self._say_uploading(there) + advice)
        if there.run and there.run != self._record.run:
            raise RunError(
                f"{self.url!r} was written by others since the work here began, which is kept in "
                f"runs/{self._home.name} of the cache: remove that to go on from what is there"
                + advice
            )

    def _say_uploading(self, there: _There) -> str:
        host = str((there.marker or {}).get("host", "?"))[:100]
        return (
            f"{self.url!r} is being uploaded from {host!r}, or that was interrupted: wait, or "
            "repeat the command there"
        )

    def begin(self, overwrite: bool, check: Callable[[Path], object]) -> bool:
        """Make the copy a folder that a scan can start or go on in; whether it is done already."""
        there = self.look()
        self._check_output(there, overwrite)
        self._check_writable()
        if self._is_ahead(there) or self._is_ours(there):
            if not overwrite:
                self._check_base(there, _OR_OVERWRITE)
        elif there.info and not overwrite:
            self._check_same(there, check)
            self.take(there, changing=True)
        elif not there.info or self._record.run != there.run:
            self._clear(there.run)
        done = overwrite and self._record.replacing and self._is_done(check)
        self._save(replacing=overwrite)
        return done

    def _is_done(self, check: Callable[[Path], object]) -> bool:
        try:
            check(self.folder)
            return runfolder.read_info(self.folder)[0].state == "complete"
        except RunError:
            return False

    def _check_same(self, there: _There, check: Callable[[Path], object]) -> None:
        """Refuse another scan by its run.json, before all of it is downloaded."""
        with tempfile.TemporaryDirectory() as name, _named(Path(name), self.url):
            storage.write_bytes(Path(name) / RUN_FILE, there.info)
            check(Path(name))

    def _check_output(self, there: _There, overwrite: bool) -> None:
        """What `runfolder.check_output` is to a folder."""
        if there.marker is not None and not self._is_ours(there) and not overwrite:
            raise RunError(self._say_uploading(there) + ", choose another -o" + _OR_OVERWRITE)
        is_run = there.info and any(name.startswith("maps/") for name in there.sizes)
        others = sorted(set(there.sizes) - {_TEST_FILE})
        if others and not is_run and there.marker is None:
            advice = "choose another -o" if overwrite else "choose a new or empty place with -o"
            raise RunError(f"{self.url!r} holds other files ({', '.join(others[:3])}): {advice}")

    def _check_writable(self) -> None:
        """Write a file and remove it: what is refused is said before the work, not after it."""
        with self._writing():
            self._fs.pipe_file(self._at(_TEST_FILE), b"patchcluster")
            self._fs.rm_file(self._at(_TEST_FILE))

    def _download(self, there: _There) -> None:
        """Make the copy the run that is there; what an earlier start has downloaded of it stays."""
        if self._record.pulling != there.run or (self.folder / RUN_FILE).exists():
            self._clear("", there.run)
        sizes = {name: size for name, size in there.sizes.items() if runfolder.is_part(name)}
        del sizes[RUN_FILE]  # comes last
        have = {name: mark[0] for name, mark in self._files().items()}
        wanted = [name for name, size in sizes.items() if have.get(name) != size]
        with storage.writing(self.folder):
            for folder in {(self.folder / name).parent for name in [*wanted, RUN_FILE]}:
                folder.mkdir(parents=True, exist_ok=True)
        self._transfer("download", wanted)
        have = {name: mark[0] for name, mark in self._files().items()}
        now = self.look()
        if now.run != there.run or now.marker is not None or have != sizes:
            raise RunError(f"{self.url!r} was changed while it was read: repeat the command")
        storage.write_bytes(self.folder / RUN_FILE, there.info)
        self._save(run=there.run, pulling="", files=self._files())

    def upload(self, overwrite: bool) -> None:
        """Make the run there like the copy. A reader sees the one, or the other, or a refusal."""
        there, here = self.look(), self._files()
        if not overwrite:
            self._check_base(there)
        changed = {
            name for name, mark in here.items()
            if self._record.files.get(name) != mark or name not in there.sizes
        }  # fmt: skip
        gone = {name for name in there.sizes if runfolder.is_part(name)} - set(here)
        if not changed and not gone and there.marker is None:
            return
        run = _digest(self._info())
        if self._is_ours(there) and there.marker and there.marker.get("run") == run:
            # What was to be replaced had been removed: what is there is of this upload.
            changed = {name for name in changed if there.sizes.get(name) != here[name][0]}
        else:
            self._mark("")
            self._remove([RUN_FILE], there)
            self._remove(sorted((changed | gone) - {RUN_FILE}), there)
            self._mark(run)
        self._transfer("upload", sorted(changed - {RUN_FILE}))
        self._transfer("", [RUN_FILE])
        with self._writing():
            self._fs.rm_file(self._at(MARKER_FILE))
        self._save(run=run, pulling="", files=here, replacing=False)

    def _mark(self, run: str) -> None:
        """Say there that an upload is under way; run: as in `_There`, once there is room for it."""
        self._save()  # so that its marker is known again
        marker = {"by": self._record.by, "host": socket.gethostname(), "run": run}
        with self._writing():
            self._fs.pipe_file(self._at(MARKER_FILE), json.dumps(marker).encode())

    def _remove(self, names: Iterable[str], there: _There) -> None:
        paths = [self._at(name) for name in names if name in there.sizes]
        with self._writing():
            for i in range(0, len(paths), 1000):
                self._fs.rm(paths[i : i + 1000])

    def _transfer(self, step: str, names: Sequence[str]) -> None:
        """Download or upload files, some at a time."""
        for i in range(0, len(names), _AT_A_TIME):
            some = names[i : i + _AT_A_TIME]
            here = [str(self.folder / name) for name in some]
            there = [self._at(name) for name in some]
            if step == "download":
                with self._reading():
                    self._fs.get(there, here)
            else:
                with self._writing():
                    self._fs.put(here, there)
            if step:
                self._progress(step, i + len(some), len(names))


@contextmanager
def _named(folder: Path, url: str) -> Iterator[None]:
    """Name the URL in errors that name a folder."""
    try:
        yield
    except PatchclusterError as error:
        if str(folder) not in str(error):
            raise
        raise type(error)(str(error).replace(str(folder), url)) from error


@contextmanager
def _talking(what: str, advice: str) -> Iterator[None]:
    """Turn what a file system raises, each its own classes, into a RunError."""
    try:
        yield
    except PatchclusterError:
        raise
    except Exception as error:
        raise RunError(f"{what} ({reason(error)}). {advice}") from error


def _digest(info: bytes) -> str:
    return hashlib.sha256(info).hexdigest() if info else ""


def _parse_marker(data: bytes) -> dict[str, Any]:
    try:
        marker = json.loads(data)
    except ValueError:
        marker = None
    return marker if isinstance(marker, dict) else {}
