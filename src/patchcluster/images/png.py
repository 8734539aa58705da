"""PNG files where Pillow falls short: 16 bits in several channels, and pixels that are missing."""

import io
import math
import zlib
from typing import IO

import imagecodecs
from PIL import Image

from ..errors import UnreadableImage
from .raster import Values

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_BIT_DEPTH, _COLOUR_TYPE, _INTERLACED = 24, 25, 28  # where in the file
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
# First column and row of each pass of an interlaced image, and the steps between them.
_ADAM7 = [
    (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
    (0, 1, 1, 2),
]  # fmt: skip
_XMP = b"XML:com.adobe.xmp\0"


def is_deep(png: IO[bytes]) -> bool:
    """Whether a PNG has 16 bits a channel."""
    position = png.tell()
    png.seek(_BIT_DEPTH)
    depth = png.read(1)
    png.seek(position)
    return depth == b"\x10"


def read_deep(data: bytes) -> tuple[Values, Values | None]:
    """Decode a PNG of 16 bits a channel to uint16 [h, w] or [h, w, 3], and its alpha [h, w].

    Its orientation is not applied. Raises imagecodecs' errors for damage.
    """
    values = imagecodecs.png_decode(data)
    if values.ndim == 2 or values.shape[2] == 3:
        return values, None
    return values[..., 0] if values.shape[2] == 2 else values[..., :3], values[..., -1]


def check_whole(image: Image.Image, data: bytes) -> None:
    """Raise UnreadableImage if pixels of a PNG that Pillow decoded are damaged or missing.

    Pillow looks at no checksum of pixels, and leaves rows black that are not there. To decompress a
    second time is only worth it if the last row is black, or rows are interlaced.
    """
    parts = _check_pixels(data)
    last = (0, image.height - 1, image.width, image.height)
    if not data[_INTERLACED] and image.crop(last).getbbox(alpha_only=False) is not None:
        return
    bits = data[_BIT_DEPTH] * _CHANNELS[data[_COLOUR_TYPE]]
    whole = 0
    for x, y, across, down in _ADAM7 if data[_INTERLACED] else [(0, 0, 1, 1)]:
        columns = len(range(x, image.width, across))
        if columns:  # each row behind a byte that says how it is filtered
            whole += (1 + math.ceil(columns * bits / 8)) * len(range(y, image.height, down))
    if len(zlib.decompressobj().decompress(b"".join(parts), whole)) < whole:
        raise UnreadableImage("damaged image: its pixels end before the last row")


def _check_pixels(data: bytes) -> list[memoryview]:
    """List the parts of the compressed pixels.

    Raises UnreadableImage if one has another checksum; the last may have none.
    """
    parts, file, start = [], memoryview(data), len(_SIGNATURE)
    while start + 8 <= len(data):
        end = start + 8 + int.from_bytes(data[start : start + 4], "big")
        if data[start + 4 : start + 8] == b"IDAT":
            stated = file[end : end + 4]
            actual = zlib.crc32(file[start + 4 : end]).to_bytes(4, "big")
            if len(stated) == 4 and stated != actual:
                raise UnreadableImage("damaged image: its pixels do not fit their checksum")
            parts.append(file[start + 8 : end])
        start = end + 4
    return parts


def has_metadata(png: IO[bytes]) -> bool:
    """Whether a PNG has a chunk that an orientation may be in: EXIF, EXIF as text, or XMP."""
    position = png.tell()
    png.seek(len(_SIGNATURE))
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
