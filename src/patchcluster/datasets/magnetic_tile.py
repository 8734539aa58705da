"""The magnetic-tile defects as they are published: masks among the images.

    MT_{Blowhole,Break,Crack,Fray,Free,Uneven}/Imgs/NAME.jpg, NAME.png

MT_Free is normal; all images are test.
"""

from collections.abc import Iterator
from pathlib import Path

from ..errors import InputError
from .masks import list_folders, list_images
from .types import Sample, Truth

_PREFIX, _NORMAL = "MT_", "MT_Free"
_PHOTOGRAPHS = (".jpg", ".jpeg")


def read(folder: Path) -> Iterator[Sample]:
    """The images of all kinds. Raises InputError if a defective one lacks its mask."""
    for kind in list_folders(folder):
        if not kind.name.startswith(_PREFIX):
            continue
        for path in list_images(kind / "Imgs", deep=False):
            if path.suffix.lower() not in _PHOTOGRAPHS:
                continue
            if kind.name == _NORMAL:
                yield Sample(str(path), False, Truth(False))
                continue
            mask = path.with_suffix(".png")
            if not mask.is_file():
                raise InputError(f"{str(path)!r} has no mask: put it at {str(mask)!r}")
            yield Sample(str(path), False, Truth(True, (mask,)))
