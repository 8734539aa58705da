"""The paper's settings: which images of a category are scored, and with what bank."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..images.decode import Header
from .types import Category, Setting, Split, Statistics


def select(category: Category, setting: Setting) -> Split:
    """Images of a category in one of the paper's settings (section 3; one-class: section 5.4).

    The bank of one-class is what is normal in the training part. Raises InputError if the category
    has not the images for it.
    """
    samples = category.samples
    test = [i for i, sample in enumerate(samples) if not sample.train]
    train = [i for i, sample in enumerate(samples) if sample.train]
    if setting in ("mix", "one-class") and not train:
        raise InputError(f"{category.name} has no training images: choose setting test or ano")
    if setting == "one-class":
        return Split(test, [i for i in train if not samples[i].truth.anomalous])
    if setting == "mix":
        return Split([*train, *test], None)
    return Split([i for i in test if setting == "test" or samples[i].truth.anomalous], None)


def count_pixels(header: Header, mask: NDArray[np.bool_] | None) -> tuple[int, int]:
    """Pixels of an image, and how many of them are anomalous.

    mask: bool [h, w] of any size, scaled to the image; None: a normal image.
    """
    pixels = header.width * header.height
    return pixels, 0 if mask is None else round(pixels * float(mask.mean()))


def statistics(counts: Sequence[tuple[bool, int, int]]) -> Statistics:
    """Describe the images of one category in one setting.

    counts: of each image whether it is anomalous, and what `count_pixels` gave.
    """
    anomalous = sum(image for image, _, _ in counts)
    pixels = sum(count for _, count, _ in counts)
    return Statistics(
        len(counts) - anomalous,
        anomalous,
        1 - anomalous / len(counts),
        sum(count for _, _, count in counts) / pixels,
    )
