"""TIFF files: every depth and layout of samples, by tifffile and imagecodecs.

A page becomes grey [h, w] or colour [h, w, 3], in the type of its samples:
- WhiteIsZero is inverted, palettes are looked up, samples of under 8 bits are spread over 8;
- of bands without a colour model the first is shown, or the first three if there are as many;
- alpha is composed on white; extra samples that are not declared to be alpha are ignored.
"""

import logging
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tifffile import TIFF, TiffFile, TiffPage

from ..errors import UnreadableImage
from . import jpeg
from .raster import SWAPPING, Values, compose, orient, to_share

_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MAKE, _ORIENTATION, _NODATA, _DNG_VERSION = 271, 274, 42113, 50706  # tags
_LAYOUT = {  # tags that say what the bytes of a page mean
    254, 255, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 317, 320, 322, 323, 324,
    325, 338, 339, 347, 530,
}  # fmt: skip
_JPEG_TABLES = 347  # the only one of them that is no number
_TEXTS = (2, 7)  # types of tags: text, bytes
_REDUCED, _MASK = 1, 4  # bits of NewSubfileType: a smaller copy of a page, a transparency mask
_ALPHA = (1, 2)  # of the tag ExtraSamples: associated (premultiplied), unassociated
_WHITE_IS_ZERO, _PALETTE, _CMYK, _YCBCR, _CIELAB = 0, 3, 5, 6, 8  # photometrics
_RAW = (32803, 34892)  # of a camera: a colour filter array, or linear sensor values
_UNREAD = {4: "transparency", 9: "ICC L*a*b*", 10: "ITU L*a*b*", 32844: "LogL", 32845: "LogLuv"}
_JPEG = 7  # compression
_RAW_NAMES = {"nikon": "NEF", "sony": "ARW", "pentax": "PEF", "samsung": "SRW", "canon": "CR2"}

# It logs oddities; what makes a page unreadable it raises as well.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)


def is_tiff(head: bytes) -> bool:
    """Whether the first 4 bytes of a file are those of a TIFF."""
    return head[:4] in _SIGNATURES


