"""The pictures of a run: heat maps on one colour scale, thumbnails and crops of them."""

import base64
import functools
import hashlib
import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from .. import __version__
from ..images.raster import encode
from ..scores import maps
from ..scores.colours import colours
from ..scores.maps import Floats
from . import runfolder, storage
from .info import ImageRecord
from .run import Run
from .threads import map_in_threads

HEAT_SIDE = 128  # longer side of a heat map in the page, pixels
CROP_SIDE = 144
MOST_DRAWN = 500  # images whose maps decide the colours, and whose pictures the page holds
_LEVELS = 64
_MOST_OPAQUE = 225  # of 255
_NOTE = "Of"
_BEGINNING = 256  # bytes of a PNG in which a note is
_END = b"IEND\xaeB`\x82"  # of each PNG


def colour_bounds(run: Run, frames: Sequence[Floats]) -> tuple[float, float]:
    """Return the map values at which colour begins and is strongest, one pair for the whole set.

    It begins where 1 pixel in 10 lies above, so that ordinary places stay clear, and is strongest
    where 1 in 1,000 does, but not below the threshold or, if that is lower, the highest pixel. Both
    have two digits, so that they seldom change when a few images come or go.
    """
    pixels = np.concatenate([frame[np.isfinite(frame)] for frame in frames])
    reached = min(run.threshold.value, float(pixels.max()))
    low, high = np.quantile(pixels, (0.9, 0.999), overwrite_input=True).tolist()
    low = float(f"{low:.1e}")
    return low, max(_round_up(max(high, reached)), low + 1e-6)


def draw_top(run: Run) -> list[Floats]:
    """Shrink the maps of the most anomalous images, 500 at most, as large as they are drawn."""
    top = run.ranking[:MOST_DRAWN].tolist()
    return list(map_in_threads(lambda i: shrink(run.frame_map(run.paths[i])), top))


def _round_up(value: float) -> float:
    """Return the smallest number of two digits that is not below a value."""
    near = float(f"{value:.1e}")
    step = 10.0 ** (math.floor(math.log10(abs(near))) - 1) if near else 0.0
    return near if near >= value else float(f"{near + step:.1e}")


def heat_png(frame: Floats, low: float, high: float, note: str = "") -> bytes:
    """Draw a map [h, w] as a PNG that is clear below `low` and most opaque from `high` on.

    It is clear where there is no score (NaN). note: a few characters, which it begins with.
    """
    levels = (frame - low) * ((_LEVELS - 1) / (high - low))
    # Of a maximum of NaN and a number fmax takes the number.
    levels = np.rint(np.fmin(np.fmax(levels, 0), _LEVELS - 1))
    image = Image.fromarray(levels.astype(np.uint8), "P")
    palette, opacity = _palette()
    image.putpalette(palette)
    said = PngInfo()
    if note:
        said.add_text(_NOTE, note)
    # Half the time of the usual level 6, and 8 % more bytes.
    return encode(image, transparency=opacity, compress_level=3, pnginfo=said)


@functools.cache
def _palette() -> tuple[bytes, bytes]:
    """Return the colours of the levels of a heat map, and how opaque they are."""
    levels = np.linspace(0, 1, _LEVELS)
    opacity = np.rint(_MOST_OPAQUE * levels**0.7)
    return colours(levels).astype(np.uint8).tobytes(), opacity.astype(np.uint8).tobytes()


def heat_note(grid: Floats, low: float, high: float) -> str:
    """Name all that the heat map of an image with a score grid [h, w] depends on."""
    what = hashlib.sha256(f"{__version__} {low!r} {high!r} {grid.shape}".encode())
    what.update(grid.tobytes())
    return what.hexdigest()


def has_note(path: Path, note: str) -> bool:
    """Say whether a file is a whole PNG that begins with a note."""
    try:
        data = path.read_bytes()
    except OSError:
        return False
    return f"{_NOTE}\0{note}".encode() in data[:_BEGINNING] and data.endswith(_END)


def scale_png() -> bytes:
    """Draw the colour scale from left to right, as heat maps show it."""
    return heat_png(np.linspace(0, 1, 2 * _LEVELS, dtype=np.float32)[None], 0, 1)


def shrink(frame: Floats) -> Floats:
    """Shrink a map [h, w] to the size at which it is drawn."""
    height, width = frame.shape
    factor = HEAT_SIDE / max(height, width)
    return maps.to_image(frame, max(1, round(width * factor)), max(1, round(height * factor)))


def read_thumbnail(run: Run, image: ImageRecord) -> bytes:
    """Read the JPEG of one image. Raises RunError if it is not there."""
    path = runfolder.thumbnail_path(run.folder, image.id)
    try:
        return path.read_bytes()
    except OSError as error:
        raise storage.unreadable(path, error) from error


def open_thumbnail(run: Run, image: ImageRecord) -> Image.Image:
    """Decode the JPEG of one image. Raises RunError if it is not there."""
    with Image.open(io.BytesIO(read_thumbnail(run, image))) as opened:
        return opened.convert("RGB")


def crop_jpeg(picture: Image.Image, x: float, y: float, share: float) -> bytes:
    """Cut a square out of a picture as a JPEG, moved inwards where it would leave the picture.

    x, y: its centre, as shares of width and height; share: its side, of the shorter side.
    """
    side = max(1.0, share * min(picture.size))
    left = min(max(0.0, x * picture.width - side / 2), picture.width - side)
    top = min(max(0.0, y * picture.height - side / 2), picture.height - side)
    part = picture.resize(
        (CROP_SIDE, CROP_SIDE),
        Image.Resampling.BICUBIC,
        box=(left, top, left + side, top + side),
    )
    return encode(part, "JPEG", quality=82)


def data_url(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
