"""Match names in label files, or of masks, to images.

A name of the very file of an image matches that image. Else two rules are tried. Each compares a
name with a path as they are written, then without regard to letter case and %-escapes, then with
what annotation tools would make of the base name of the path:

1. the whole name is the end of the path. Of several such names the longest matches; of several
   paths the one that is the name below the folder of all images.
2. name and path have a common end, at least the base name. The longest common end of both matches.
   This rule does not hold where folders say what an image is: in data sets of folders, and for
   masks.

A back slash is a slash; of Label Studio's `/data/local-files/?d=a%20b.jpg` the name is what follows
`?d=`. Label Studio drops signs and puts 8 digits in front (`cb0618f6-a.jpg`); Roboflow writes other
characters for signs and appends an ending (`a_jpg.rf.<32 digits>.jpg`).

Nothing is guessed: where several names match an image, or a name several images, none is taken.
"""

import itertools
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from os.path import splitext
from pathlib import Path
from urllib.parse import unquote

from .inputs import is_url

Key = tuple[str, ...]  # folders and base name
_SERVED = re.compile(r".*local-files/\?d=")
_UPLOADED = re.compile(r"[0-9a-f]{8}-(.+)")
_ROBOFLOW = re.compile(r"(.+)_([a-z0-9]{2,5})\.rf\.[0-9a-f]{32}(\.[a-z0-9]+)?")


@dataclass
class Matches:
    """found: the position of an image -> that of its name; unclear: of an image -> why it has none.

    Images that no name matches are in neither.
    """

    found: dict[int, int] = field(default_factory=dict)
    unclear: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Form:
    """Two functions that give a name and a path one key where they match; (): no match."""

    of_name: Callable[[Key], Key]
    of_path: Callable[[Key], Key]


def _keep(key: Key) -> Key:
    return key


def match_names(
    names: Sequence[str],
    paths: Sequence[str],
    files: Sequence[str] | None = None,
    by_base_name: bool = True,
) -> Matches:
    """Match names to paths of images, or their URLs, by the rules above.

    files: the file of each name, whose links are followed; by default its path. by_base_name:
    whether rule 2 holds.
    """
    matches = Matches()
    resolve = os.path.abspath if files is None else follow
    by_file = defaultdict(list)
    for i, file in enumerate(files or names):
        by_file[resolve(file)].append(i)
    for i, path in enumerate(paths):
        _take(matches, i, by_file.get(resolve(path), []), [i], names)
    if len(set(matches.found.values())) == len(names):
        return matches
    keys, places = list(map(_to_key, names)), list(map(_place, paths))
    _match_forms(matches, names, keys, places, shared_depth(places))
    if by_base_name:
        _match_forms(matches, names, keys, places, None)
    return matches


def match_masks(names: Sequence[str], paths: Sequence[str]) -> Matches:
    """Match names of masks, without their own ending, to paths of images, or their URLs.

    A name has the ending of its image (`a.jpg`) or none (`a`).
    """
    matches = Matches()
    keys, places = list(map(_to_key, names)), list(map(_place, paths))
    _match_forms(matches, names, keys, places, shared_depth(places), (_keep, _drop_ending))
    return matches


def shared_depth(keys: Sequence[Key]) -> int:
    """Count the folders that all paths begin with."""
    levels = zip(*(key[:-1] for key in keys), strict=False)
    return len(list(itertools.takewhile(lambda level: len(set(level)) == 1, levels)))


def split_path(path: str) -> Key:
    """Split the absolute path of a file, or what follows the scheme of a URL."""
    if is_url(path):
        return tuple(path.split("://", 1)[1].split("/"))
    return Path(os.path.abspath(path)).parts[1:]


def follow(file: str) -> str:
    """Return the absolute path of a file with its links followed."""
    try:
        return os.path.realpath(file)
    except ValueError:  # a name that no file can have
        return file


