"""The pictures of a review: originals at their own size, heat maps, and crops.

An original is shown only if its file still has the SHA-256 of the scan; else the thumbnail is. It
is decoded by the reader of the scan, so that its pixels line up with those of the map.
"""

import hashlib
import io
import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import UnreadableImage
from ..images.decode import Header, load_image, read_header
from ..images.inputs import find_again, is_url, read_input
from ..images.raster import encode
from ..images.tiff import is_tiff
from ..runs.info import ImageRecord
from ..runs.pictures import colour_bounds, draw_top, heat_png, open_thumbnail, read_thumbnail
from ..runs.run import Run

MAP_SIDE = 1024  # longer side of a map, pixels; the page stretches it bilinearly, as `Run.map` does
CROP_SIDE = 256  # largest side of a crop, pixels
_CACHED = 256 * 2**20  # bytes of decoded images

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Picture:
    """A picture as a file. `note`: why it is not the original; "": it is."""

    data: bytes
    media_type: str
    note: str = ""


class Pictures:
    """Pictures of the images of one run."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._decoded: OrderedDict[int, tuple[Pixels, str]] = OrderedDict()
        self._decoding = threading.Lock()  # one large image in memory at a time
        self._measuring = threading.Lock()
        self._bounds: tuple[float, float] | None = None

    def original(self, image: ImageRecord) -> Picture:
        """Return an image as the scan saw it, else its thumbnail. Raises RunError."""
        try:
            data = self._read(image)
            if media_type := _plain_type(data, self._read_header(data)):
                return Picture(data, media_type)
        except UnreadableImage as reason:
            return self.thumbnail(image, str(reason))
        pixels, note = self._pixels(image)
        if note:
            return self.thumbnail(image, note)
        return Picture(encode(pixels, compress_level=1), "image/png")

    def thumbnail(self, image: ImageRecord, note: str = "") -> Picture:
        """Return the thumbnail of an image. Raises RunError if it is gone."""
        return Picture(read_thumbnail(self._run, image), "image/jpeg", note)

    def crop(self, image: ImageRecord, x: float, y: float, side: int) -> Picture:
        """Return side x side pixels around a point of an image, black beyond its border."""
        side = max(8, min(side, CROP_SIDE))
        pixels, note = self._pixels(image)
        factor = pixels.shape[1] / image.width  # below 1 for a thumbnail
        left, top = x * factor - side * factor / 2, y * factor - side * factor / 2
        box = (left, top, left + side * factor, top + side * factor)
        shown = Image.fromarray(pixels).transform(
            (side, side), Image.Transform.EXTENT, box, Image.Resampling.BILINEAR
        )
        return Picture(encode(shown, compress_level=1), "image/png", note)

    def heat_map(self, image: ImageRecord) -> Picture:
        """Return the heat map of an image, on one colour scale for the run."""
        factor = min(1.0, MAP_SIDE / max(image.width, image.height))
        width, height = (max(1, round(n * factor)) for n in (image.width, image.height))
        low, high = self._colour_bounds()
        image_map = self._run.map_at(image.path, width, height)
        return Picture(heat_png(image_map, low, high), "image/png")

    def _colour_bounds(self) -> tuple[float, float]:
        with self._measuring:
            if self._bounds is None:
                self._bounds = colour_bounds(self._run, draw_top(self._run))
            return self._bounds

    def _pixels(self, image: ImageRecord) -> tuple[Pixels, str]:
        """Return pixels uint8 [height, width, 3] of the original or its thumbnail, and the note."""
        with self._decoding:
            if image.id not in self._decoded:
                self._decoded[image.id] = self._decode(image)
            self._decoded.move_to_end(image.id)
            while len(self._decoded) > 1 and self._cached_bytes() > _CACHED:
                self._decoded.popitem(last=False)
            return self._decoded[image.id]

    def _cached_bytes(self) -> int:
        return sum(pixels.nbytes for pixels, _ in self._decoded.values())

    def _decode(self, image: ImageRecord) -> tuple[Pixels, str]:
        try:
            data, size = self._read(image), (image.height, image.width)
            loaded = load_image(data, self._read_header(data), [size], self._run.info.windows)
            return np.rint(loaded.pixels[0]).astype(np.uint8), ""
        except UnreadableImage as reason:
            return np.asarray(open_thumbnail(self._run, image)), str(reason)

    def _read_header(self, data: bytes) -> Header:
        return read_header(data, self._run.info.settings["max_pixels"])

    def _read(self, image: ImageRecord) -> bytes:
        """Read the file that was scanned. Raises UnreadableImage if it is gone or another."""
        if is_url(image.path):
            raise UnreadableImage("it is at a URL, and a review downloads nothing")
        data = read_input(str(find_again(image.path, self._run.folder)))
        if hashlib.sha256(data).hexdigest() != image.sha256:
            raise UnreadableImage("the file has changed since the scan")
        return data


def _plain_type(data: bytes, header: Header) -> str | None:
    """Return the media type of a file if browsers show its pixels as the scan saw them, or None."""
    if header.depth != "byte" or header.orientation != 1 or is_tiff(data):
        return None
    with Image.open(io.BytesIO(data)) as image:
        opaque = image.mode in ("L", "RGB") and "transparency" not in image.info
        return Image.MIME[image.format] if opaque and image.format in ("JPEG", "PNG") else None
