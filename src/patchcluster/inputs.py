"""Find the files that a user names, and read their bytes: local paths and fsspec URLs."""

import glob
import hashlib
import io
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from .errors import InputError, UnreadableImage


def find_images(
    inputs: Sequence[str | os.PathLike[str]], leave_out: Callable[[Path], bool] = lambda _: False
) -> list[str]:
    """List every candidate file of folders, files, globs and fsspec URLs, in natural order.

    Folders are searched with their subfolders; links are followed, loops are not; hidden files and
    folders and those that `leave_out` names are left out. A file named twice is listed once.
    Whether a file is an image is for its reader to say, so that nothing disappears in silence.

    Raises InputError if an input does not exist or nothing is found.
    """
    found: dict[str, str] = {}  # absolute path -> path as the user gave it
    items = [os.fspath(item) for item in inputs]
    for item in items:
        for path in _expand(item, leave_out):
            found.setdefault(path if is_url(path) else os.path.abspath(path), path)
    if not found:
        raise InputError(
            f"no files in {', '.join(map(repr, items))}: name a folder that holds images"
        )
    return sorted(found.values(), key=natural_key)


def natural_key(path: str) -> list[tuple[int, int, str]]:
    """Sort key that puts `part2.png` before `part10.png`."""
    pieces = re.split(r"(\d+)", path)
    return [(0, int(p), p) if p.isdecimal() and p.isascii() else (1, 0, p) for p in pieces]


def is_url(path: str) -> bool:
    """Whether a path names a remote file system (`s3://...`) rather than a local file."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", path) is not None


def _expand(item: str, leave_out: Callable[[Path], bool]) -> Iterator[str]:
    if is_url(item):
        yield from _expand_url(item)
    elif os.path.isdir(item):
        yield from _walk(Path(item), leave_out, frozenset())
    elif os.path.lexists(item):
        yield item
    elif any(c in item for c in "*?["):
        matches = glob.glob(item, recursive=True)
        if not matches:
            raise InputError(f"nothing matches {item!r}: check the pattern")
        for match in matches:
            if os.path.isdir(match):
                # `**` lists the folders and what is in them; walking both lists files twice,
                # which `find_images` undoes.
                yield from _walk(Path(match), leave_out, frozenset())
            else:
                yield match
    else:
        why = _why_missing(item)
        raise InputError(f"{item!r} {why}: check the path (a folder, file, glob or URL)")


def _why_missing(item: str) -> str:
    try:
        os.lstat(item)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        return f"cannot be reached ({reason(error)})"
    return "does not exist"


def _expand_url(url: str) -> Iterator[str]:
    fs, root = _url_to_fs(url)
    try:
        if any(c in root for c in "*?["):
            names = fs.glob(root)
        else:
            names = fs.find(root) if fs.isdir(root) else [root] if fs.exists(root) else []
    except Exception as error:  # each file system raises its own classes
        raise InputError(f"cannot list {url!r}: {reason(error)}") from error
    if not names:
        raise InputError(f"nothing is at {url!r}: check the address")
    for name in names:
        if not any(part.startswith(".") for part in name[len(root) :].split("/")):
            yield fs.unstrip_protocol(name)


def _url_to_fs(url: str) -> tuple[Any, str]:
    import fsspec

    try:
        fs, root = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise InputError(f"cannot open {url!r}: {reason(error)}") from error
    return fs, root


def _walk(
    folder: Path, leave_out: Callable[[Path], bool], parents: frozenset[str]
) -> Iterator[str]:
    """Yield the files under a folder; `parents` are the real paths above it, to stop at loops."""
    real = os.path.realpath(folder)
    if real in parents or leave_out(folder):
        return
    try:
        entries = sorted(os.scandir(folder), key=lambda e: e.name)
    except OSError:
        yield str(folder)  # `open_input` refuses it with a reason, so that a scan lists it
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if _is_folder(entry):
            yield from _walk(folder / entry.name, leave_out, parents | {real})
        else:
            yield str(folder / entry.name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that cannot be followed
        return False


def open_input(path: str) -> IO[bytes]:
    """Open a local file or a URL for reading and seeking. Raises UnreadableImage with the reason.

    A pipe or a device is never opened: it could block for ever.
    """
    try:
        if is_url(path):
            fs, name = _url_to_fs(path)
            file: IO[bytes] = io.BytesIO(fs.cat_file(name))
        else:
            mode = os.stat(path).st_mode
            if stat.S_ISDIR(mode):
                raise UnreadableImage("a folder that cannot be listed")
            if not stat.S_ISREG(mode):
                raise UnreadableImage("not a regular file")
            file = open(path, "rb")  # noqa: SIM115 (the caller closes it)
    except UnreadableImage:
        raise
    except Exception as error:  # OSError, and whatever a remote file system raises
        raise UnreadableImage(reason(error)) from error
    if not file.read(1):
        file.close()
        raise UnreadableImage("empty file (0 bytes)")
    file.seek(0)
    return file


def locate(path: str) -> str:
    """The same file, whatever the current folder: an absolute path, or the URL."""
    return path if is_url(path) else os.path.join(os.getcwd(), path)


def hash_file(path: str) -> str:
    """SHA-256 of a file or URL; "" if it cannot be read."""
    try:
        with open_input(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    except (UnreadableImage, OSError):
        return ""


def stamp(path: str) -> list[int]:
    """Size in bytes and time of change in ns (of a URL: 0) of a file, to notice that it changed.

    Raises UnreadableImage with the reason.
    """
    try:
        if is_url(path):
            fs, name = _url_to_fs(path)
            return [int(fs.size(name) or 0), 0]
        status = os.stat(path)
    except Exception as error:  # OSError, and whatever a remote file system raises
        raise UnreadableImage(reason(error)) from error
    return [status.st_size, status.st_mtime_ns]


def reason(error: Exception) -> str:
    """One line that says why: the system's words for an OSError, else the message."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return " ".join(str(error).split()) or type(error).__name__


class PathFinder:
    """Finds images by their path as given, or by the end of it if only one fits."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._positions = {path: i for i, path in enumerate(paths)}
        self._by_name: dict[str, list[tuple[list[str], int]]] = {}
        for i, path in enumerate(paths):
            parts = _split(path)
            self._by_name.setdefault(parts[-1], []).append((parts, i))

    def find(self, path: str) -> int:
        """Position of an image. Raises InputError if none or several fit."""
        if path in self._positions:
            return self._positions[path]
        end = _split(path)
        named = self._by_name.get(end[-1], [])
        fitting = [i for parts, i in named if parts[-len(end) :] == end]
        if len(fitting) == 1:
            return fitting[0]
        what = f"fits {len(fitting)} images" if fitting else "is not among the images"
        raise InputError(f"{path!r} {what}: give the path as scores.csv has it")


def _split(path: str) -> list[str]:
    return path.replace("\\", "/").lstrip("/").split("/")
