"""Regions of interest: the part of each image that is scored.

A mask is one file for all images, or a file for each in a folder: there it lies as the image does,
as NAME or NAME_mask (see `matching`). A mask of the image as it is stored is turned to how it is
shown (`raster.find_turn`), and brought to the size of the image by the nearest pixel. A patch is
scored if the cell of the network's coarsest stage that it lies in holds any of the region; a score
is given to pixels inside it only.

A method gets the blocks of patches that are inside, side by side: see `pipeline.loading.Packing`.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import InputError
from .masks import pair_masks
from .raster import Bools


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


def at_size(mask: Bools, width: int, height: int) -> Bools:
    """Bring a mask to bool [height, width] by the nearest pixel; not a copy if it has that size."""
    if mask.shape == (height, width):
        return mask
    rows = (2 * np.arange(height) + 1) * mask.shape[0] // (2 * height)
    columns = (2 * np.arange(width) + 1) * mask.shape[1] // (2 * width)
    brought: Bools = mask[rows[:, None], columns]
    return brought
