"""The flagged files of a run: copied, moved or linked into a folder, and back.

`undo.json` in that folder says what belongs where. It is written as a whole before the first file
is touched; what of it is done is seen from the files themselves, by their hashes. So a start after
a kill at any instant goes on, or takes everything back. No file is ever written over, and a file is
removed only where the same bytes are at its other place.
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from .. import storage
from ..errors import InputError, RunError, SettingError, UnreadableImage
from ..inputs import find_again, is_url, locate, open_input, reason
from ..runs import Run
from . import names
from .contents import Step

How = Literal["copy", "move", "symlink"]
HOWS: tuple[How, ...] = get_args(How)

UNDO_FILE = "undo.json"
_FORMAT = 1
_CHUNK = 1 << 20  # bytes
_NO_LINKS = {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOSYS, errno.EOPNOTSUPP}


@dataclass(frozen=True)
class Entry:
    """One file of a run."""

    path: str  # as the run has it
    source: str  # where it lies, or lay: an absolute path, or the URL
    name: str  # in the folder
    sha256: str


@dataclass(frozen=True)
class Outcome:
    """What was done: files that are where they belong now, and those left, with the reason."""

    done: list[str]
    left: dict[str, str]


def take_flagged(run: Run, folder: Path, by: How, step: Step = lambda *_: None) -> Outcome:
    """Copy, move or link the flagged files of a run into a folder, with a list to undo it.

    The same call after a kill goes on. A file that is gone, has changed since the scan, or cannot
    be taken in this way is left where it is, with the reason. Files with one name get numbers in
    the order of their paths.

    Raises SettingError for another `by`, RunError if the folder holds something else, another
    process uses it, or it cannot be written.
    """
    if by not in HOWS:
        raise SettingError(f"no way {by!r} to take files: choose from {', '.join(HOWS)}")
    plan = {
        "format": _FORMAT,
        "run": _whole_name(str(run.folder)),
        "by": by,
        "files": [asdict(entry) for entry in _plan(run)],
    }
    with storage.lock(folder):
        listed = _read(folder)
        if listed is None:
            _check_empty(folder)
            if plan["files"]:
                storage.write_json(folder / UNDO_FILE, plan)
            listed = plan
        elif _asked(listed) != _asked(plan):
            raise RunError(
                f"{str(folder)!r} holds the files of another --flagged-to: take it back with "
                "--undo, or choose another folder"
            )
        take = {"copy": _copy, "move": _move, "symlink": _link}[by]
        return _for_all(listed, lambda entry: take(entry, folder / entry.name), step)


def undo_flagged(place: str, folder: Path, step: Step = lambda *_: None) -> Outcome:
    """Take back what `take_flagged` did: moved files go back, copies and links are removed.

    place: the run's folder, as a check. What was changed meanwhile, or would be written
    over, is left, with the reason, and stays in the list. Nothing of the run is read.

    Raises RunError if the folder holds no list of that run, or another process uses it.
    """
    if not (folder / UNDO_FILE).is_file():
        raise RunError(f"{str(folder)!r} has no {UNDO_FILE}: name the folder of --flagged-to")
    with storage.lock(folder):
        listed = _read(folder)
        assert listed is not None
        if listed["run"] != _whole_name(place):
            raise RunError(f"{str(folder)!r} holds files of the run {listed['run']!r}: name that")
        back = {"copy": _uncopy, "move": _unmove, "symlink": _unlink}[listed["by"]]
        outcome = _for_all(listed, lambda entry: back(entry, folder / entry.name), step)
        left = [file for file in listed["files"] if file["path"] in outcome.left]
        with storage.writing(folder):
            if left:
                storage.write_json(folder / UNDO_FILE, listed | {"files": left})
            else:
                (folder / UNDO_FILE).unlink()  # the lock removes a folder that is empty
    return outcome


def _for_all(plan: dict[str, Any], do: Callable[[Entry], None], step: Step) -> Outcome:
    done, left = [], {}
    for number, file in enumerate(plan["files"], start=1):
        entry = Entry(**file)
        try:
            do(entry)
            done.append(entry.path)
        except InputError as error:
            left[entry.path] = str(error)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):  # so will all others
                raise RunError(
                    f"cannot write {entry.name!r}: {reason(error)}. Make room; the same command "
                    "goes on, and --undo takes back what is done"
                ) from error
            left[entry.path] = reason(error)
        step(number, len(plan["files"]))
    return Outcome(done, left)


def _plan(run: Run) -> list[Entry]:
    flagged = [image for image, flag in zip(run.images, run.flagged, strict=True) if flag]
    wanted = [_last(image.path).lstrip(".") or "_" for image in flagged]  # hidden ones are ours
    chosen = names.distinct([UNDO_FILE, *wanted])[1:]
    return [
        Entry(image.path, _absolute(run, image.path), name, image.sha256)
        for image, name in zip(flagged, chosen, strict=True)
    ]


def _last(path: str) -> str:
    return path.rpartition("/")[2] if is_url(path) else os.path.basename(path)


def _whole_name(place: str) -> str:
    """A run's folder, however it was written."""
    return os.path.normpath(locate(place))


def _asked(plan: dict[str, Any]) -> list[Any]:
    """What a list is of: not where the files lie, which is not known any more once they moved."""
    files = [[file[key] for key in ("path", "name", "sha256")] for file in plan["files"]]
    return [plan["run"], plan["by"], files]


