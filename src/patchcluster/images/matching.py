"""Names in label files, or of masks -> the images that they mean.

A name of the very file of an image means that image. Else two rules are tried, each of them first
as the name is written, then without regard to letter case, then without what tools add to names:

1. the name is the end of the image's path. Of several such names the longest is taken; a name that
   is the end of several paths means the image whose path below the folder of all images it is.
2. the base name alone is that of the image. This does not hold where folders say what an image is:
   in data sets of folders, and for masks.

A back slash is a slash; of Label Studio's `/data/local-files/?d=a%20b.jpg` the name is what is
behind `?d=`. Tools add: Label Studio 8 digits before a name (`cb0618f6-a.jpg`); Roboflow an ending
(`a_jpg.rf.<32 digits>.jpg`); both write other characters for spaces and signs.

Nothing is guessed: a name that may mean several images, or an image that several names may mean,
is matched to none.
"""

import itertools
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from os.path import splitext
from urllib.parse import unquote

from .inputs import is_url

Key = tuple[str, ...]  # folders and base name
_SERVED = re.compile(r".*local-files/\?d=")
_UPLOADED = re.compile(r"[0-9a-f]{8}-(?=.)")
_ROBOFLOW = re.compile(r"(.+)_([a-z0-9]{2,5})\.rf\.[0-9a-f]{32}(\.[a-z0-9]+)?")


@dataclass
class Matches:
    """found: the position of an image -> that of its name; unclear: of an image -> why it has none.

    Images that no name may mean are in neither.
    """

    found: dict[int, int] = field(default_factory=dict)
    unclear: dict[int, str] = field(default_factory=dict)


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
    meaning = defaultdict(list)
    for i, file in enumerate(files or names):
        meaning[resolve(file)].append(i)
    for i, path in enumerate(paths):
        _take(matches, i, meaning.get(resolve(path), []), [i], names)
    if len(set(matches.found.values())) == len(names):
        return matches
    keys, places = [_to_key(name) for name in names], [_place(path) for path in paths]
    depth = shared_depth(places)
    for form in _FORMS:
        _match_ends(matches, names, list(map(form, keys)), list(map(form, places)), depth)
    for form in _FORMS if by_base_name else ():
        bases, ends = ([form(key)[-1:] for key in part] for part in (keys, places))
        _match_ends(matches, names, bases, ends, 0)
    return matches


def match_masks(names: Sequence[str], paths: Sequence[str]) -> Matches:
    """Match names of masks, without their own ending, to paths of images, or their URLs.

    A name has the ending of its image (`a.jpg`) or none (`a`).
    """
    matches = Matches()
    keys, places = [_to_key(name) for name in names], [_place(path) for path in paths]
    depth = shared_depth(places)
    for form in _FORMS:
        named, whole = list(map(form, keys)), list(map(form, places))
        for ends in (whole, list(map(_drop_ending, whole))):
            _match_ends(matches, names, named, ends, depth)
    return matches


def shared_depth(keys: Sequence[Key]) -> int:
    """Count the folders that all paths begin with."""
    levels = zip(*(key[:-1] for key in keys), strict=False)
    return len(list(itertools.takewhile(lambda level: len(set(level)) == 1, levels)))


def _match_ends(
    matches: Matches, names: Sequence[str], keys: list[Key], places: list[Key], depth: int
) -> None:
    """Match what is left by names that are the end of a path.

    depth: of the folder that all images lie in.
    """
    meaning = defaultdict(list)  # key -> names
    for i, key in enumerate(keys):
        meaning[key].append(i)
    lengths = sorted({len(key) for key in meaning} - {0}, reverse=True)
    fitting = defaultdict(list)  # key -> images
    longest: dict[int, Key] = {}
    for i, place in enumerate(places):
        for end in (place[-length:] for length in lengths if length <= len(place)):
            if end in meaning:
                fitting[end].append(i)
                longest.setdefault(i, end)
    taken = set(matches.found.values())
    for i, key in longest.items():
        whole = [image for image in fitting[key] if places[image][depth:] == key]
        images = whole or fitting[key]
        if i in images and not taken.issuperset(meaning[key]):
            _take(matches, i, meaning[key], images, names)


def _take(
    matches: Matches, image: int, of_image: Sequence[int], images: list[int], names: Sequence[str]
) -> None:
    """Match an image that is left to its name, if that is the only one, and it the only image."""
    if image in matches.found or image in matches.unclear or not of_image:
        return
    name = names[of_image[0]]
    if len(of_image) > 1:
        matches.unclear[image] = f"{len(of_image)} names fit it, the first {name!r}"
    elif len(images) > 1:
        matches.unclear[image] = f"{name!r} fits {len(images)} images"
    else:
        matches.found[image] = of_image[0]


def follow(file: str) -> str:
    """Return the absolute path of a file with its links followed."""
    try:
        return os.path.realpath(file)
    except ValueError:  # a name that no file can have
        return file


def _place(path: str) -> Key:
    return _to_key(path.split("://", 1)[1] if is_url(path) else os.path.abspath(path))


def _to_key(name: str) -> Key:
    served = _SERVED.match(name)
    plain = unquote(name[served.end() :]) if served else name
    return tuple(p for p in plain.replace("\\", "/").split("/") if p not in ("", ".", ".."))


def _fold(key: Key) -> Key:
    return tuple(unicodedata.normalize("NFC", part).casefold() for part in key)


def _drop_additions(key: Key) -> Key:
    """Drop what tools add to a base name, and make `_` of all but letters and digits."""
    *folders, name = _fold(key) or ("",)
    name = _ROBOFLOW.sub(r"\1.\2", _UPLOADED.sub("", unquote(name), 1))
    stem, ending = splitext(name)
    return (*folders, re.sub(r"\W+", "_", stem).strip("_") + ending)


def _drop_ending(key: Key) -> Key:
    return (*key[:-1], splitext(key[-1])[0])


_FORMS: tuple[Callable[[Key], Key], ...] = (lambda key: key, _fold, _drop_additions)
