"""Images given as objects instead of files, converted to the bytes of image files.

Accepted are a Hugging Face data set with a column of images, and anything that can be iterated (or
indexed, with a length) and gives Pillow images, arrays, tensors or bytes of image files: alone,
first in a tuple, or in a dict as "image".

- Bytes, and the files of a Hugging Face data set, are kept as they are.
- Pillow images are saved losslessly, with their EXIF orientation applied: as PNG, or as TIFF if
  they have 32 bits or are CMYK. Modes that neither format has (YCbCr, LAB, HSV) become RGB.
- uint8 and uint16 arrays are saved as PNG of the same bit depth: [h, w], or [h, w, c] or [c, h, w]
  with c = 1, 3 or 4. Where both ends could be channels, an array has them last, a tensor first.
- Floats must lie between 0 and 1 and become 8 bits, round(255 x), which is lossless for the output
  of ToTensor. Any other range is refused, since its meaning is unknown.
- None becomes an empty file, which the scan lists as skipped.

One image at a time is in memory.
"""

import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import length_hint
from pathlib import PurePath
from typing import Any

import imagecodecs
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ..datasets import Category
from ..errors import InputError
from ..images.inputs import open_input, reason
from ..images.raster import encode

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

_CHANNELS = (1, 3, 4)
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
_TIFF_MODES = ("I", "F", "CMYK")
_PLAIN_MODES = {"PA": "RGBA", "RGBa": "RGBA", "La": "LA", "I;16B": "I;16", "I;16L": "I;16"}
_TOLERANCE = 1e-4  # interpolation makes floats that exceed 0 to 1 by as much
_END = object()


class _NotAnImage(InputError):
    """An item that cannot be converted; the message continues "image 3 of the data set"."""


@dataclass(frozen=True)
class Source:
    """Images to be converted, and their number (0: unknown)."""

    items: Iterator[Any]
    total: int = 0

    def files(self) -> Iterator[tuple[str, bytes]]:
        """Convert each image to the name and the bytes of a file, in order.

        The name consists of the image's index and of its name in the data set, if it has one.
        Raises InputError, which gives the index.
        """
        index = 0
        try:
            for item in self.items:
                yield _convert(index, item)
                index += 1
        except _NotAnImage as error:
            raise InputError(f"image {index} of the data set {error}") from error
        except Exception as error:  # raised by the data set or by a decoder
            raise _unreadable(index, error) from error


def open_inputs(inputs: Any) -> list[str] | Source:
    """Return what is to be scanned: paths (or globs, or URLs), or images to be converted.

    Raises InputError if it is neither.
    """
    if isinstance(inputs, str | os.PathLike):
        return list_paths(inputs)
    if isinstance(inputs, Category):
        return [sample.path for sample in inputs.samples]
    if isinstance(inputs, Mapping):
        names = ", ".join(map(repr, list(inputs)[:3]))
        raise InputError(f"a dict of {names}: name one of them, as in dataset['train']")
    if isinstance(inputs, Image.Image | bytes) or _is_one_image(inputs):
        raise InputError("one image: a blind scan compares images with each other, give a list")
    if hasattr(inputs, "batch_sampler"):
        raise InputError("a DataLoader gives batches: give its data set, loader.dataset")
    return _open_huggingface(inputs) or _open_items(_iterate(inputs), _count(inputs))


def list_paths(inputs: Paths) -> list[str]:
    """Return one or several paths as a list."""
    items = [inputs] if isinstance(inputs, str | os.PathLike) else inputs
    return [os.fspath(item) for item in items]


def _count(inputs: Any) -> int:
    """Count the images of a data set that knows how many it has; else 0."""
    try:
        return length_hint(inputs)
    except NotImplementedError:  # of a data set that is a stream
        return 0


def _open_items(items: Iterator[Any], total: int) -> list[str] | Source:
    """Return paths if the first item is one, or a category, and else images."""
    try:
        first = next(items, _END)
    except Exception as error:  # raised by the data set
        raise _unreadable(0, error) from error
    if first is _END:
        return []
    every = chain([first], items)
    if isinstance(first, Category):
        return [sample.path for category in every for sample in category.samples]
    if not isinstance(first, str | os.PathLike):
        return Source(every, total)
    try:
        return [os.fspath(item) for item in every]
    except TypeError as error:
        raise InputError(f"paths and something else ({reason(error)}): give one of them") from error


def _unreadable(index: int, error: Exception) -> InputError:
    return InputError(f"image {index} of the data set cannot be read: {reason(error)}")


def _is_one_image(inputs: Any) -> bool:
    if not isinstance(inputs, np.ndarray | torch.Tensor):
        return False
    return inputs.ndim < 3 or (inputs.ndim == 3 and _has_channels(inputs.shape))


def _has_channels(shape: tuple[int, ...]) -> bool:
    return shape[0] in _CHANNELS or shape[-1] in _CHANNELS


def _iterate(inputs: Any) -> Iterator[Any]:
    if hasattr(inputs, "__iter__"):
        return iter(inputs)
    if hasattr(inputs, "__getitem__") and hasattr(inputs, "__len__"):  # a map-style torch Dataset
        return (inputs[i] for i in range(len(inputs)))
    raise InputError(
        f"images cannot be read from type {type(inputs).__name__}: give paths, a data set, or "
        "a list of images"
    )