def _absolute(run: Run, path: str) -> str:
    """Where a file is, or was when it was scanned; without following a link."""
    if is_url(path):
        return path
    try:
        return str(find_again(path, run.folder).absolute())
    except UnreadableImage:
        return locate(path)


def _read(folder: Path) -> dict[str, Any] | None:
    """The list of a folder; None: it has none. Raises RunError if it is damaged."""
    path = folder / UNDO_FILE
    if not path.is_file():
        return None
    listed = storage.read_json(path)
    try:
        entries = [Entry(**file) for file in listed["files"]]
        whole = all(isinstance(value, str) for entry in entries for value in asdict(entry).values())
        inside = all(entry.name == os.path.basename(entry.name) for entry in entries)
        known = listed["format"] == _FORMAT and listed["by"] in HOWS
        if not (whole and inside and known and isinstance(listed["run"], str)):
            raise ValueError("a value that it cannot have")
    except (LookupError, TypeError, ValueError) as error:
        raise RunError(f"{str(path)!r} is damaged ({error!r}): put the files back by hand") from (
            error
        )
    return dict(listed)


def _check_empty(folder: Path) -> None:
    ours = (storage.LOCK_FILE, storage.part_path(folder / UNDO_FILE).name)
    others = sorted(path.name for path in folder.iterdir() if path.name not in ours)
    if others:
        raise RunError(
            f"{str(folder)!r} holds other files ({', '.join(others[:3])}): choose a new or empty "
            "folder"
        )


# --- there: each leaves what is done, and raises InputError or OSError where it cannot -----------


def _copy(entry: Entry, target: Path) -> None:
    if not _is_there(target, entry):
        _write_copy(entry, target, entry.source)


def _move(entry: Entry, target: Path) -> None:
    if is_url(entry.source):
        raise InputError("it lies at a URL: take it with --by copy")
    source = Path(entry.source)
    if not os.path.lexists(source) and _is_there(target, entry):  # an earlier start did it
        return
    if source.is_symlink():
        raise InputError("it is a symbolic link: take it with --by copy or symlink")
    _carry(source, target, entry)


def _link(entry: Entry, target: Path) -> None:
    if is_url(entry.source):
        raise InputError("it lies at a URL: take it with --by copy")
    if _is_link_to(target, entry):
        return
    _check_content(Path(entry.source), entry)
    _check_free(target)
    target.symlink_to(entry.source)


# --- and back -----------------------------------------------------------------------------------


def _uncopy(entry: Entry, target: Path) -> None:
    _remove_part(target)
    if os.path.lexists(target):
        _check_content(target, entry)
        target.unlink()


def _unlink(entry: Entry, target: Path) -> None:
    if not os.path.lexists(target):
        return
    if not _is_link_to(target, entry):
        raise InputError(f"{str(target)!r} is another file, which stays")
    target.unlink()


def _unmove(entry: Entry, target: Path) -> None:
    _remove_part(target)
    source = Path(entry.source)
    _remove_part(source)
    if os.path.lexists(target):
        source.parent.mkdir(parents=True, exist_ok=True)
        _carry(target, source, entry)
    elif not os.path.lexists(source):
        raise InputError(f"neither it nor {str(target)!r} is there")


# --- steps --------------------------------------------------------------------------------------


def _carry(source: Path, target: Path, entry: Entry) -> None:
    """Move a file, over file systems too; before the source goes the target is safe on the disk."""
    _check_content(source, entry)
    if not _is_there(target, entry):
        _check_free(target)
        try:
            os.link(source, target, follow_symlinks=False)  # unlike a rename it replaces nothing
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            _write_copy(entry, target, str(source))
    _check_content(target, entry)
    _sync_folder(target.parent)
    source.unlink()


def _write_copy(entry: Entry, target: Path, source: str) -> None:
    """Write a copy, with its times, whole or not at all, of a file that is what was scanned."""
    part, digest = storage.part_path(target), hashlib.sha256()
    _check_free(target)
    try:
        with open_input(source) as read, open(part, "wb") as written:
            while chunk := read.read(_CHUNK):
                digest.update(chunk)
                written.write(chunk)
            written.flush()
            os.fsync(written.fileno())
        if digest.hexdigest() != entry.sha256:
            raise InputError(f"{source!r} has changed since the scan")
        if not is_url(source):
            shutil.copystat(source, part)
        os.rename(part, target)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise


def _remove_part(target: Path) -> None:
    """What a kill within `_write_copy` can leave."""
    storage.part_path(target).unlink(missing_ok=True)


def _check_free(target: Path) -> None:
    if os.path.lexists(target):
        raise InputError(f"{str(target)!r} is another file, which stays")


def _check_content(path: Path, entry: Entry) -> None:
    if not os.path.lexists(path):
        raise InputError("it is not where it was when it was scanned")
    if not _holds(path, entry):
        raise InputError(f"{str(path)!r} has changed since the scan")


def _is_there(target: Path, entry: Entry) -> bool:
    """Whether a file itself, and no link to another one, has the bytes that were scanned."""
    return not target.is_symlink() and _holds(target, entry)


def _is_link_to(target: Path, entry: Entry) -> bool:
    return target.is_symlink() and os.readlink(target) == entry.source


def _holds(path: Path, entry: Entry) -> bool:
    try:
        with open_input(str(path)) as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256  # type: ignore[arg-type]
    except (UnreadableImage, OSError):
        return False


def _sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk; where that cannot be asked for, they are."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
