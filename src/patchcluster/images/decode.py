"""Read images and bring them to the size of the network.

How pixels are brought to three channels of 0 to 255:
- the EXIF orientation is applied; of several frames or pages the first in full size is taken;
- grey is repeated, palettes are looked up, CMYK is converted, transparent pixels lie on white;
- alpha that is the same everywhere is ignored;
- "deep" images (over 8 bits a channel) are scaled by one window for the whole set, never by an
  image's own contrast: see `window`. They stay float32, so faint contrast survives.
"""

import hashlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import InputError, UnreadableImage
from . import formats, jpeg, png
from .inputs import open_input, reason
from .looks import measure_look
from .raster import SWAPPING, Values, compose, orient, to_share
from .shapes import LARGEST, MAX_PIXELS, check_shape, raise_pillow_limit
from .tiff import TiffImage, is_tiff
from .window import DeepKind, Spread, apply_window, measure_spread

Pixels = NDArray[np.uint8] | NDArray[np.float32]
Depth = Literal["byte"] | DeepKind

THUMBNAIL_SIDE = 320
_ORIENTATION = 0x0112  # EXIF tag
_ANIMATED = ("GIF", "WEBP", "PNG", "AVIF")  # formats whose frames follow each other
_BANDS = 4  # of a TIFF that has the most pixels; one of fewer may have more bands
_PGM_MAXVAL = re.compile(rb"P[25](?:\s+(?:#.*\n\s*)*\d+){2}\s+(?:#.*\n\s*)*(\d+)\s")
_CHANGED = "changed while the scan was running"
_WHITE = (255, 255, 255, 255)


@dataclass(frozen=True)
class Header:
    """Size of an image as shown (EXIF applied), and the spread of its values if it is deep."""

    width: int
    height: int
    spread: Spread | None = None
    several: bool = False  # pages or frames in full size, of which the first is taken
    orientation: int = 1  # EXIF's, 1 to 8

    @property
    def depth(self) -> Depth:
        return "byte" if self.spread is None else self.spread.kind


@dataclass(frozen=True)
class LoadedImage:
    """An image resized for the network, with hash, size and thumbnail of its file."""

    pixels: list[Pixels]  # [height, width, 3], 0 to 255, one a network size
    sha256: str  # of the file
    file_size: int  # bytes
    thumbnail: bytes  # JPEG
    look: list[float]  # see `measure_look`; of its largest pixels


def read_header(source: str | bytes, max_pixels: int = MAX_PIXELS) -> Header:
    """Read an image's size as shown and, if it is deep, the spread of its values.

    source: its path, or the bytes of the file. Only the header is read, except of deep images.
    Raises UnreadableImage with the reason, also for the shapes that `check_shape` refuses.
    """
    raise_pillow_limit(max_pixels)
    with _open(source, head=True) as file, _reading():
        image = identify(file)
        orientation = orientation_of(image, file)
        width, height = _shown_size(image, orientation)
        depth, several = _depth(image, file), _has_several(image)
        check_shape(width, height, max_pixels, depth != "byte")
        if isinstance(image, TiffImage) and image.samples > _BANDS * max_pixels:
            raise UnreadableImage(
                f"too large: {image.samples} numbers in all bands; --max-pixels allows more"
            )
        if depth == "byte":
            return Header(width, height, None, several, orientation)
        file.seek(0)
        spread = measure_spread(*_deep_values(file.read()), depth)
        return Header(width, height, spread, several, orientation)


def read_orientation(path: str) -> int:
    """Read the EXIF orientation of an image, 1 to 8. Raises UnreadableImage, or InputError."""
    with _open(path, head=True) as file, _reading():
        return orientation_of(identify(file), file)