@dataclass(frozen=True)
class TiffImage:
    """The page of a TIFF file that is shown: the first in full resolution.

    pages: how many of the file are in full resolution.
    """

    file: IO[bytes]
    page: TiffPage
    pages: int

    @classmethod
    def open(cls, file: IO[bytes]) -> Self:
        """Read the tags of a file.

        Raises UnreadableImage for what is not read, and what tifffile does for damage.
        """
        every = list(_list_pages(TiffFile(file)))
        if not all(
            isinstance(n, int) for page in every for n in (page.imagewidth, page.imagelength)
        ):
            raise UnreadableImage("damaged image: its size is no number")
        full = _in_full(every)
        if not full:
            raise UnreadableImage("damaged image: a TIFF without a page in full resolution")
        if any(page.photometric in _RAW for page in full):
            raise UnreadableImage(
                f"raw picture of a camera ({_name_raw(every)}): develop it to TIFF or JPEG first"
            )
        _check_kind(full[0])
        image = cls(file, full[0], len(full))
        image._check_tags()
        return image

    @property
    def size(self) -> tuple[int, int]:
        """Width and height as shown."""
        sides = int(self.page.imagewidth), int(self.page.imagelength)
        return sides[::-1] if self.orientation in SWAPPING else sides

    @property
    def samples(self) -> int:
        """How many numbers are to be decoded."""
        return int(np.prod(self.page.shaped))

    @property
    def _type(self) -> np.dtype[Any]:
        assert self.page.dtype is not None  # see `_check_kind`
        return self.page.dtype

    @property
    def deep(self) -> bool:
        """Whether samples have more than 8 bits, or a sign."""
        return self.page.photometric != _PALETTE and self._type.name not in ("bool", "uint8")

    @property
    def floats(self) -> bool:
        return self.deep and self._type.kind == "f"

    @property
    def orientation(self) -> int:
        """EXIF's, 1 to 8."""
        tag = self.page.tags.get(_ORIENTATION)
        return tag.value if tag is not None and tag.value in range(1, 9) else 1

    def read(self) -> Values:
        """Decode a page of 8 bits or fewer as shown: uint8 [h, w] or [h, w, 3], alpha on white.

        Raises UnreadableImage, and what tifffile does for damage.
        """
        colours, alpha = self.read_apart()
        if self.palette is not None:
            colours = self.palette[colours]
        share = None if alpha is None else to_share(alpha, self._top)
        return colours if share is None else compose(colours, share, 255, self.is_premultiplied)

    @property
    def is_premultiplied(self) -> bool:
        """Whether the colours are multiplied by the alpha."""
        return next((kind for kind in self.page.extrasamples if kind in _ALPHA), 0) == _ALPHA[0]

    def read_apart(self) -> tuple[Values, Values | None]:
        """Decode to colours [h, w] or [h, w, 3], in the type of the samples, and alpha [h, w].

        Of a palette to its indices. Raises as `read`.
        """
        if _is_for_pillow(self.page):
            return self._read_by_pillow(), None
        self._check_segments()
        values = self.page.asarray(maxworkers=1)  # images are read in parallel, not their parts
        if self.deep and (nodata := _nodata(self.page)) is not None and (values == nodata).any():
            raise UnreadableImage(
                f"has pixels without data ({nodata:g}): fill them with a usual value"
            )
        if self.page.axes.startswith("S"):  # in planes
            values = np.moveaxis(values, 0, -1)
        samples = orient(values if values.ndim == 3 else values[..., None], self.orientation)
        extra = [int(kind) for kind in self.page.extrasamples]
        first = samples.shape[2] - len(extra)  # of them
        place = next((i for i, kind in enumerate(extra) if kind in _ALPHA), None)
        if place is not None and first < 1:
            raise UnreadableImage("damaged image: its tags say that all samples are extra ones")
        if place is None:
            return self._to_colour(samples), None
        return self._to_colour(samples[..., :first]), samples[..., first + place]

    @property
    def palette(self) -> NDArray[np.uint8] | None:
        """The colours [n, 3] that samples are indices of; in the file of 16 bits, or of 8."""
        if self.page.photometric != _PALETTE:
            return None
        assert self.page.colormap is not None  # see `_check_kind`
        entries = self.page.colormap.T
        colours: NDArray[np.uint8] = (entries >> 8 if entries.max() > 255 else entries).astype("u1")
        return colours

    def _to_colour(self, bands: Values) -> Values:
        """Bring bands [h, w, n] to grey or indices [h, w], or colour [h, w, 3]."""
        photometric, top = self.page.photometric, self._top
        if self.palette is not None:
            indices: NDArray[np.intp] = bands[..., 0].astype(np.intp)  # of 1 bit: booleans
            if indices.max() >= len(self.palette):
                raise UnreadableImage("damaged image: its palette is shorter than its pixels need")
            return indices
        if not self.deep and top != 255:
            bands, top = (bands * (255 / top)).round().astype(np.uint8), 255
        if photometric == _CMYK:
            if bands.shape[2] < 4:
                raise UnreadableImage("a TIFF of fewer than four inks: convert it to RGB first")
            return _from_cmyk(bands, top)
        shown = bands[..., :3] if bands.shape[2] >= 3 else bands[..., 0]
        if photometric == _WHITE_IS_ZERO and shown.dtype.kind != "f":
            shown = ~shown if shown.dtype.kind == "i" else shown.dtype.type(top) - shown
        return shown

    @property
    def _top(self) -> int:
        """The largest value that samples can have; 1 for floats."""
        kind = self._type
        if kind.kind == "i":
            return int(np.iinfo(kind).max)
        return 1 if kind.kind == "f" else 2**self.page.bitspersample - 1

    def _read_by_pillow(self) -> Values:
        if self.page.is_subifd:
            raise UnreadableImage("a TIFF of YCbCr or L*a*b* values: convert it to RGB first")
        self.file.seek(0)
        with Image.open(self.file) as image:
            image.seek(self.page.index)
            return np.asarray(image.convert("RGB"))  # turned already

    def _check_tags(self) -> None:
        """Raise UnreadableImage if a tag that matters is no number, or left out by tifffile."""
        form = self.page.parent.tiff
        self.file.seek(self.page.offset)
        count = struct.unpack(form.tagnoformat, self.file.read(form.tagnosize))[0]
        entries = self.file.read(count * form.tagsize)
        codes = {
            struct.unpack_from(form.byteorder + "H", entries, i * form.tagsize)[0]
            for i in range(count)
        }
        read = {
            tag.code
            for tag in self.page.tags
            if tag.dtype not in _TEXTS or tag.code == _JPEG_TABLES
        }
        if _LAYOUT & codes - read:
            raise UnreadableImage("damaged image: some of its tags cannot be read")

    def _check_segments(self) -> None:
        """Raise UnreadableImage if pixels are not in the file: tifffile leaves them zero."""
        end = self.file.seek(0, 2)
        segments = list(zip(self.page.dataoffsets, self.page.databytecounts, strict=False))
        expected = int(np.prod(self.page.chunked))
        if len(segments) < expected or any(not n or at + n > end for at, n in segments):
            raise UnreadableImage("damaged image: some of its pixels are missing")
        if self.page.compression == _JPEG and self.page.shaped[-1] in jpeg.COMPONENTS:
            tables = (self.page.jpegtables or b"")[:-2]  # without the end marker
            for at, count in segments:
                self.file.seek(at)
                data = self.file.read(count)
                jpeg.check(tables + data[2:] if tables else data, self.page.shaped[-1])


