"""MVTec AD, MVTec LOCO AD and BTAD: a folder for each kind of image.

    CATEGORY/{train,validation,test}/<defect or good>/NAME.png
    CATEGORY/ground_truth/<defect>/NAME_mask.png      MVTec AD
    CATEGORY/ground_truth/<defect>/NAME.png           BTAD (.bmp too), whose kinds are ok and ko
    CATEGORY/ground_truth/<defect>/NAME/000.png, ...  MVTec LOCO AD: a file for each anomaly, with a
                                                      value that says how much of it must be found
The validation images of LOCO are normal, and count to the training part.
"""

from collections.abc import Iterator
from pathlib import Path

from ..errors import InputError
from ..images.masks import find_mask
from .masks import list_images
from .types import NORMAL_FOLDERS, Sample, Truth

_PARTS = ("train", "validation", "test")


def read(folder: Path) -> Iterator[Sample]:
    """The images of a category. Raises InputError if a defective one lacks its mask."""
    masks = folder / "ground_truth"
    for part in _PARTS:
        for path in list_images(folder / part):
            if path.parent == folder / part:
                continue  # an image whose kind nothing says
            kind = path.parent.name
            found = () if kind in NORMAL_FOLDERS else _find_masks(masks / kind, path.stem)
            if not found and kind not in NORMAL_FOLDERS and masks.is_dir():
                raise InputError(
                    f"{str(path)!r} has no mask: put it at "
                    f"{str(masks / kind / path.stem)!r}_mask.png, or the image in a folder 'good'"
                )
            yield Sample(str(path), part != "test", Truth(kind not in NORMAL_FOLDERS, found))


def _find_masks(folder: Path, stem: str) -> tuple[Path, ...]:
    mask = find_mask(folder, stem)
    return tuple(list_images(folder / stem)) if mask is None else (mask,)
