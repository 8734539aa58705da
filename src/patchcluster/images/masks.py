"""Masks as files: found by the name of their image, and read.

A region of interest is the part of an image that is scored. Its mask is one file for all images, or
a file for each in a folder: there it lies as the image does, as NAME or NAME_mask (see `matching`).
A mask of the image as it is stored is turned to how it is shown (`raster.find_turn`), and brought
to the size of the image by the nearest pixel. A patch is scored if the cell of the network's
coarsest stage that it lies in holds any of the region; a score is given to pixels inside it only. A
method gets the blocks of patches that are inside, side by side: see `pipeline.loading.Packing`.
"""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from scipy import ndimage

from ..errors import InputError
from . import jpeg, png
from .decode import decode_upright, identify, orientation_of
from .finding import is_hidden
from .inputs import natural_key, reason
from .matching import Matches, match_masks
from .raster import Bools, Values, orient
from .tiff import TiffImage

_IMAGE_ENDS = (
    ".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".pbm", ".pgm", ".ppm",
    ".tga", ".jp2", ".jfif", ".avif", ".heic",
)  # fmt: skip
_MARK = "_mask"
_LOSSY_WEBP = b"VP8 "  # a chunk that only such files have
_SOFT = 64  # half of the largest value of a mask that may have a soft border; labels are fewer


def list_images(folder: Path, pattern: str = "**/*") -> list[Path]:
    """List the images in a folder and its subfolders, by their endings, in natural order.

    What is hidden or of the system is left out.
    """
    images = (path for path in folder.glob(pattern) if path.suffix.lower() in _IMAGE_ENDS)
    plain = (p for p in images if not any(map(is_hidden, p.relative_to(folder).parts)))
    return sorted((p for p in plain if p.is_file()), key=lambda path: natural_key(str(path)))


def pair_masks(
    paths: Sequence[str], folder: Path, pattern: str = "**/*"
) -> tuple[list[Path], Matches]:
    """Find the masks of images in a folder: NAME_mask or NAME, with the ending of any image.

    NAME is that of the image, with its ending or without, with or without its folders: see
    `matching`. A file called as an image is its mask, even if that ends in _mask. -> the masks, and
    which image has which of them.
    """
    files = [path.relative_to(folder) for path in list_images(folder, pattern)]
    names = _name_images([path.with_suffix("") for path in files], paths)
    masks = {folder / path: name for path, name in zip(files, names, strict=True) if name}
    return list(masks), match_masks(list(masks.values()), paths)


def _name_images(stems: Sequence[Path], paths: Sequence[str]) -> list[str]:
    """Name the image that each mask is of; "": of none, since NAME_mask goes before NAME."""
    depths = {len(stem.parts) for stem in stems}
    images = {Path(*Path(path).with_suffix("").parts[-n:]) for path in paths for n in depths}
    longer = {stem: stem.with_name(stem.name + _MARK) for stem in stems}
    marked = {
        stem
        for stem in stems
        if stem.name.endswith(_MARK) and (stem not in images or longer[stem] in longer)
    }

    def name(stem: Path) -> str:
        if stem in marked:
            return str(stem).removesuffix(_MARK)
        return "" if longer[stem] in marked else str(stem)

    return [name(stem) for stem in stems]


def hash_masks(path: str) -> str:
    """Return the SHA-256 of a mask, or of all files of a folder of masks. Raises InputError."""
    root = Path(path)
    if not root.exists():
        raise InputError(f"no region of interest at {path!r}: name a mask or a folder of masks")
    files = sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else [root]
    digest = hashlib.sha256()
    try:
        for file in files:
            digest.update(f"{file.relative_to(root)}\0".encode("utf-8", "surrogateescape"))
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    except OSError as error:
        raise InputError(f"cannot read the mask {str(file)!r}: {error}") from error
    return digest.hexdigest()


def find_masks(paths: Sequence[str], roi: str) -> list[Path]:
    """Find the mask of each image. Raises InputError if one has none."""
    root = Path(roi)
    if not root.is_dir():
        return [root] * len(paths)
    masks, matches = pair_masks(paths, root)
    missing = [i for i in range(len(paths)) if i not in matches.found]
    if missing:
        why = matches.unclear.get(missing[0], "none is named as the image")
        raise InputError(
            f"{len(missing)} of {len(paths)} images have no mask in {roi!r}, the first "
            f"{paths[missing[0]]!r} ({why}): put it there under the image's name, or name one mask "
            "for all"
        )
    return [masks[matches.found[i]] for i in range(len(paths))]


def name_region(mask: Bools) -> str:
    """Name a mask by a hash of its pixels."""
    return hashlib.sha256(repr(mask.shape).encode() + np.packbits(mask).tobytes()).hexdigest()[:16]