def load_image(
    source: str | bytes,
    header: Header,
    sizes: Sequence[tuple[int, int]],
    windows: Mapping[str, Sequence[float]],
) -> LoadedImage:
    """Read one image and resize it to each (height, width), the whole frame, without a crop.

    `source` is as in `read_header`, `header` what that found, `windows` what `choose_windows` gave
    for the set. Raises UnreadableImage with the reason.
    """
    raise_pillow_limit(header.width * header.height)
    with _open(source) as file, _reading():
        data = file.read()
        stream = io.BytesIO(data)
        image = identify(stream)
        depth = _depth(image, stream)
        size = _shown_size(image, orientation_of(image, stream))
        if depth != header.depth or size != (header.width, header.height):
            raise UnreadableImage(_CHANGED)
        if depth == "byte":
            shown = _show(image, data)
            pixels: list[Pixels] = [_resize(shown, size) for size in sizes]
        else:
            decoded, share = _deep_values(data)
            values = apply_window(decoded, windows[depth])
            del decoded
            if share is not None:
                values = compose(values, share, 255)
            pixels = [_resize_float(values, size) for size in sizes]
            bytes_ = np.empty(values.shape, np.uint8)
            shown = Image.fromarray(np.rint(values, out=bytes_, casting="unsafe"))
    if shown.size != size:  # a damaged HEIC
        raise UnreadableImage(
            f"damaged image: {shown.width} x {shown.height} pixels, where its header says "
            f"{size[0]} x {size[1]}"
        )
    look = measure_look(max(pixels, key=len))
    sha256 = hashlib.sha256(data).hexdigest()
    return LoadedImage(pixels, sha256, len(data), _thumbnail(shown), look)


def _open(source: str | bytes, head: bool = False) -> IO[bytes]:
    if isinstance(source, str):
        return open_input(source, head)
    if not source:
        raise UnreadableImage("empty file (0 bytes)")
    return io.BytesIO(source)


@contextmanager
def _reading() -> Iterator[None]:
    """Turn whatever Pillow raises on bad data into UnreadableImage with a short reason."""
    try:
        yield
    except InputError:  # with its reason already
        raise
    except Image.DecompressionBombError as error:
        raise UnreadableImage("too large: more pixels than --max-pixels allows") from error
    except Exception as error:  # damaged files make Pillow's readers raise almost anything
        raise UnreadableImage(f"damaged image: {reason(error)}") from error


def identify(file: IO[bytes]) -> Image.Image | TiffImage:
    """Read the header of a file, by Pillow unless it is a TIFF.

    Raises UnreadableImage if its format is not known or not read.
    """
    head = file.read(formats.HEAD)
    file.seek(0)
    formats.prepare(head)
    if is_tiff(head):
        return TiffImage.open(file)
    try:
        return Image.open(file)
    except UnidentifiedImageError as error:
        raise UnreadableImage(formats.describe(head)) from error


def _has_several(image: Image.Image | TiffImage) -> bool:
    """Whether a file has more than one picture of the same importance."""
    if isinstance(image, TiffImage):
        return image.pages > 1
    try:
        return image.format in _ANIMATED and bool(getattr(image, "is_animated", False))
    except InputError:  # the file cannot be reached any more
        raise
    except Exception:  # a damaged second frame, of which nothing is read
        return False


def _show(image: Image.Image | TiffImage, data: bytes) -> Image.Image:
    """Decode an 8-bit image to grey or RGB, as shown."""
    if isinstance(image, TiffImage):
        return Image.fromarray(image.read())
    return _plain(decode_upright(image, data))


def decode_upright(image: Image.Image, data: bytes) -> Image.Image:
    """Decode an 8-bit image as shown, in its own mode. Raises UnreadableImage for damage."""
    if image.format in jpeg.FORMATS:
        image = jpeg.decode(image, data)
    image.load()
    if image.format == "PNG":
        png.check_whole(image, data)
    return _upright(image)


def _plain(image: Image.Image) -> Image.Image:
    """Bring an 8-bit image of any mode to grey or RGB; transparent pixels lie on white."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image if image.mode == "RGBA" else image.convert("RGBA")
        low, high = rgba.getchannel("A").getextrema()
        if low == high:  # see `to_share`
            return rgba.convert("RGB")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, _WHITE), rgba).convert("RGB")
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def _resize(image: Image.Image, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize a grey or RGB image to RGB of (height, width), with an antialiasing filter."""
    return np.array(image.resize(size[::-1], Image.Resampling.BILINEAR).convert("RGB"))