def _open_huggingface(dataset: Any) -> Source | None:
    """Return the images of a Hugging Face data set, not decoded.

    None if it is no such data set, has no column of images, or has a transform to be applied.
    Raises InputError if it has several such columns.
    """
    features = getattr(dataset, "features", None)
    if not hasattr(dataset, "cast_column") or not features:
        return None
    columns = [name for name, kind in features.items() if type(kind).__name__ == "Image"]
    if not columns or getattr(dataset, "format", {}).get("type") == "custom":
        return None
    if len(columns) > 1 and "image" not in columns:
        raise InputError(
            f"the data set has several columns of images ({', '.join(columns)}): keep one, as in "
            f"dataset.select_columns([{columns[0]!r}])"
        )
    name = "image" if "image" in columns else columns[0]
    plain = dataset.select_columns([name]).with_format(None)
    plain = plain.cast_column(name, type(features[name])(decode=False))
    return Source((row[name] for row in plain), length_hint(dataset))


def _convert(index: int, item: Any) -> tuple[str, bytes]:
    """Convert one item of a data set to a file name and bytes. Raises _NotAnImage."""
    image, path = item, ""
    if isinstance(image, tuple) and image:
        image = image[0]
    elif isinstance(image, Mapping) and "image" in image:
        image = image["image"]
    if isinstance(image, Mapping) and {"bytes", "path"} <= set(image):  # Hugging Face's, undecoded
        image, path = image["bytes"], str(image["path"] or "")
        if image is None and path:
            with open_input(path) as file:
                image = file.read()
    if image is None:
        data, ending = b"", ".png"
    elif isinstance(image, bytes):
        data, ending = image, _find_ending(path, image)
    elif isinstance(image, torch.Tensor):
        plain = image.detach().cpu()
        plain = plain.float() if plain.is_floating_point() else plain  # NumPy has no bfloat16
        data, ending = _encode_array(plain.numpy(), channels_first=True)
    elif isinstance(image, np.ndarray):
        data, ending = _encode_array(image, channels_first=False)
    elif isinstance(image, Image.Image):
        data, ending = _encode_pillow(image)
    else:
        raise _NotAnImage(
            f"has no image in it ({_describe(item)}): give Pillow images, arrays, tensors or "
            "bytes, alone, first in a tuple, or in a dict as 'image'"
        )
    stem = re.sub(r"[^A-Za-z0-9._-]", "_", PurePath(path).stem)[:80]  # valid on any file system
    return f"{index:06d}{'-' * bool(stem)}{stem}{ending}", data


def _describe(item: Any) -> str:
    if isinstance(item, Mapping):
        return f"a dict of {', '.join(map(str, list(item)[:5]))}"
    if isinstance(item, tuple | list):
        return f"a {type(item).__name__} of {', '.join(type(part).__name__ for part in item[:5])}"
    return type(item).__name__


def _find_ending(path: str, data: bytes) -> str:
    ending = PurePath(path).suffix
    if re.fullmatch(r"\.\w{1,5}", ending):
        return ending
    try:
        with Image.open(io.BytesIO(data)) as image:
            return f".{(image.format or 'img').lower()}"
    except Exception:  # the scan will list it as unreadable, with the reason
        return ".img"


def _encode_pillow(image: Image.Image) -> tuple[bytes, str]:
    """Return the bytes of a file, and the ending of its name."""
    upright = ImageOps.exif_transpose(image)
    if upright.mode not in (*_PNG_MODES, *_TIFF_MODES):
        upright = upright.convert(_PLAIN_MODES.get(upright.mode, "RGB"))
    if upright.mode in _TIFF_MODES:
        return encode(upright, "TIFF"), ".tiff"
    return encode(upright, compress_level=1), ".png"


def _encode_array(values: NDArray[Any], channels_first: bool) -> tuple[bytes, str]:
    """Return the bytes of a file, and the ending of its name. Raises _NotAnImage."""
    pixels = _to_channels_last(values, channels_first)
    if np.issubdtype(pixels.dtype, np.floating):
        pixels = _to_uint8(pixels)
    if pixels.dtype not in (np.uint8, np.uint16):
        raise _NotAnImage(
            f"has values of type {pixels.dtype}: give uint8, uint16, or floats from 0 to 1"
        )
    if pixels.dtype == np.uint16 and pixels.ndim == 3:  # which Pillow cannot write
        return bytes(imagecodecs.png_encode(np.ascontiguousarray(pixels))), ".png"
    return _encode_pillow(Image.fromarray(np.ascontiguousarray(pixels)))


def _to_channels_last(values: NDArray[Any], channels_first: bool) -> NDArray[Any]:
    """Return an image as [h, w], or as [h, w, c] with c = 3 or 4. Raises _NotAnImage."""
    shape = values.shape
    if not (len(shape) == 2 or (len(shape) == 3 and _has_channels(shape))):
        raise _NotAnImage(
            f"has the shape {list(shape)}: give one image, [h, w], [h, w, c] or [c, h, w] with "
            "1, 3 or 4 channels"
        )
    if 0 in shape:
        raise _NotAnImage(f"has the shape {list(shape)}: there are no pixels in it")
    if len(shape) == 2:
        return values
    if shape[0] in _CHANNELS and (channels_first or shape[2] not in _CHANNELS):
        values = np.moveaxis(values, 0, 2)
    return values[..., 0] if values.shape[2] == 1 else values


def _to_uint8(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Convert floats from 0 to 1 to 8 bits. Raises _NotAnImage for any others."""
    if not np.isfinite(values).all():
        raise _NotAnImage("has NaN or infinite values: correct it or leave it out")
    low, high = float(values.min()), float(values.max())
    if low < -_TOLERANCE:
        raise _NotAnImage(
            f"has values from {low:.3g} to {high:.3g}, as Normalize makes them: drop Normalize "
            "from the transform, the scan does its own"
        )
    if high > 1 + _TOLERANCE:
        raise _NotAnImage(
            f"has floats up to {high:.3g}, not from 0 to 1: divide them, or give uint8 or uint16"
        )
    rounded: NDArray[np.uint8] = np.rint(values.clip(0, 1) * 255).astype(np.uint8)
    return rounded
