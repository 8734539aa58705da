"""PNG files that Pillow cannot write."""

import struct
import zlib

import numpy as np


def deep_png(values: np.ndarray) -> bytes:
    """A 16-bit RGB or RGBA PNG, which Pillow cannot write; values uint16 [h, w, 3 or 4]."""
    height, width, channels = values.shape

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def insert_chunk(png: bytes, name: bytes, content: bytes, behind_pixels: bool) -> bytes:
    at = png.index(b"IEND" if behind_pixels else b"IDAT") - 4
    checksum = zlib.crc32(name + content).to_bytes(4, "big")
    return png[:at] + len(content).to_bytes(4, "big") + name + content + checksum + png[at:]
