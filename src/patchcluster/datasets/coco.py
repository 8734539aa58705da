"""COCO: a JSON file of images and of what is on them.

    annotations.json (or _annotations.coco.json)
    NAME.* as the JSON file names them, in the folder that our exports state (`info.image_folder`),
    next to the JSON file or in a folder `images`; or elsewhere, where they are found by their
    names: see `images.matching`

Sizes and shapes may be of images as they are shown or as they are stored, that is before their EXIF
orientation is applied: see `types.read_shown`. Entries of one file name are one image: Label Studio
lists an image for each annotator. It also writes no size for images that it could not open, which
only polygons need.

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
from typing import Annotated, Any

from annotated_types import Gt, Lt
from pydantic import TypeAdapter, ValidationError

from ..errors import InputError
from ..images.inputs import natural_key, reason
from .drawn import MAX_PIXELS, Polygons, Runs, Shape
from .types import Sample, Truth

FILES = ("annotations.json", "_annotations.coco.json")
_Side = Annotated[int, Gt(0), Lt(1 << 20)]
_Coordinate = Annotated[float, Gt(-1e9), Lt(1e9)]


@dataclass
class _Image:
    id: int | str
    file_name: str
    width: _Side | None = None
    height: _Side | None = None


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
    info: Any = None


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
    images = {image.id: image for image in found.images}
    if len(images) < len(found.images):
        raise InputError(f"two images in {str(path)!r} have one id: mend it")
    info = found.info if isinstance(found.info, dict) else {}
    shapes: dict[str, list[Shape | None]] = {image.file_name: [] for image in found.images}
    for note in found.annotations:
        if note.image_id not in images:
            raise InputError(
                f"{str(path)!r} has an annotation of image {note.image_id!r}, which it does not "
                "name: mend it"
            )
        image = images[note.image_id]
        shapes[image.file_name].append(_shape(image, note, path, info))
    samples = [
        Sample(_locate(path, name, info), False, _truth(name, shapes[name], path), name)
        for name in shapes
    ]
    return sorted(samples, key=lambda sample: natural_key(sample.path))


def _locate(path: Path, name: str, info: dict[str, Any]) -> str:
    """Say where the file of an image should be; the first place where it may be, if it is in none.

    The places are those that the module states.
    """
    plain = name.replace("\\", "/")
    places = [str(folder / plain) for folder in (path.parent, path.parent / "images")]
    if isinstance(info.get("image_folder"), str):
        places.insert(0, info["image_folder"] + plain)
    return next(filter(os.path.isfile, places), places[0])


def _truth(name: str, shapes: list[Shape | None], path: Path) -> Truth:
    known = tuple(shape for shape in shapes if shape is not None)
    return Truth(bool(shapes), known if len(known) == len(shapes) else (), f"{path}: {name}")


def _shape(image: _Image, note: _Annotation, path: Path, info: dict[str, Any]) -> Shape | None:
    """Return the mask of an annotation; None: it says nowhere where."""
    given, width, height = note.segmentation, image.width, image.height
    if isinstance(given, _Runs):
        height, width = height or given.size[0], width or given.size[1]
    if not given or width is None or height is None:
        return None
    if width * height > MAX_PIXELS:
        raise InputError(f"{str(path)!r}: {image.file_name!r} is too large: mend its size")
    if isinstance(given, _Runs):
        if given.size != (height, width):
            raise InputError(
                f"{str(path)!r}: runs for {given.size[1]} x {given.size[0]} pixels on "
                f"{image.file_name!r}, which has {width} x {height}: mend it"
            )
        counts = given.counts if isinstance(given.counts, str) else tuple(given.counts)
        return Runs(*given.size, counts)
    polygons = tuple(tuple(one) for one in given if len(one) >= 6 and len(one) % 2 == 0)
    in_percent = info.get("contributor") == "Label Studio"
    return Polygons(height, width, polygons, in_percent) if polygons else None
