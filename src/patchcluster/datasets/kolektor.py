"""KolektorSDD and KolektorSDD2: a mask next to each image, empty if that is normal.

    kos01/Part0.jpg, kos01/Part0_label.bmp           KolektorSDD: 50 such folders, all test
    {train,test}/10301.png, .../10301_GT.png         KolektorSDD2: defects in the training part too

The archive of KolektorSDD2 holds two files by mistake, `10301 (copy).png` and
`10301_GT (copy).png`: they are left out.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import InputError
from ..images.masks import find_named
from .masks import is_empty, list_folders, list_images
from .types import Sample, Truth

_PART_FOLDER = re.compile(r"kos\d+")
_COPY = " (copy)"


def read_parts(folder: Path) -> Iterator[Sample]:
    """The images of KolektorSDD. Raises InputError if one lacks its mask."""
    inner = [f for f in list_folders(folder) if _PART_FOLDER.fullmatch(f.name)]
    yield from _read_beside([(place, False) for place in inner or [folder]], "_label")


def read_second(folder: Path) -> Iterator[Sample]:
    """The images of KolektorSDD2. Raises InputError if one lacks its mask."""
    yield from _read_beside([(folder / "train", True), (folder / "test", False)], "_GT")


def _read_beside(places: Sequence[tuple[Path, bool]], mark: str) -> Iterator[Sample]:
    """The images of folders, if these have masks named as the images are, with a mark behind.

    places: folders, and whether each is the training part.
    """
    every = [(p, train) for place, train in places for p in list_images(place, deep=False)]
    files = [(path, train) for path, train in every if _COPY not in path.stem]
    if not any(path.stem.endswith(mark) for path, _ in files):
        return
    for path, train in files:
        if path.stem.endswith(mark):
            continue
        mask = find_named(path.parent, path.stem + mark)
        if mask is None:
            raise InputError(
                f"{str(path)!r} has no mask: put it at {str(path.with_suffix(''))!r}{mark}.png, "
                "empty if the image is normal"
            )
        anomalous = not is_empty(mask)
        yield Sample(str(path), train, Truth(anomalous, (mask,) if anomalous else ()))
