"""PNG files that Pillow cannot write."""

import struct
import zlib

import numpy as np


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *extra: bytes) -> bytes:
    """A PNG from its parts, which need not fit together."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(rows))
    parts = (chunk(b"IHDR", header), *extra, pixels, chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def deep_png(values: np.ndarray) -> bytes:
    """A 16-bit RGB or RGBA PNG; values uint16 [h, w, 3 or 4]."""
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png(width, height, 16, {3: 2, 4: 6}[channels], rows)


def insert_chunk(png: bytes, name: bytes, content: bytes, behind_pixels: bool) -> bytes:
    at = png.index(b"IEND" if behind_pixels else b"IDAT") - 4
    return png[:at] + chunk(name, content) + png[at:]
