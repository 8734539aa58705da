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


def interlaced_png(values: np.ndarray) -> bytes:
    """A grey PNG of 8 bits whose rows come in the seven passes of Adam7; values uint8 [h, w]."""
    passes = [
        values[::8, ::8], values[::8, 4::8], values[4::8, ::4], values[::4, 2::4],
        values[2::4, ::2], values[::2, 1::2], values[1::2],
    ]  # fmt: skip
    rows = b"".join(b"\0" + row.tobytes() for part in passes if part.size for row in part)
    data = bytearray(png(values.shape[1], values.shape[0], 8, 0, rows))
    data[28] = 1
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def insert_chunk(png: bytes, name: bytes, content: bytes, behind_pixels: bool) -> bytes:
    at = png.index(b"IEND" if behind_pixels else b"IDAT") - 4
    return png[:at] + chunk(name, content) + png[at:]