def _list_pages(tiff: TiffFile) -> Iterator[TiffPage]:
    """List the pages of a file, each before those that it points to."""
    seen = set()
    for first in tiff.pages:
        page = first.aspage()
        if page.offset in seen:  # a damaged file may lead back, which tifffile follows for ever
            return
        seen.add(page.offset)
        yield page
        yield from (sub.aspage() for sub in page.pages or ())


def _nodata(page: TiffPage) -> float | None:
    """Return the value of pixels without data; tifffile says 0 for one that no sample can have."""
    try:
        return float(page.tags[_NODATA].value)
    except (KeyError, TypeError, ValueError):
        return None


def _in_full(pages: Sequence[TiffPage]) -> list[TiffPage]:
    """Leave out masks and smaller copies of another page: what is marked as such, or is so small.

    So small: it has at most a quarter of the pixels of another page.
    """
    full = [page for page in pages if not page.subfiletype & (_REDUCED | _MASK)]
    most = max((page.imagewidth * page.imagelength for page in full), default=0)
    return [page for page in full if 4 * page.imagewidth * page.imagelength > most]


def _name_raw(pages: Sequence[TiffPage]) -> str:
    """Name the format of a camera's raw file by its pages."""
    if any(_DNG_VERSION in page.tags for page in pages):
        return "DNG"
    makes = [str(page.tags.valueof(_MAKE, "")).lower() for page in pages]
    return next(
        (raw for make, raw in _RAW_NAMES.items() if any(make in one for one in makes)),
        "NEF, ARW or the like",
    )


def _is_for_pillow(page: TiffPage) -> bool:
    """Whether a page is one that imagecodecs does not bring to RGB, and Pillow does."""
    plain = page.bitspersample == 8
    return plain and (
        page.photometric == _CIELAB or (page.photometric == _YCBCR and page.compression != _JPEG)
    )


def _check_kind(page: TiffPage) -> None:
    """Raise UnreadableImage if the samples of a page are not numbers that can be shown."""
    model = _UNREAD.get(page.photometric)
    if page.photometric in (_CIELAB, _YCBCR) and page.bitspersample != 8:
        model = "deep L*a*b* or YCbCr"
    if model is not None:
        raise UnreadableImage(f"a TIFF of {model} values: convert it to RGB first")
    if page.dtype is None or page.dtype.kind not in "buif":
        raise UnreadableImage("a TIFF of complex or unknown numbers: convert it to real ones first")
    if isinstance(page.bitspersample, tuple):
        raise UnreadableImage("a TIFF of channels of different depths: convert it to RGB first")
    if page.photometric == _PALETTE and (page.colormap is None or page.colormap.ndim != 2):
        raise UnreadableImage("damaged image: its palette is missing")
    if page.photometric == _PALETTE and page.dtype.kind == "f":
        raise UnreadableImage("damaged image: floats that are looked up in a palette")
    if not _is_for_pillow(page) and page.compression not in TIFF.DECOMPRESSORS:
        raise UnreadableImage(f"a TIFF of unknown compression ({page.compression}): save it again")
    if page.imagedepth > 1:
        raise UnreadableImage("a TIFF of a volume: save its slices as images first")


def _from_cmyk(inks: Values, top: int) -> Values:
    """Convert inks [h, w, 4 or more], none to full, to colour [h, w, 3]."""
    paper = 1 - inks[..., :4].astype(np.float64) / top
    colour = paper[..., :3] * paper[..., 3:] * top
    return (colour.round() if inks.dtype.kind in "ui" else colour).astype(inks.dtype)
