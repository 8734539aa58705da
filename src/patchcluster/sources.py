"""Images that are no files: what data sets of other packages give -> bytes of image files.

Taken are a Hugging Face data set, a torch Dataset or DataLoader, and anything else that can be
iterated and gives images: Pillow's, arrays, tensors, bytes of files; alone, first in a tuple, in a
dict (as "image", or the only one in it) or as the attribute `image`.

- Bytes and files that the data set has are taken as they are.
- Pillow's images are written losslessly, with their EXIF orientation applied: as PNG, those of 32
  bits and CMYK as TIFF; modes that neither has (YCbCr, LAB, HSV) become RGB.
- uint8 and uint16 are written as PNG of as many bits: [h, w], or [h, w, c] or [c, h, w] with c of
  1, 3, 4. Where both could be, an array has its channels last, a tensor first.
- Floats are from 0 to 1 and become 8 bits, round(255 x): no loss for what ToTensor gave. Any other
  range is refused, since nothing says what it means.
- None is an empty file, so that the scan lists it among those it skipped.

One image at a time is in memory.
"""

import io
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, RandomSampler, SubsetRandomSampler, WeightedRandomSampler

from .datasets import Category
from .errors import InputError, PatchclusterError
from .inputs import open_input, reason

_KEYS = ("image", "img")
_CHANNELS = (1, 3, 4)
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
_TIFF_MODES = ("I", "F", "CMYK")
_PLAIN_MODES = {"PA": "RGBA", "RGBa": "RGBA", "La": "LA", "I;16B": "I;16", "I;16L": "I;16"}
_SLACK = 1e-4  # that floats may exceed 0 to 1 by, as interpolation makes them
_NONE = object()
_GIVE = "give images of Pillow, arrays or tensors, alone, in a tuple, or in a dict as 'image'"


class _NoImage(InputError):
    """What a data set gives for an image cannot be taken for one: "has ..."."""


@dataclass(frozen=True)
class Picture:
    """One image as a file: its name says which of the data set's it is, and what that calls it."""

    name: str
    data: bytes


@dataclass(frozen=True)
class Source:
    """Images that are still to be asked for, and how many there are, if that is known."""

    items: Iterator[Any]
    total: int | None = None

    def pictures(self) -> Iterator[Picture]:
        """The images as files, in order. Raises InputError, with the number of the image."""
        for i in range(sys.maxsize):
            try:
                item = next(self.items, _NONE)
                if item is _NONE:
                    break
                image = _find_image(item)
                data, end = _encode(image)
            except _NoImage as error:
                raise InputError(f"image {i} of the data set {error}") from error
            except Exception as error:  # of the data set's own code, or of what reads files
                raise InputError(
                    f"image {i} of the data set cannot be had: {reason(error)}"
                ) from error
            stem = _plain_stem(_path_of(image))
            yield Picture(f"{i:06d}{'-' * bool(stem)}{stem}{end}", data)
        if self.total is not None and i != self.total:
            raise InputError(
                f"{i} images came from a data set of {self.total}: each must come once, alone or "
                "in batches as torch's default_collate makes them"
            )


def open_inputs(inputs: Any) -> list[str] | Source:
    """What is to be scanned: paths (or globs, or URLs), or images that are no files.

    Raises InputError for what is neither.
    """
    if isinstance(inputs, str | os.PathLike):
        return [os.fspath(inputs)]
    if isinstance(inputs, Category):
        return [sample.path for sample in inputs.samples]
    if isinstance(inputs, Mapping):
        names = ", ".join(map(repr, list(inputs)[:3]))
        raise InputError(f"a dict of {names}: name one of them, as in dataset['train']")
    if isinstance(inputs, Image.Image | bytes) or _is_one_image(inputs):
        raise InputError("one image: a blind scan compares images with each other, give a list")
    found = _open_loader(inputs) or _open_huggingface(inputs)
    return found or _open_items(_iterate(inputs), _length(inputs))


def _open_items(items: Iterator[Any], total: int | None) -> list[str] | Source:
    """Paths, categories or images, by what comes first."""
    try:
        first = next(items, _NONE)
    except PatchclusterError:
        raise
    except Exception as error:
        raise InputError(f"image 0 of the data set cannot be had: {reason(error)}") from error
    if first is _NONE:
        return []
    every = chain([first], items)
    if isinstance(first, str | os.PathLike):
        return _all_paths(every)
    if isinstance(first, Category):
        return [sample.path for category in every for sample in category.samples]
    return Source(every, total)


def _all_paths(items: Iterable[Any]) -> list[str]:
    try:
        return [os.fspath(item) for item in items]
    except TypeError as error:
        raise InputError(f"paths and something else ({reason(error)}): give one of them") from error


def _is_one_image(inputs: Any) -> bool:
    if not isinstance(inputs, np.ndarray | torch.Tensor):
        return False
    return inputs.ndim < 3 or (inputs.ndim == 3 and _is_coloured(inputs.shape))


