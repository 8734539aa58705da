"""The pixels of a JPEG file, unless some of them are damaged.

libjpeg makes up what it cannot decode: blocks of grey, or of their neighbours. It warns of that,
but Pillow drops its warnings. simplejpeg has the same libjpeg, gives the same pixels, and raises.
"""

import re

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from ..errors import UnreadableImage

FORMATS = ("JPEG", "MPO")  # of Pillow; an MPO begins with a JPEG that is complete
COMPONENTS = {1: "GRAY", 3: "RGB", 4: "CMYK"}  # simplejpeg's, by the number of components
_LAYOUTS = {"L": "L", "RGB": "RGB", "CMYK": "CMYK;I"}  # Adobe's inks, which all use, are inverted
_END = b"\xff\xd9"
_MARKER = re.compile(rb"\xff([\xc0-\xcf\xd8-\xfe])")
_PROGRESSIVE, _LAST, _SCAN = (0xC2, 0xC6, 0xCA, 0xCE), 0xD9, 0xDA  # markers
_COEFFICIENTS = 64  # of a block
# Warnings of pixels that are missing or made up. Others are of metadata.
_LOST = re.compile("premature end|bad huffman code|bad arithmetic code|found marker .* instead")
# What is left over behind the pixels: before a restart, the next scan or the end of the image.
_LEFT_OVER = re.compile("([0-9]+) extraneous bytes before marker 0x(?:d[0-79a]|c4)")
_STRAY = 16  # left-over bytes that encoders of webcams and scanners produce without any damage
_READ_AHEAD = 8  # bytes that the decoder has taken at most before it sees that they are left over


def decode(image: Image.Image, data: bytes) -> Image.Image:
    """Decode a JPEG file that Pillow has opened; metadata come along, the orientation among them.

    The pixels are Pillow's, bit for bit. Bytes behind the end of the image are ignored, and before
    it what encoders are known to leave: zeros, or up to _STRAY bytes.
    Raises UnreadableImage if libjpeg had to make up pixels, or data are left over behind the last.
    libjpeg does not warn of scans that are missing as a whole: they are counted here.
    A flipped bit that changes a value, and not where the next one begins, stays unseen.
    """
    pixels = check(data, len(image.getbands()))
    if pixels is None:
        return image  # Pillow raises for errors, and reads on over warnings that do not matter
    decoded = Image.frombytes(image.mode, image.size, pixels.data, "raw", _LAYOUTS[image.mode])
    decoded.info = image.info
    return decoded


def check(data: bytes, components: int) -> NDArray[np.uint8] | None:
    """Decode a JPEG to uint8 [h, w, components]; None if libjpeg has to say what does not matter.

    Raises UnreadableImage as `decode`.
    """
    if not _has_all_scans(data, components):
        raise UnreadableImage("damaged image: some of its scans are missing")
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, COMPONENTS[components])
    except ValueError as error:
        message = str(error).lower()
        if _is_damage(message, data):
            what = message.removeprefix("corrupt jpeg data: ")
            raise UnreadableImage(f"damaged image: {what}") from error
        return None
    return pixels


def _is_damage(message: str, data: bytes) -> bool:
    """Whether a warning of libjpeg means that pixels are damaged."""
    if (left_over := _LEFT_OVER.search(message)) is None:
        return _LOST.search(message) is not None
    count, scan = int(left_over[1]), data.rpartition(_END)[0]
    padding = len(scan) - len(scan.rstrip(b"\0"))
    return count > _STRAY and not count <= padding <= count + _READ_AHEAD


def _has_all_scans(data: bytes, components: int) -> bool:
    """Whether each component has all its coefficients, to the last bit, before the first end."""
    found: dict[int, set[int]] = {}
    progressive, position = False, 2
    while (marker := _MARKER.search(data, position)) and marker[1][0] != _LAST:
        start = marker.end()
        position = start + int.from_bytes(data[start : start + 2], "big")
        progressive = progressive or marker[1][0] in _PROGRESSIVE
        if marker[1][0] != _SCAN:
            continue
        header = data[start + 2 : position]
        if not header or len(header) != 4 + 2 * header[0]:
            return False
        *tables, first, last, bits = header[1:]
        if not progressive:
            first, last, bits = 0, _COEFFICIENTS - 1, 0
        if not bits & 15:  # how many bits are left for later scans
            for component in tables[::2]:
                found.setdefault(component, set()).update(range(first, last + 1))
        if sum(map(len, found.values())) >= components * _COEFFICIENTS:
            return True
    return False
