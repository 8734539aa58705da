"""Pixels -> bytes of an image file."""

import io
from typing import Any

from numpy.typing import NDArray
from PIL import Image


def encode(picture: Image.Image | NDArray[Any], kind: str = "PNG", **options: Any) -> bytes:
    """Encode a picture of Pillow, or an array [h, w] or [h, w, 3], as a file of a kind.

    bool arrays become PNGs of 1 bit a pixel. options: of Pillow's writer.
    """
    buffer = io.BytesIO()
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image.save(buffer, kind, **options)
    return buffer.getvalue()