def _is_coloured(shape: Iterable[int]) -> bool:
    first, *_, last = shape
    return first in _CHANNELS or last in _CHANNELS


def _iterate(inputs: Any) -> Iterator[Any]:
    if hasattr(inputs, "__iter__"):
        return iter(inputs)
    if hasattr(inputs, "__getitem__") and hasattr(inputs, "__len__"):  # a map-style Dataset
        return (inputs[i] for i in range(len(inputs)))
    raise InputError(
        f"a {type(inputs).__name__} is no set of images: give paths, a data set, or images"
    )


def _length(inputs: Any) -> int | None:
    try:
        return len(inputs)
    except (TypeError, NotImplementedError):
        return None


# --- torch and Hugging Face ---------------------------------------------------------------------


def _open_loader(loader: Any) -> Source | None:
    """The images of a DataLoader, whose batches are taken apart. Raises InputError."""
    if not isinstance(loader, DataLoader):
        return None
    sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)
    if isinstance(sampler, RandomSampler | SubsetRandomSampler | WeightedRandomSampler):
        raise InputError(
            "the DataLoader draws images in random order, so that none has a name: make it with "
            "shuffle=False"
        )
    if loader.drop_last:
        raise InputError("the DataLoader leaves images out: make it with drop_last=False")
    if loader.batch_sampler is None:
        return Source(iter(loader))
    total = _length(sampler)
    return Source((image for batch in loader for image in _take_apart(batch)), total)


def _take_apart(batch: Any) -> Iterator[Any]:
    """The items of a batch, as default_collate makes it, or a list of them. Raises _NoImage."""
    if isinstance(batch, Mapping):
        return iter(_pick(batch, _is_batch))
    if not isinstance(batch, tuple | list):
        return iter(getattr(batch, "image", batch))
    if all(map(_is_row, batch)) and all(len(row) > 1 and _is_batch(row) for row in batch):
        raise _NoImage("comes in lists of images in lists: give those to be scanned alone")
    if all(map(_is_image, batch)) or all(map(_is_row, batch)):
        return iter(batch)
    return iter(next(filter(_is_batch, batch), batch))


def _is_batch(value: Any) -> bool:
    """Whether these can be the images of a batch."""
    if isinstance(value, np.ndarray | torch.Tensor):
        return value.ndim > 2
    return isinstance(value, list | tuple) and bool(value) and all(map(_is_image, value))


def _is_row(value: Any) -> bool:
    """Whether this can be one item of several parts."""
    return isinstance(value, list | tuple) and bool(value) and _is_image(value[0])


def _open_huggingface(dataset: Any) -> Source | None:
    """The images of a `datasets.Dataset`, as the bytes it holds; None: it is none, or has no column
    of images, or is to be seen through a transform.

    Raises InputError if it has several such columns.
    """
    library: Any = sys.modules.get("datasets")
    kinds = tuple(filter(None, (getattr(library, n, None) for n in ("Dataset", "IterableDataset"))))
    if not kinds or not isinstance(dataset, kinds) or not dataset.features:
        return None
    if getattr(dataset, "format", {}).get("type") == "custom":
        return None
    columns = [n for n, kind in dataset.features.items() if isinstance(kind, library.Image)]
    if not columns:
        return None
    if len(columns) > 1 and _KEYS[0] not in columns:
        raise InputError(
            f"the data set has several columns of images ({', '.join(columns)}): keep one, as in "
            f"dataset.select_columns([{columns[0]!r}])"
        )
    name = columns[0] if len(columns) == 1 else _KEYS[0]
    plain = dataset.select_columns([name]).with_format(None)
    plain = plain.cast_column(name, library.Image(decode=False))
    return Source((row[name] for row in plain), _length(dataset))


# --- one item -----------------------------------------------------------------------------------


def _find_image(item: Any) -> Any:
    """The image in one item of a data set. Raises _NoImage if there is none, or several."""
    if item is None or _is_image(item):
        return item
    if isinstance(item, Mapping):
        return _pick(item, _is_image)
    if isinstance(item, tuple | list):
        for part in item:
            if part is None or _is_image(part):
                return part
    elif _is_image(getattr(item, "image", None)):
        return item.image
    raise _NoImage(f"has no image in it ({_describe(item)}): {_GIVE}")


def _pick(item: Mapping[Any, Any], fits: Any) -> Any:
    """The one value of a dict that fits, or that of the usual name."""
    for key in _KEYS:
        if key in item and (item[key] is None or fits(item[key])):
            return item[key]
    fitting = [key for key, value in item.items() if fits(value)]
    if len(fitting) != 1:
        what = f"several images ({', '.join(map(str, fitting))})" if fitting else "no image"
        raise _NoImage(f"has {what} in it ({_describe(item)}): {_GIVE}")
    return item[fitting[0]]