def _thumbnail(image: Image.Image) -> bytes:
    """Shrink an image in place, since a copy of a large one would cost as much again."""
    side = (THUMBNAIL_SIDE, THUMBNAIL_SIDE)
    image.thumbnail(side, Image.Resampling.BILINEAR, reducing_gap=1.0)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


# --- what a header says -------------------------------------------------------------------------


def orientation_of(image: Image.Image | TiffImage, source: IO[bytes]) -> int:
    """The EXIF orientation, 1 to 8. Pillow decodes a PNG to see whether it comes behind the pixels,
    so that PNGs are asked first whether they have one at all."""
    if isinstance(image, TiffImage):
        return image.orientation
    if image.format == "PNG" and not png.has_metadata(source):
        return 1
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except InputError:  # the file cannot be reached any more
        raise
    except Exception:  # damaged metadata say nothing; the pixels may be whole
        return 1


def _shown_size(image: Image.Image | TiffImage, orientation: int) -> tuple[int, int]:
    """Width and height after the orientation is applied."""
    if isinstance(image, TiffImage):
        return image.size
    return image.size[::-1] if orientation in SWAPPING else image.size


def _upright(image: Image.Image) -> Image.Image:
    """Decode an image and apply its EXIF orientation, if it has a readable one."""
    image.load()
    with suppress(Exception):  # see `orientation_of`
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _depth(image: Image.Image | TiffImage, source: IO[bytes]) -> Depth:
    if isinstance(image, TiffImage):
        return "float" if image.floats else "integer" if image.deep else "byte"
    if image.mode == "F":
        return "float"
    deep = image.mode.startswith("I") or (image.format == "PNG" and png.is_deep(source))
    return "integer" if deep else "byte"


# --- deep images --------------------------------------------------------------------------------


def _deep_values(data: bytes) -> tuple[Values, Values | None]:
    """Decode a deep image, as shown, to numbers [height, width] or [height, width, 3].

    -> the numbers, and how opaque each pixel is, float64 [height, width] of 0 to 1; None: all are.
    """
    stream = io.BytesIO(data)
    image = identify(stream)
    if isinstance(image, TiffImage):
        values, alpha = image.read_apart()
    elif image.format == "PNG":
        values, alpha = png.read_deep(data)
        orientation = orientation_of(image, stream)
        values = orient(values, orientation)
        alpha = None if alpha is None else orient(alpha, orientation)
    else:
        alpha = None
        values = np.asarray(_upright(image))
        if maxval := _PGM_MAXVAL.match(data):  # Pillow scales by it
            values = np.rint(values * (int(maxval[1]) / 65535)).astype(np.uint16)
    for one in (values, alpha):  # of numbers that are none every comparison fails
        if one is not None and not (-LARGEST < float(one.min()) <= float(one.max()) < LARGEST):
            raise UnreadableImage(
                f"has pixels that are not finite numbers (NaN, infinity, or over {LARGEST:g})"
            )
    share = None if alpha is None else to_share(alpha)
    if share is not None and isinstance(image, TiffImage) and image.is_premultiplied:
        factor = np.divide(1, share, out=np.zeros_like(share), where=share > 0)
        values = values * (factor if values.ndim == 2 else factor[..., None])
    return values, share


def _resize_float(values: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Resize [h, w] or [h, w, 3] to [height, width, 3], with the filter of 8-bit images."""
    channels = values[..., None] if values.ndim == 2 else values
    resized = [
        np.asarray(
            Image.fromarray(np.ascontiguousarray(channels[..., c])).resize(
                size[::-1], Image.Resampling.BILINEAR
            )
        )
        for c in range(channels.shape[2])
    ]
    return np.stack(resized * (3 // len(resized)), axis=-1)
