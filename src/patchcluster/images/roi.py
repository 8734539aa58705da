"""Regions of interest: the part of each image that is scored.

A mask is one file for all images, or a file for each in a folder: there it lies at the path that
the image has below one of the folders that hold them all, the outermost first, as NAME or NAME_mask
(as masks of defects do). It is brought to the size of its image by the nearest
pixel. A patch is scored if the cell of the network's coarsest stage that it lies in holds any of
the region; a score is given to pixels inside it only.

A method gets the blocks of patches that are inside, side by side: see `network.patches.Packing`.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path, PurePath

import numpy as np

from ..errors import InputError
from .inputs import is_url
from .masks import Bools, find_mask

_OUTER = 3  # parents of the images' folder that masks may lie below


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
    plain = [
        PurePath("/", p.split("://", 1)[1]) if is_url(p) else Path(os.path.abspath(p))
        for p in paths
    ]
    shared = PurePath(os.path.commonpath([path.parent for path in plain]))
    best: list[Path | None] = []
    for depth in reversed(range(min(_OUTER + 1, len(shared.parts)))):
        base = PurePath(*shared.parts[: len(shared.parts) - depth])
        found = [find_mask(root / p.relative_to(base).parent, p.stem) for p in plain]
        if not best or found.count(None) < best.count(None):
            best = found
    missing = [path for path, mask in zip(paths, best, strict=True) if mask is None]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(paths)} images have no mask in {roi!r}, the first "
            f"{missing[0]!r}: put it there under the image's name, or name one mask for all"
        )
    return [mask for mask in best if mask is not None]


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
