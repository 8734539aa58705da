"""Find the files that a user names: folders, files, globs and fsspec URLs."""

import fnmatch
import glob
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path, PurePath

from ..errors import InputError
from .inputs import is_url, natural_key, open_place, reason

# What systems and storage write for themselves, in lower case.
_SYSTEM = {
    "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "$recycle.bin",
    "system volume information",  # Windows
    "__macosx", "icon\r", ".ds_store", ".fseventsd", ".spotlight-v100", ".trashes",  # macOS
    "lost+found", ".thumbnails",  # Linux
    "@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot",  # network storage
}  # fmt: skip
_NAMES_TOLD = 5

Leave = Callable[[str], object]  # called with the path of a file or folder that is left out


def find_images(
    inputs: Sequence[str | os.PathLike[str]],
    leave_out: Callable[[Path], bool] = lambda _: False,
    leave_out_remote: Callable[[Sequence[str]], set[str]] = lambda _: set(),
    tell: Callable[[str], None] = lambda _: None,
) -> list[str]:
    """List every candidate file of folders, files, globs and fsspec URLs, in natural order.

    Folders are searched with their subfolders; links are followed, loops are not. Left out are
    the folders that `leave_out` names, of the files of a URL what lies in those that
    `leave_out_remote` names, and files and folders that are hidden or of the system, unless an
    input names them; `tell` gets a line that counts those of the system. A file named twice is
    listed once. Whether any other file is an image is for its reader to say, so that nothing
    disappears in silence.

    Raises InputError if an input does not exist or nothing is found.
    """
    found: dict[str, str] = {}  # absolute path -> path as the user gave it
    hidden: set[str] = set()
    items = [os.fspath(item) for item in inputs]
    for item in items:
        for path in _expand(item, leave_out, leave_out_remote, hidden.add):
            found.setdefault(path if is_url(path) else os.path.abspath(path), path)
    if system := [path for path in hidden if _is_system(PurePath(path).name)]:
        tell(_describe(system))
    if not found:
        raise InputError(
            f"no files in {', '.join(map(repr, items))}: name a folder that holds images"
        )
    return sorted(found.values(), key=natural_key)


def _is_system(name: str) -> bool:
    """Whether a file or folder of this name is one that systems write for themselves."""
    return name.startswith("._") or name.lower() in _SYSTEM


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is left out: hidden, or of the system."""
    return name.startswith(".") or _is_system(name)


def _find_hidden(path: str, item: str) -> str | None:
    """Return the topmost hidden folder or file of a path that the item of a user does not name."""
    parts = PurePath(path).parts
    for i, part in enumerate(parts):
        if is_hidden(part) and not any(_names(one, part) for one in PurePath(item).parts):
            return str(PurePath(*parts[: i + 1]))
    return None


def _names(pattern: str, name: str) -> bool:
    """Whether a pattern names a hidden file, as `.*` and `@eaDir` do and `*` does not."""
    return pattern == name or (pattern[0] not in "*?[" and fnmatch.fnmatch(name, pattern))


def _describe(system: Collection[str]) -> str:
    names = {PurePath(path).name for path in system}
    kinds = sorted({"._*" if name.startswith("._") else name.strip() for name in names})
    more = ", ..." * (len(kinds) > _NAMES_TOLD)
    shown = ", ".join(kinds[:_NAMES_TOLD])
    return f"files and folders of the system left out: {len(system)} ({shown}{more})"


def _expand(
    item: str,
    leave_out: Callable[[Path], bool],
    leave_out_remote: Callable[[Sequence[str]], set[str]],
    leave: Leave,
) -> Iterator[str]:
    if is_url(item):
        yield from _expand_url(item, leave_out_remote, leave)
    elif os.path.isdir(item):
        yield from walk(Path(item), leave_out, leave)
    elif os.path.lexists(item):
        yield item
    elif any(c in item for c in "*?["):
        matches = glob.glob(item, recursive=True)
        if not matches:
            raise InputError(f"nothing matches {item!r}: check the pattern")
        for match in matches:
            if hidden := _find_hidden(match, item):
                leave(hidden)
            elif os.path.isdir(match):
                # `**` lists the folders and what is in them; walking both lists files twice,
                # which `find_images` undoes.
                yield from walk(Path(match), leave_out, leave)
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


def _expand_url(
    url: str, leave_out: Callable[[Sequence[str]], set[str]], leave: Leave
) -> Iterator[str]:
    fs, root = open_place(url)
    try:
        fs.invalidate_cache()  # what changed since an earlier listing is seen
        if fs.isdir(root):
            names = list(fs.find(root))
        elif fs.exists(root):
            names = [root]
        else:
            names = fs.glob(root) if any(c in root for c in "*?[") else []
            names = [name for name in names if not fs.isdir(name)]
    except Exception as error:  # each file system raises its own classes
        raise InputError(
            f"cannot list {url!r} ({reason(error)}): check the address, the connection and your "
            "credentials"
        ) from error
    if not names:
        raise InputError(f"nothing is at {url!r}: check the address")
    left_out = leave_out(names)
    for name in names:
        # A key that ends in / stands for a folder in storage that has none.
        if name.endswith("/") or not left_out.isdisjoint(_folders(name)):
            continue
        if hidden := _find_hidden(name, root):
            leave(hidden)
        else:
            yield fs.unstrip_protocol(name)


def _folders(name: str) -> Iterator[str]:
    """List the folders that contain a remote file."""
    while "/" in name:
        name = name.rpartition("/")[0]
        yield name


def walk(
    folder: Path,
    leave_out: Callable[[Path], bool],
    leave: Leave = lambda _: None,
    parents: frozenset[str] = frozenset(),
) -> Iterator[str]:
    """List the files under a folder by the rules of `find_images`, and unreadable folders.

    leave is called with each hidden file and folder. parents: the real paths above the folder, to
    stop at loops.
    """
    real = os.path.realpath(folder)
    if real in parents or leave_out(folder):
        return
    try:
        entries = sorted(os.scandir(folder), key=lambda e: e.name)
    except OSError:
        yield str(folder)  # `open_input` refuses it with a reason, so that a scan lists it
        return
    for entry in entries:
        if is_hidden(entry.name):
            leave(str(folder / entry.name))
        elif _is_folder(entry):
            yield from walk(folder / entry.name, leave_out, leave, parents | {real})
        else:
            yield str(folder / entry.name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that cannot be followed
        return False
