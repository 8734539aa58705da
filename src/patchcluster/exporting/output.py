"""Writes an export whole or not at all, and never over files that are no export."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import RunError
from ..runs import storage

MARKER = ".patchcluster-export.json"  # in a folder: lists the files of the export
_ADVICE = "Make room or choose another -o"


@contextmanager
def replacing(output: Path, is_folder: bool, overwrite: bool) -> Iterator[Path]:
    """Yield a temporary file or empty folder to write, which is renamed to `output` at the end.

    What is there already stays as it is until then. Raises RunError if it must not be replaced, or
    another process writes there.
    """
    lock = output.with_name(f".{output.name}.lock")
    taken = f"another process writes {str(output)!r}: wait for it, or choose another -o"
    with storage.writing(output, _ADVICE):
        output.parent.mkdir(parents=True, exist_ok=True)
        with storage.hold(lock, taken, _ADVICE):
            try:
                yield from _replace(output, is_folder, overwrite)
            finally:
                with suppress(OSError):  # Windows removes it on release
                    lock.unlink()


def _replace(output: Path, is_folder: bool, overwrite: bool) -> Iterator[Path]:
    part, old = storage.part_path(output), output.with_name(f".{output.name}.old")
    _remove(part)
    if old.exists():  # a kill came between the two names, or after them
        if os.path.lexists(output):
            _remove(old)
        else:
            old.rename(output)
    _check(output, is_folder, overwrite)
    try:
        if is_folder:
            part.mkdir()
        yield part
        if is_folder:
            storage.write_json(part / MARKER, {"files": sorted(_files(part))})
    except BaseException:
        _remove(part)
        raise
    if not is_folder:
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        os.replace(part, output)
        return
    if output.is_dir():
        output.rename(old)
    part.rename(output)
    _remove(old)


def _check(output: Path, is_folder: bool, overwrite: bool) -> None:
    """Raise RunError if what is there must not be replaced."""
    name = repr(str(output))
    if not os.path.lexists(output) or (is_folder and output.is_dir() and not any(output.iterdir())):
        return
    if output.is_dir() != is_folder:
        kind = "a file" if is_folder else "a folder"
        raise RunError(f"{name} is {kind}: choose another -o")
    if not overwrite:
        raise RunError(f"{name} is there already: choose another -o, or add --overwrite")
    others = sorted(_files(output) - _marked(output) - {MARKER}) if is_folder else []
    if others:
        shown = ", ".join(others[:3])
        raise RunError(f"{name} holds files that no export wrote ({shown}): choose another -o")


def _files(folder: Path) -> set[str]:
    """List the names of all files and links in a folder; links are not followed."""
    every = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return {str(path.relative_to(folder)) for path in every}


def _marked(folder: Path) -> set[str]:
    """List the files that an export wrote into a folder; none if it is no export."""
    try:
        return set(json.loads((folder / MARKER).read_bytes())["files"])
    except (OSError, ValueError, LookupError, TypeError):
        return set()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        storage.remove(path)
    else:
        with suppress(FileNotFoundError):
            path.unlink()
