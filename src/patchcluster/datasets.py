"""Truth for the images of a run: which are anomalous, and their masks.

The layout is MVTec AD's: an image `.../<defect>/<name>.png` has its mask at
`<truth>/ground_truth/<defect>/<name>_mask.png`; images in a folder `good` are normal. Links are
followed first, so that a flat folder of links to such images works too.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .errors import InputError

NORMAL_FOLDERS = ("good", "normal", "ok")
_MASK_NAMES = ("{}_mask.png", "{}.png")


@dataclass(frozen=True)
class Truth:
    """Whether an image is anomalous, and where its mask lies if it has one."""

    anomalous: bool
    mask: Path | None


def find_truth(paths: Sequence[str], root: str | Path) -> list[Truth]:
    """Find the truth for images by their paths.

    `root` is the data set's folder or its `ground_truth`. Raises InputError if it is missing or an
    image has no truth.
    """
    base = Path(root)
    if not base.is_dir():
        raise InputError(f"{str(root)!r} is not a folder: name the data set or its ground_truth")
    if (base / "ground_truth").is_dir():
        base /= "ground_truth"
    found = {path: _find_one(path, base) for path in paths}
    unknown = [path for path, truth in found.items() if truth is None]
    if unknown:
        raise InputError(
            f"{len(unknown)} of {len(paths)} images have no truth, the first {unknown[0]!r}: put "
            f"its mask at {str(base)!r}/<defect>/<name>_mask.png, or the image in a folder 'good'"
        )
    return [truth for truth in found.values() if truth is not None]


def _find_one(path: str, base: Path) -> Truth | None:
    real = Path(os.path.realpath(path))
    kind = real.parent.name
    for pattern in _MASK_NAMES:
        mask = base / kind / pattern.format(real.stem)
        if mask.is_file():
            return Truth(True, mask)
    return Truth(False, None) if kind in NORMAL_FOLDERS else None


def read_mask(path: Path) -> NDArray[np.bool_]:
    """Read a mask: bool [height, width], True where the image is anomalous.

    Masks that reach 255 are cut at half of it, since some went through JPEG; in masks of labels
    everything but 0 is anomalous.
    """
    try:
        with Image.open(path) as image:
            values = np.asarray(image.convert("L") if image.mode in ("P", "RGB", "RGBA") else image)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the mask {str(path)!r}: {error}") from error
    mask: NDArray[np.bool_] = values > (127 if values.max() == 255 else 0)
    return mask
