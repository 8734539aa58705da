"""The paper's settings: which images of a category are scored, and with what bank."""

from dataclasses import dataclass
from typing import Literal, get_args

from ..errors import InputError
from .types import Category

Setting = Literal["mix", "test", "ano", "one-class"]
SETTINGS: tuple[Setting, ...] = get_args(Setting)


@dataclass(frozen=True)
class Split:
    """The scored images and the bank of a setting: indices in the samples of the category.

    blind: the bank is the scored set itself; else it is known to be normal.
    """

    scored: list[int]
    bank: list[int]
    blind: bool


def select(category: Category, setting: Setting) -> Split:
    """Choose images of a category by one of the paper's settings (section 3; one-class: 5.4).

    The bank of one-class is what is normal in the training part. Raises InputError if the category
    has not the images for it.
    """
    samples = category.samples
    test = [i for i, sample in enumerate(samples) if not sample.train]
    train = [i for i, sample in enumerate(samples) if sample.train]
    if setting in ("mix", "one-class") and not train:
        raise InputError(f"{category.name} has no training images: choose setting test or ano")
    if setting == "one-class":
        return Split(test, [i for i in train if not samples[i].truth.anomalous], blind=False)
    scored = [*train, *test] if setting == "mix" else test
    if setting == "ano":
        scored = [i for i in test if samples[i].truth.anomalous]
    return Split(scored, scored, blind=True)
