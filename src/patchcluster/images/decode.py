"""Read images and bring them to the size of the network.

How pixels are brought to three channels of 0 to 255:
- the EXIF orientation is applied; of several frames the first is taken;
- grey is repeated, palettes are looked up, CMYK is converted, transparent pixels lie on white;
- "deep" images (over 8 bits a channel) are scaled by one window for the whole set, never by an
  image's own contrast: see `window`. They stay float32, so faint contrast survives.
"""

import hashlib
import io
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import InputError, UnreadableImage
from . import jpeg
from .inputs import open_input, reason
from .shapes import MAX_PIXELS, check_shape, raise_pillow_limit
from .window import DeepKind, Spread, apply_window, measure_spread

Pixels = NDArray[np.uint8] | NDArray[np.float32]
Depth = Literal["byte"] | DeepKind
_Value = TypeVar("_Value", bound=np.generic)

THUMBNAIL_SIDE = 320
_ORIENTATION = 0x0112  # EXIF tag
SWAPPING = (5, 6, 7, 8)  # orientations that swap width and height
_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_BITS = 256, 257, 258  # TIFF tags; bits are of each channel
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_XMP = b"XML:com.adobe.xmp\0"
_CHANGED = "changed while the scan was running"
_WHITE = (255, 255, 255, 255)


@dataclass(frozen=True)
class Header:
    """Size of an image as shown (EXIF applied), and the spread of its values if it is deep."""

    width: int
    height: int
    spread: Spread | None = None

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


def survey(source: str | bytes, max_pixels: int = MAX_PIXELS) -> Header:
    """Read an image's size as shown and, if it is deep, the spread of its values.

    source: its path, or the bytes of the file. Only the header is read, except of deep images.
    Raises UnreadableImage with the reason, also for the shapes that `check_shape` refuses.
    """
    raise_pillow_limit(max_pixels)
    with _open(source, head=True) as file, _reading():
        image = Image.open(file)
        check_shape(image.width, image.height, max_pixels)
        depth = _depth(image, file)
        width, height = _stored_size(image)
        if _orientation(image, file) in SWAPPING:
            width, height = height, width
        if depth == "byte":
            return Header(width, height)
        file.seek(0)
        return Header(width, height, measure_spread(_deep_values(file.read()), depth))


def read_orientation(path: str) -> int:
    """Read the EXIF orientation of an image, 1 to 8. Raises UnreadableImage, or InputError."""
    with _open(path, head=True) as file, _reading():
        return _orientation(Image.open(file), file)


def load_image(
    source: str | bytes,
    header: Header,
    sizes: Sequence[tuple[int, int]],
    windows: Mapping[str, Sequence[float]],
) -> LoadedImage:
    """Read one image and resize it to each (height, width), the whole frame, without a crop.

    `source` is as in `survey`, `header` what that found, `windows` what `choose_windows` gave
    for the set. Raises UnreadableImage with the reason.
    """
    raise_pillow_limit(header.width * header.height)
    with _open(source) as file, _reading():
        data = file.read()
        stream = io.BytesIO(data)
        image: Image.Image = Image.open(stream)
        depth = _depth(image, stream)
        if depth != header.depth:
            raise UnreadableImage(_CHANGED)
        if image.format in jpeg.FORMATS:
            image = jpeg.decode(image, data)
        if depth == "byte":
            shown = _plain(_upright(image))
            _check_whole(image, data)
            pixels: list[Pixels] = [_resize(shown, size) for size in sizes]
        else:
            values = apply_window(_deep_values(data), windows[depth])
            pixels = [_resize_float(values, size) for size in sizes]
            shown = Image.fromarray(np.rint(values).astype(np.uint8))
    if shown.size != (header.width, header.height):
        raise UnreadableImage(_CHANGED)
    return LoadedImage(pixels, hashlib.sha256(data).hexdigest(), len(data), _thumbnail(shown))


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
    except UnidentifiedImageError as error:
        raise UnreadableImage("not an image, or of a format that Pillow cannot read") from error
    except Image.DecompressionBombError as error:
        raise UnreadableImage("too large: more pixels than --max-pixels allows") from error
    except Exception as error:  # damaged files make Pillow's readers raise almost anything
        raise UnreadableImage(f"damaged image: {reason(error)}") from error


def _plain(image: Image.Image) -> Image.Image:
    """Bring an 8-bit image of any mode to grey or RGB; transparent pixels lie on white."""
    if image.mode == "L" and "transparency" not in image.info:
        return image
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, _WHITE), rgba).convert("RGB")
    return image.convert("RGB")


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


# --- deep images --------------------------------------------------------------------------------


def _orientation(image: Image.Image, source: IO[bytes]) -> int:
    """The EXIF orientation, 1 to 8. Pillow decodes a PNG to see whether it comes behind the pixels,
    so that PNGs are asked first whether they have one at all."""
    if image.format == "PNG" and not _has_metadata(source):
        return 1
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except InputError:  # the file cannot be reached any more
        raise
    except Exception:  # damaged metadata say nothing; the pixels may be whole
        return 1


