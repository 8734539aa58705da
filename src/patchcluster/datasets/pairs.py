"""A folder of images next to one of masks.

    CATEGORY/images/NAME.*
    CATEGORY/masks/NAME.png (or NAME_mask.png)

An image without a mask, or with an empty one, is normal; all images are test.
"""

from collections.abc import Iterator
from pathlib import Path

from ..images.masks import find_mask
from .masks import is_empty, list_images
from .types import Sample, Truth


def read(folder: Path) -> Iterator[Sample]:
    """The images of a category. Raises InputError if a mask cannot be read."""
    masks = folder / "masks"
    if not masks.is_dir():
        return
    for path in list_images(folder / "images"):
        mask = find_mask(masks / path.parent.relative_to(folder / "images"), path.stem)
        anomalous = mask is not None and not is_empty(mask)
        yield Sample(str(path), False, Truth(anomalous, (mask,) if mask and anomalous else ()))