def _match_forms(
    matches: Matches,
    names: Sequence[str],
    keys: Sequence[Key],
    places: Sequence[Key],
    depth: int | None,
    cuts: Sequence[Callable[[Key], Key]] = (_keep,),
) -> None:
    """Match what is left in each form. depth: see `_match_ends`; cuts: applied to paths in turn."""
    for form in _FORMS:
        unclear = dict(matches.unclear)
        named, placed = list(map(form.of_name, keys)), list(map(form.of_path, places))
        for cut in cuts:
            _match_ends(matches, names, named, list(map(cut, placed)), depth)
        if form is _FORMS[0]:  # folders in other letter case may still decide
            matches.unclear = unclear


def _match_ends(
    matches: Matches,
    names: Sequence[str],
    keys: Sequence[Key],
    places: Sequence[Key],
    depth: int | None,
) -> None:
    """Match what is left by common ends of names and paths.

    depth: of the folder of all images, if the ends must be whole names; None: any ends.
    """
    named, placed = defaultdict(list), defaultdict(list)  # end -> names, images
    for i, key in enumerate(keys):
        for start in range(len(key) if depth is None else min(len(key), 1)):
            named[key[start:]].append(i)
    image_ends: dict[int, Key] = {}  # the longest of each image, and of each name
    name_ends: dict[int, Key] = {}
    for i, place in enumerate(places):
        for end in (place[start:] for start in range(len(place))):
            if end in named:
                placed[end].append(i)
                image_ends.setdefault(i, end)
    for end in sorted(placed, key=len, reverse=True):
        for name in named[end]:
            name_ends.setdefault(name, end)
        if depth is not None:
            placed[end] = [i for i in placed[end] if places[i][depth:] == end] or placed[end]
    taken = set(matches.found.values())
    free = {end for name, end in name_ends.items() if name not in taken}
    for i, end in image_ends.items():
        if end in free and (len(placed[end]) > 1 or i == placed[end][0]):
            _take(matches, i, named[end], placed[end], names)


def _take(
    matches: Matches, image: int, of_image: Sequence[int], images: list[int], names: Sequence[str]
) -> None:
    """Match an image that is left to its name, if that is the only one, and it the only image."""
    if image in matches.found or image in matches.unclear or not of_image:
        return
    name = names[of_image[0]]
    if len(of_image) > 1:
        matches.unclear[image] = f"{len(of_image)} names match it, the first {name!r}"
    elif len(images) > 1:
        matches.unclear[image] = f"{name!r} matches {len(images)} images"
    else:
        matches.found[image] = of_image[0]


def _place(path: str) -> Key:
    return _to_key("/".join(split_path(path)))


def _to_key(name: str) -> Key:
    served = _SERVED.match(name)
    plain = unquote(name[served.end() :]) if served else name
    return tuple(p for p in plain.replace("\\", "/").split("/") if p not in ("", ".", ".."))


def _drop_ending(key: Key) -> Key:
    return (*key[:-1], splitext(key[-1])[0]) if key else ()


def _fold(key: Key) -> Key:
    return tuple(unicodedata.normalize("NFC", unquote(part)).casefold() for part in key)


def _drop_digits(key: Key) -> Key:
    """Drop the digits that Label Studio puts before a name; (): it has none."""
    *folders, name = _fold(key) or ("",)
    uploaded = _UPLOADED.fullmatch(name)
    return (*folders, uploaded[1]) if uploaded else ()


def _drop_signs(key: Key) -> Key:
    """Write a base name as Label Studio does: by Django's `get_valid_filename`."""
    *folders, name = _fold(key) or ("",)
    return (*folders, re.sub(r"[^-\w.]", "", name.strip().replace(" ", "_")))


def _drop_roboflow(key: Key) -> Key:
    """Drop the ending that Roboflow appends to a name; (): it has none."""
    *folders, name = _fold(key) or ("",)
    renamed = _ROBOFLOW.fullmatch(name)
    return _replace_signs((*folders, f"{renamed[1]}.{renamed[2]}")) if renamed else ()


def _replace_signs(key: Key) -> Key:
    """Write `_` for signs in a base name, for which Roboflow writes `-` or `_`."""
    *folders, name = _fold(key) or ("",)
    stem, ending = splitext(name)
    return (*folders, re.sub(r"[\W_]+", "_", stem) + ending)


_FORMS = (
    _Form(_keep, _keep),
    _Form(_fold, _fold),
    _Form(_drop_digits, _drop_signs),
    _Form(_drop_roboflow, _replace_signs),
)
