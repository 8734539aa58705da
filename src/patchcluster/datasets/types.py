"""What a data set is made of."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from .shapes import Shape

Setting = Literal["mix", "test", "ano", "one-class"]
SETTINGS: tuple[Setting, ...] = get_args(Setting)

NORMAL_FOLDERS = ("good", "normal", "ok")


@dataclass(frozen=True)
class Truth:
    """Whether an image is anomalous, and its masks: files, or shapes that are still to be drawn.

    What any of them covers is anomalous (`masks.read_truth`). An anomalous image without masks: no
    one says where.
    """

    anomalous: bool
    masks: tuple[Path | Shape, ...] = ()


@dataclass(frozen=True)
class Sample:
    """One image of a data set; `train`: of its training part, which may hold anomalous ones."""

    path: str
    train: bool
    truth: Truth


@dataclass(frozen=True)
class Category:
    """The images of one kind of object or texture, in natural order, the training part first."""

    name: str
    samples: list[Sample]


@dataclass(frozen=True)
class Split:
    """What a setting scores, and with what: a known-normal bank, or (None) the scored set itself.

    Both are indices in the samples of the category.
    """

    scored: list[int]
    bank: list[int] | None


@dataclass(frozen=True)
class Statistics:
    """A row of the paper's Table 1; shares are fractions."""

    normal: float
    anomalous: float
    normal_share: float
    anomalous_pixel_share: float
