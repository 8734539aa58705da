"""COCO: a JSON file of images and of what is on them.

    annotations.json (or _annotations.coco.json)
    NAME.* as the JSON file names them, next to it or in a folder `images`; or elsewhere, where
    they are found by their names: see `images.matching`

Sizes and shapes may be of images as they are shown or as they are stored, that is before their EXIF
orientation is applied: see `types.read_shown`.

An image is anomalous if it has an annotation, whatever its category. Polygons and runs (RLE, as
numbers or as text) are its masks; if an annotation has only a box, no one says where. All images
are test.
"""

import functools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from annotated_types import Gt, Lt
from pydantic import TypeAdapter, ValidationError

from ..errors import InputError
from ..images.inputs import natural_key, reason
from .shapes import MAX_PIXELS, Polygons, Runs, Shape
from .types import Sample, Truth

FILES = ("annotations.json", "_annotations.coco.json")
_Side = Annotated[int, Gt(0), Lt(1 << 20)]
_Coordinate = Annotated[float, Gt(-1e9), Lt(1e9)]


@dataclass
class _Image:
    id: int | str
    file_name: str
    width: _Side
    height: _Side


@dataclass
class _Runs:
    size: tuple[_Side, _Side]  # height, width
    counts: list[int] | str


@dataclass
class _Annotation:
    image_id: int | str
    segmentation: list[list[_Coordinate]] | _Runs | None = None


@dataclass
class _File:
    images: list[_Image]
    annotations: list[_Annotation] = field(default_factory=list)


@functools.cache
def _reader() -> TypeAdapter[_File]:
    """Make it when it is first needed: it takes a tenth of a second, and every scan loads this."""
    return TypeAdapter(_File)


def is_file(path: Path) -> bool:
    """Say whether a path is that of a file of annotations."""
    return path.suffix.lower() == ".json" and path.is_file()


def read(folder: Path) -> Iterator[Sample]:
    """Read the images of a folder with a JSON file. Raises InputError if that is damaged."""
    for name in FILES:
        if (folder / name).is_file():
            yield from read_file(folder / name)


def read_file(path: Path) -> list[Sample]:
    """Read the images of a JSON file, in natural order. Raises InputError if it is damaged."""
    try:
        found = _reader().validate_python(json.loads(path.read_bytes()))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(
            f"{str(path)!r} is no COCO file ({where or 'all of it'}: {first['msg']}): mend it"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot read {str(path)!r} ({reason(error)}): mend it") from error
    notes: dict[int | str, list[_Annotation]] = {image.id: [] for image in found.images}
    if len(notes) < len(found.images):
        raise InputError(f"two images in {str(path)!r} have one id: mend it")
    for note in found.annotations:
        if note.image_id not in notes:
            raise InputError(
                f"{str(path)!r} has an annotation of image {note.image_id!r}, which it does not "
                "name: mend it"
            )
        notes[note.image_id].append(note)
    samples = [
        Sample(_locate(path, image), False, _truth(image, notes[image.id], path), image.file_name)
        for image in found.images
    ]
    return sorted(samples, key=lambda sample: natural_key(sample.path))


def _locate(path: Path, image: _Image) -> str:
    """Say where the file of an image should be: next to the JSON file, or in a folder `images`."""
    plain = image.file_name.replace("\\", "/")
    places = [str(folder / plain) for folder in (path.parent, path.parent / "images")]
    return next(filter(os.path.isfile, places), places[0])


def _truth(image: _Image, notes: list[_Annotation], path: Path) -> Truth:
    if image.width * image.height > MAX_PIXELS:
        raise InputError(f"{str(path)!r}: {image.file_name!r} is too large: mend its size")
    shapes = [_shape(image, note, path) for note in notes]
    known = tuple(shape for shape in shapes if shape is not None)
    source = f"{path}: {image.file_name}"
    return Truth(bool(notes), known if len(known) == len(shapes) else (), source)


def _shape(image: _Image, note: _Annotation, path: Path) -> Shape | None:
    given = note.segmentation
    if isinstance(given, _Runs):
        if given.size != (image.height, image.width):
            raise InputError(
                f"{str(path)!r}: runs for {given.size[1]} x {given.size[0]} pixels on "
                f"{image.file_name!r}, which has {image.width} x {image.height}: mend it"
            )
        counts = given.counts if isinstance(given.counts, str) else tuple(given.counts)
        return Runs(*given.size, counts)
    if not given:
        return None
    return Polygons(image.height, image.width, tuple(map(tuple, given)))