def _stored_size(image: Image.Image) -> tuple[int, int]:
    """Width and height before the orientation is applied; Pillow swaps those of a TIFF itself."""
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        return tags[_TIFF_WIDTH], tags[_TIFF_HEIGHT]
    return image.size


def _upright(image: Image.Image) -> Image.Image:
    """Decode an image and apply its EXIF orientation, if it has a readable one."""
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # see `_orientation`
        return image


def _check_whole(image: Image.Image, data: bytes) -> None:
    """Raise UnreadableImage if the pixels of a decoded PNG end before its last row.

    Pillow leaves what is missing black. To decompress a second time is only worth it then.
    """
    last = (0, image.height - 1, image.width, image.height)
    if image.format != "PNG" or image.crop(last).getbbox(alpha_only=False) is not None:
        return
    depth, colour_type, interlaced = data[24], data[25], data[28]
    row = 1 + math.ceil(image.width * depth * _PNG_CHANNELS[colour_type] / 8)
    whole = row * image.height
    if not interlaced and len(_png_rows(data, whole)) < whole:
        raise UnreadableImage("damaged image: its pixels end before the last row")


def _png_rows(png: bytes, most: int) -> bytes:
    """The rows of a PNG, each behind a byte that says how it is filtered, up to `most` bytes."""
    parts, position = [], len(_PNG_SIGNATURE)
    while position + 8 <= len(png):
        length, name = (
            int.from_bytes(png[position : position + 4], "big"),
            png[position + 4 : position + 8],
        )
        if name == b"IDAT":
            parts.append(png[position + 8 : position + 8 + length])
        position += length + 12
    return zlib.decompressobj().decompress(b"".join(parts), most)


def _has_metadata(png: IO[bytes]) -> bool:
    """Whether a PNG has a chunk that an orientation may be in: EXIF, EXIF as text, or XMP."""
    position = png.tell()
    png.seek(len(_PNG_SIGNATURE))
    try:
        while len(head := png.read(8)) == 8:
            length, name = int.from_bytes(head[:4], "big"), head[4:]
            text = png.read(length) if name in (b"tEXt", b"zTXt", b"iTXt") else b""
            xmp, compressed = text.startswith(_XMP), text[len(_XMP) : len(_XMP) + 1] != b"\0"
            if xmp and (compressed or b"Orientation" in text):
                return True
            if name == b"eXIf" or text.startswith(b"Raw profile type"):
                return True
            png.seek(length - len(text) + 4, io.SEEK_CUR)  # and the checksum
        return False
    finally:
        png.seek(position)


def _depth(image: Image.Image, source: IO[bytes]) -> Depth:
    if image.mode == "F":
        return "float"
    if image.mode.startswith("I") or _is_deep_colour(image, source):
        return "integer"
    return "byte"


def _is_deep_colour(image: Image.Image, source: IO[bytes]) -> bool:
    """Whether an image has 16 bits in several channels, which Pillow would cut to 8."""
    if image.format == "TIFF":
        bits = image.tag_v2.get(_TIFF_BITS, (8,))  # type: ignore[attr-defined]
        return len(bits) > 1 and max(bits) == 16
    if image.format != "PNG":
        return False
    position = source.tell()
    source.seek(24)  # behind the signature, the chunk's length and name, width and height
    depth, colour_type = source.read(2)
    source.seek(position)
    return depth == 16 and colour_type != 0


def _deep_values(data: bytes) -> NDArray[np.float32]:
    """Decode a deep image, as shown, to float32 [height, width] or [height, width, 3]."""
    image = Image.open(io.BytesIO(data))
    if _is_deep_colour(image, io.BytesIO(data)):
        values = _deep_colour(data)
        if image.format != "TIFF":  # which OpenCV turns itself
            values = orient(values, _orientation(image, io.BytesIO(data)))
    else:
        values = np.asarray(_upright(image)).astype(np.float32)
        _check_whole(image, data)
    if not np.isfinite(values).all():
        raise UnreadableImage("has pixels that are not finite numbers (NaN or infinity)")
    return values


def _deep_colour(data: bytes) -> NDArray[np.float32]:
    """Decode 16-bit colour to float32 [height, width, 3], or grey with alpha to [height, width]."""
    import cv2

    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if decoded is None or decoded.dtype != np.uint16 or decoded.ndim != 3:
        raise UnreadableImage("damaged image: its 16-bit colours cannot be decoded")
    values = decoded.astype(np.float32)
    if values.shape[2] == 4:  # on white, as 8-bit images
        alpha = values[..., 3:] / np.float32(65535)
        values = values[..., :3] * alpha + np.float32(65535) * (1 - alpha)
    return values[..., ::-1]  # OpenCV's order is blue, green, red


def orient(values: NDArray[_Value], orientation: int) -> NDArray[_Value]:
    """Apply an EXIF orientation (1 to 8) to an array [height, width, ...]."""
    if orientation in SWAPPING:
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return np.ascontiguousarray(values)


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
