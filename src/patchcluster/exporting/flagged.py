"""Copy or link the flagged files of a run into a folder.

Nothing is recorded: files of an earlier call are recognised in the folder itself, so that repeating
an interrupted call completes it.
"""

import errno
import hashlib
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from ..errors import InputError, RunError, SettingError, UnreadableImage
from ..images.inputs import find_again, hash_file, is_url, locate, read_input, reason
from ..runs import storage
from ..runs.info import ImageRecord
from ..runs.run import Run
from . import names
from .contents import Step

How = Literal["copy", "hardlink", "symlink"]
HOWS: tuple[How, ...] = get_args(How)

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}  # the other files would fail too


@dataclass(frozen=True)
class Outcome:
    """Paths of the images whose files are in the folder, and of the others, with the reason."""

    done: list[str]
    left: dict[str, str]


def take_flagged(run: Run, folder: Path, by: How, step: Step = lambda *_: None) -> Outcome:
    """Copy or link the flagged files of a run into a folder, in the order of the run.

    No file is overwritten: a file whose name is taken gets a number (`x-2.png`), unless an earlier
    call took that very file. Files that are gone, have changed since the scan, or cannot be linked
    are left out, with the reason.

    Raises SettingError for another `by`, RunError if the folder cannot be written or another
    process uses it.
    """
    if by not in HOWS:
        raise SettingError(f"no way {by!r} to take files: choose from {', '.join(HOWS)}")
    flagged = [image for image, flag in zip(run.images, run.flagged, strict=True) if flag]
    used: set[str] = set()
    done, left = [], {}
    with storage.lock(folder):
        for number, image in enumerate(flagged, start=1):
            try:
                _take(image, _find(run, image.path), folder, by, used)
                done.append(image.path)
            except InputError as error:
                left[image.path] = str(error)
            except OSError as error:
                if error.errno in _FULL:
                    raise RunError(
                        f"cannot write to {str(folder)!r}: {reason(error)}. Make room; the same "
                        "command resumes"
                    ) from error
                advice = "" if by == "copy" else ": take it with --by copy"
                left[image.path] = reason(error) + advice
            step(number, len(flagged))
    return Outcome(done, left)


def _find(run: Run, path: str) -> str:
    """Return the URL of a file, or its absolute path, also if it is gone."""
    try:
        return path if is_url(path) else str(find_again(path, run.folder).absolute())
    except UnreadableImage:
        return locate(path)


def _take(image: ImageRecord, source: str, folder: Path, by: How, used: set[str]) -> None:
    """Take one file and add its name, folded, to `used`, the names that this call has used."""
    if by != "copy" and is_url(source):
        raise InputError("it lies at a URL: take it with --by copy")

    def is_taken(name: str) -> bool:
        if names.fold(name) in used:
            return True
        target = folder / name
        return os.path.lexists(target) and not _is_there(target, image, source, by)

    wanted = source.rpartition("/")[2] if is_url(source) else os.path.basename(source)
    wanted = wanted.lstrip(".") or "_"  # hidden names are for the lock and unfinished copies
    name = names.number(wanted, is_taken)
    target = folder / name
    if not os.path.lexists(target):
        data = read_input(source)
        if hashlib.sha256(data).hexdigest() != image.sha256:
            raise InputError(f"{source!r} has changed since the scan")
        if by == "copy":
            _write_copy(data, source, target)
        elif by == "hardlink":
            os.link(os.path.realpath(source), target)
        else:
            target.symlink_to(source)
    used.add(names.fold(name))


def _is_there(target: Path, image: ImageRecord, source: str, by: How) -> bool:
    """Return whether `target` is the file of an image, taken by an earlier call."""
    if target.is_symlink() != (by == "symlink") or hash_file(str(target)) != image.sha256:
        return False
    return by != "symlink" or os.path.realpath(target) == os.path.realpath(source)


def _write_copy(data: bytes, source: str, target: Path) -> None:
    """Write a copy, with the times of its source, whole or not at all."""
    part = storage.part_path(target)
    try:
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if not is_url(source):
            shutil.copystat(source, part)
        os.rename(part, target)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise
