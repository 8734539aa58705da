"""TIFF files made byte by byte, so that no library writes what it reads."""

import struct

import numpy as np

BITS, COMPRESSION, PHOTOMETRIC, SAMPLES, PLANAR, EXTRA, FORMAT = 258, 259, 262, 277, 284, 338, 339
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB = 0, 1, 2
_FORMATS = {"u": 1, "i": 2, "f": 3}


def tiff(values, order="<", planar=False, photometric=None, extra=(), tags=None):
    """An uncompressed TIFF of [h, w] or [h, w, samples].

    extra: kinds of the last samples. tags: code -> (type, values), instead of the right ones.
    """
    samples = values if values.ndim == 3 else values[..., None]
    height, width, count = samples.shape
    if photometric is None:
        photometric = RGB if count - len(extra) == 3 else BLACK_IS_ZERO
    planes = [samples[..., i] for i in range(count)] if planar else [samples]
    strips = [plane.astype(values.dtype.newbyteorder(order)).tobytes() for plane in planes]
    starts = np.cumsum([8, *(len(strip) for strip in strips)])
    entries = {
        256: (4, [width]), 257: (4, [height]), BITS: (3, [values.dtype.itemsize * 8] * count),
        COMPRESSION: (3, [1]), PHOTOMETRIC: (3, [photometric]), 273: (4, starts[:-1].tolist()),
        SAMPLES: (3, [count]), 278: (4, [height]), 279: (4, [len(strip) for strip in strips]),
        PLANAR: (3, [2 if planar else 1]), FORMAT: (3, [_FORMATS[values.dtype.kind]] * count),
    }  # fmt: skip
    if extra:
        entries[EXTRA] = (3, list(extra))
    entries |= tags or {}
    start = int(starts[-1] + starts[-1] % 2)
    body = b"".join(strips).ljust(start - 8, b"\0")
    head = struct.pack(order + "2sHI", b"II" if order == "<" else b"MM", 42, start)
    return head + body + _directory(entries, order, start)


def _directory(entries, order, start):
    at = start + 2 + 12 * len(entries) + 4  # where values that do not fit in an entry go
    listed, behind = struct.pack(order + "H", len(entries)), b""
    for tag, (kind, values) in sorted(entries.items()):
        data = struct.pack(order + f"{len(values)}{'H' if kind == 3 else 'I'}", *values)
        if len(data) > 4:
            place = struct.pack(order + "I", at + len(behind))
            behind += data + bytes(len(data) % 2)
        else:
            place = data.ljust(4, b"\0")
        listed += struct.pack(order + "HHI", tag, kind, len(values)) + place
    return listed + bytes(4) + behind
