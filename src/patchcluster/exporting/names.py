"""Names of images and files in an export: relative, distinct, fit for any file system."""

import hashlib
import itertools
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

from ..images.matching import shared_depth, split_path

_LONGEST = 200  # bytes of a name, so that there is room for an ending


def mirror(paths: Sequence[str]) -> list[str]:
    """Return paths of images relative to the folder that they all lie in, with slashes."""
    parts = [split_path(path) for path in paths]
    depth = shared_depth(parts)
    return ["/".join(_plain(one) for one in part[depth:]) for part in parts]


def image_folder(paths: Sequence[str]) -> str:
    """Return the folder, or the beginning of the URLs, that `mirror` leaves out; "": none."""
    ends = {path.removesuffix(name) for path, name in zip(paths, mirror(paths), strict=True)}
    return ends.pop() if len(ends) == 1 else ""


def stems(names: Sequence[str]) -> list[str]:
    """Return names without their suffix, distinct also where letter case is ignored.

    Images that differ only in their suffix keep it: `a/x.jpg` and `a/x.png`.
    """
    short = [str(PurePosixPath(name).with_suffix("")) for name in names]
    count = Counter(map(fold, short))
    taken: set[str] = set()
    found = []
    for name, stem in zip(names, short, strict=True):
        wanted = name if count[fold(stem)] > 1 else stem
        found.append(number(wanted, lambda one: fold(one) in taken))
        taken.add(fold(found[-1]))
    return found


def number(name: str, is_taken: Callable[[str], bool]) -> str:
    """Return a name, cut to a length that file systems take, with a number if it is taken.

    Of `x.png` the second is `x-2.png`.
    """
    free = cut = "/".join(map(_cut, name.split("/")))
    path = PurePosixPath(cut)
    for count in itertools.count(2):
        if not is_taken(free):
            break
        free = str(path.with_name(f"{path.stem}-{count}{path.suffix}"))
    return free


def fold(name: str) -> str:
    """Return the form in which names that a file system may not tell apart are equal."""
    return unicodedata.normalize("NFC", name).casefold()


def _plain(part: str) -> str:
    return "_" if part in ("", ".", "..") else part


def _cut(part: str) -> str:
    """Cut a part of a path to a length that file systems take."""
    data = os.fsencode(part)
    if len(data) <= _LONGEST:
        return part
    ending = PurePosixPath(part).suffix
    ending = ending if len(ending) <= 10 else ""
    short = os.fsencode(part.removesuffix(ending))[: _LONGEST - 30].decode("utf-8", "ignore")
    return f"{short}-{hashlib.sha256(data).hexdigest()[:12]}{ending}"
