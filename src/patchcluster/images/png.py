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
    """Raise UnreadableImage if the pixels of a PNG that Pillow decoded end before its last row.

    Pillow leaves what is missing black. To decompress a second time is only worth it then.
    """
    last = (0, image.height - 1, image.width, image.height)
    if image.crop(last).getbbox(alpha_only=False) is not None:
        return
    row = 1 + math.ceil(image.width * data[_BIT_DEPTH] * _CHANNELS[data[_COLOUR_TYPE]] / 8)
    whole = row * image.height
    if not data[_INTERLACED] and len(_rows(data, whole)) < whole:
        raise UnreadableImage("damaged image: its pixels end before the last row")


def _rows(png: bytes, most: int) -> bytes:
    """Return the rows, each behind a byte that says how it is filtered, up to `most` bytes."""
    parts, position = [], len(_SIGNATURE)
    while position + 8 <= len(png):
        length, name = (
            int.from_bytes(png[position : position + 4], "big"),
            png[position + 4 : position + 8],
        )
        if name == b"IDAT":
            parts.append(png[position + 8 : position + 8 + length])
        position += length + 12
    return zlib.decompressobj().decompress(b"".join(parts), most)


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