def _is_image(value: Any) -> bool:
    if isinstance(value, np.ndarray | torch.Tensor):
        return value.ndim in (2, 3)
    if isinstance(value, Mapping):  # as Hugging Face has one that is not decoded
        return {"bytes", "path"} <= set(value)
    return isinstance(value, Image.Image | bytes)


def _describe(item: Any) -> str:
    if isinstance(item, Mapping):
        return f"a dict of {', '.join(map(str, list(item)[:5]))}"
    if isinstance(item, tuple | list):
        return f"a {type(item).__name__} of {', '.join(type(part).__name__ for part in item[:5])}"
    if isinstance(item, np.ndarray | torch.Tensor):
        return f"shape {list(item.shape)}"
    return type(item).__name__


def _path_of(image: Any) -> str:
    """What the data set calls an image; "": nothing."""
    return str(image.get("path") or "") if isinstance(image, Mapping) else ""


def _plain_stem(path: str) -> str:
    """The name in a path without its ending, of letters that any file system takes."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", PurePath(path).stem)[:80]


def _encode(image: Any) -> tuple[bytes, str]:
    """An image as the bytes of a file, and the ending of its name. Raises _NoImage."""
    if image is None:
        return b"", ".png"
    if isinstance(image, Mapping):
        return _as_it_is(image["bytes"], _path_of(image))
    if isinstance(image, bytes):
        return _as_it_is(image, "")
    if isinstance(image, torch.Tensor):
        plain = image.detach().cpu()
        plain = plain.float() if plain.is_floating_point() else plain
        return _encode_array(plain.numpy(), channels_first=True)
    if isinstance(image, np.ndarray):
        return _encode_array(image, channels_first=False)
    return _encode_pillow(image)


def _as_it_is(data: bytes | None, path: str) -> tuple[bytes, str]:
    if data is None and path:
        with open_input(path) as file:
            data = file.read()
    end = PurePath(path).suffix
    return data or b"", end if re.fullmatch(r"\.\w{1,5}", end) else _guess_end(data or b"")


def _guess_end(data: bytes) -> str:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return f".{(image.format or 'img').lower()}"
    except Exception:  # that it cannot be read is for the scan to say
        return ".img"


def _encode_pillow(image: Image.Image) -> tuple[bytes, str]:
    shown = ImageOps.exif_transpose(image)
    if shown.mode not in (*_PNG_MODES, *_TIFF_MODES):
        shown = shown.convert(_PLAIN_MODES.get(shown.mode, "RGB"))
    end = "tiff" if shown.mode in _TIFF_MODES else "png"
    options = {} if end == "tiff" else {"compress_level": 1}
    buffer = io.BytesIO()
    shown.save(buffer, end.upper(), **options)
    return buffer.getvalue(), f".{end}"


def _encode_array(values: NDArray[Any], channels_first: bool) -> tuple[bytes, str]:
    pixels = _channels_last(values, channels_first)
    if pixels.dtype == np.uint16 and pixels.ndim == 3:
        import cv2

        order = [2, 1, 0, 3][: pixels.shape[2]]  # OpenCV's is blue, green, red
        return cv2.imencode(".png", np.ascontiguousarray(pixels[..., order]))[1].tobytes(), ".png"
    if np.issubdtype(pixels.dtype, np.floating):
        pixels = _to_bytes(pixels)
    if pixels.dtype not in (np.uint8, np.uint16):
        raise _NoImage(
            f"has values of type {pixels.dtype}: give uint8, uint16, or floats from 0 to 1"
        )
    return _encode_pillow(Image.fromarray(np.ascontiguousarray(pixels)))


def _channels_last(values: NDArray[Any], channels_first: bool) -> NDArray[Any]:
    """An array as [h, w] or [h, w, 3 or 4]."""
    if values.ndim == 3:
        ends = [values.shape[2] in _CHANNELS, values.shape[0] in _CHANNELS]
        if ends[1] and (channels_first or not ends[0]):
            values = np.moveaxis(values, 0, 2)
        elif not ends[0]:
            raise _NoImage(f"has the shape {list(values.shape)}: one side must be 1, 3 or 4")
        values = values[..., 0] if values.shape[2] == 1 else values
    if 0 in values.shape:
        raise _NoImage(f"has the shape {list(values.shape)}: there are no pixels in it")
    return values


def _to_bytes(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Floats from 0 to 1 as 8 bits."""
    if not np.isfinite(values).all():
        raise _NoImage("has values that are no finite numbers: mend or leave it out")
    low, high = float(values.min()), float(values.max())
    if low < -_SLACK:
        raise _NoImage(
            f"has values from {low:.3g} to {high:.3g}, as Normalize makes them: drop Normalize "
            "from the transform, the scan does its own"
        )
    if high > 1 + _SLACK:
        raise _NoImage(
            f"has floats up to {high:.3g}, not from 0 to 1: divide them, or give uint8 or uint16"
        )
    rounded: NDArray[np.uint8] = np.rint(values.clip(0, 1) * 255).astype(np.uint8)
    return rounded