def read_mask_file(path: Path) -> Bools:
    """Read a mask: bool [height, width], True inside. See `to_mask`. Raises InputError."""
    try:
        return _read(path.read_bytes())
    except Exception as error:  # damaged files make Pillow's readers raise almost anything
        raise InputError(f"cannot read the mask {str(path)!r}: {reason(error)}") from error


def _read(data: bytes) -> Bools:
    file = io.BytesIO(data)
    image = identify(file)
    if isinstance(image, TiffImage):
        if image.pages > 1:
            raise ValueError(f"{image.pages} pages in full resolution: save the mask alone")
        colours, alpha = image.read_apart()
        return _mark(colours, alpha, image.palette)
    if image.format == "PNG" and png.is_deep(file):
        return orient(_mark(*png.read_deep(data)), orientation_of(image, file))
    is_lossy = image.format in jpeg.FORMATS or (image.format == "WEBP" and _LOSSY_WEBP in data)
    return _mark_picture(decode_upright(image, data), is_lossy)


def to_mask(picture: Any) -> Bools:
    """Make a mask of a picture of Pillow, an array or a tensor, [h, w] or with one channel.

    The background is 0, of colours black, of a palette its first colour, unless another is black;
    all else is inside, whatever its value. Transparent pixels are background, and where all that is
    opaque is black, it is inside; alpha that is the same everywhere says nothing. An EXIF
    orientation is applied.

    A mask that went through lossy compression, or was resized, has a soft border, and is cut at
    half of its largest value: files of JPEG and lossy WebP, and 8-bit masks whose largest value is
    128 or more, if most pixels of up to half of that are connected with higher ones and do
    not lie in flat areas, as labels do.

    Raises ValueError for other shapes, and values that are not finite.
    """
    if isinstance(picture, Image.Image):
        return _mark_picture(ImageOps.exif_transpose(picture), picture.format in jpeg.FORMATS)
    values = np.asarray(picture)
    if values.ndim == 3 and 1 in (values.shape[0], values.shape[2]):
        values = values[0] if values.shape[0] == 1 else values[..., 0]
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"a mask of shape {list(values.shape)}, not [height, width]")
    return _mark(values)


def _mark_picture(image: Image.Image, is_lossy: bool) -> Bools:
    """Mark what is inside a picture of Pillow; is_lossy: it went through lossy compression."""
    alpha = np.asarray(image.convert("RGBA"))[..., 3] if image.has_transparency_data else None
    if image.mode in ("P", "PA"):
        palette = np.reshape(image.getpalette() or [], (-1, 3))
        return _mark(np.asarray(image.getchannel(0)), alpha, palette)
    colours = image if len(image.getbands()) == 1 else image.convert("RGB")
    return _mark(np.asarray(colours), alpha, is_soft=is_lossy)


def _mark(
    colours: Values,
    alpha: Values | None = None,
    palette: Values | None = None,
    is_soft: bool = False,
) -> Bools:
    """Mark what is inside, bool [h, w]: see `to_mask`.

    colours: [h, w] or [h, w, 3], or indices of a palette [n, 3]; alpha: [h, w]; is_soft: the border
    of the colours is known to be soft.
    """
    if not np.isfinite(colours).all():
        raise ValueError("a mask with values that are not finite")
    if palette is not None:
        black = np.flatnonzero(~palette.any(1))
        is_first = 0 in black or not np.isin(colours, black).any()
        colours = np.isin(colours, 0 if is_first else black, invert=True)
    elif colours.ndim == 3:
        colours = colours.max(2) if colours.dtype == np.uint8 else (colours != 0).any(2)
    if alpha is None or alpha.min() == alpha.max():
        return _cut(colours, is_soft)
    opaque = _cut(alpha)
    inside: Bools = opaque & (colours != 0)
    return inside if inside.any() else opaque


def _cut(values: Values, is_soft: bool = False) -> Bools:
    """Say what is not background of values [h, w]; a soft border is cut at half."""
    half = values.max() // 2
    is_soft = is_soft or (values.dtype == np.uint8 and half >= _SOFT and _is_soft(values, half))
    mask: Bools = values > half if is_soft else values != 0
    return mask


def _is_soft(values: NDArray[np.uint8], half: int) -> bool:
    """Say whether most pixels up to half of the largest value are a border, and not labels.

    A border is connected with larger values; labels lie by themselves, or in squares of 2 x 2 equal
    pixels.
    """
    low, high = (values > 0) & (values <= half), values > half
    if not low.any():
        return False
    right, below = values[:, :-1] == values[:, 1:], values[:-1] == values[1:]
    squares = np.pad(right[:-1] & right[1:] & below[:, :-1] & below[:, 1:], 1)
    flat = squares[:-1, :-1] | squares[:-1, 1:] | squares[1:, :-1] | squares[1:, 1:]
    components, count = ndimage.label(low | high, structure=np.ones((3, 3)))
    has_high = np.bincount(components[high], minlength=count + 1) > 0
    border = low & ~flat & has_high[components]
    return bool(2 * border.sum() > low.sum())
