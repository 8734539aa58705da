"""Data sets with truth: which images are anomalous, and their masks.

Three layouts are known; files are read where they lie, never copied:

    MVTec AD        CATEGORY/{train,test}/<defect or good>/NAME.png
                    CATEGORY/ground_truth/<defect>/NAME_mask.png
    VisA            CATEGORY/Data/Images/{Normal,Anomaly}/NAME.JPG
                    CATEGORY/Data/Masks/Anomaly/NAME.png
                    with split_csv/1cls.csv beside the categories; without it all images are test
    images + masks  CATEGORY/images/NAME.*, CATEGORY/masks/NAME.png (or NAME_mask.png); an image
                    without a mask, or with an empty one, is normal; all images are test

A folder is one category or holds several. Links are followed first, so that a flat folder of links
to such images has a truth too.
"""

import csv
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .errors import InputError
from .images import Header
from .inputs import natural_key, reason

Setting = Literal["mix", "test", "ano", "one-class"]
SETTINGS: tuple[Setting, ...] = get_args(Setting)

NORMAL_FOLDERS = ("good", "normal", "ok")
_IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
_MASK_NAMES = ("{}_mask", "{}")
_LAYOUTS = (
    "CATEGORY/test/<defect>/ with CATEGORY/ground_truth/ (MVTec AD), CATEGORY/Data/Images/ (VisA), "
    "or CATEGORY/images/ with CATEGORY/masks/"
)


@dataclass(frozen=True)
class Truth:
    """Whether an image is anomalous, and where its mask lies if it has one."""

    anomalous: bool
    mask: Path | None


@dataclass(frozen=True)
class Sample:
    """One image of a data set; `train`: of the part that is known to be normal."""

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


def read_dataset(root: str | Path) -> list[Category]:
    """List the categories of a data set. Raises InputError if the layout is none that is known."""
    base = Path(root)
    if not base.is_dir():
        raise InputError(f"{str(root)!r} is not a folder: name the data set's folder")
    split = _read_visa_split(base)
    folders = [base, *sorted((f for f in base.iterdir() if f.is_dir()), key=_natural)]
    categories = [*split, *filter(None, map(_read_category, () if split else folders))]
    if not categories:
        raise InputError(f"no data set is known in {str(root)!r}: expected {_LAYOUTS}")
    return categories


def select(category: Category, setting: Setting) -> Split:
    """Images of a category in one of the paper's settings (section 3; one-class: section 5.4).

    Raises InputError if the category has not the images for it.
    """
    samples = category.samples
    test = [i for i, sample in enumerate(samples) if not sample.train]
    train = [i for i, sample in enumerate(samples) if sample.train]
    if setting in ("mix", "one-class") and not train:
        raise InputError(f"{category.name} has no training images: choose setting test or ano")
    if setting == "one-class":
        return Split(test, train)
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


# --- layouts ------------------------------------------------------------------------------------


def _read_category(folder: Path) -> Category | None:
    for read in (_read_mvtec, _read_visa, _read_pairs):
        samples = list(read(folder))
        if samples:
            return Category(folder.resolve().name, samples)
    return None


def _read_mvtec(folder: Path) -> Iterator[Sample]:
    masks = folder / "ground_truth"
    for part in ("train", "test"):
        for path in _list_images(folder / part):
            if path.parent == folder / part:
                continue  # an image whose kind nothing says
            kind = path.parent.name
            mask = None if kind in NORMAL_FOLDERS else find_mask(masks / kind, path.stem)
            if mask is None and kind not in NORMAL_FOLDERS and masks.is_dir():
                raise InputError(
                    f"{str(path)!r} has no mask: put it at "
                    f"{str(masks / kind / path.stem)!r}_mask.png, or the image in a folder 'good'"
                )
            yield Sample(str(path), part == "train", Truth(kind not in NORMAL_FOLDERS, mask))


def _read_visa(folder: Path) -> Iterator[Sample]:
    data = folder / "Data"
    for path in _list_images(data / "Images" / "Normal"):
        yield Sample(str(path), False, Truth(False, None))
    for path in _list_images(data / "Images" / "Anomaly"):
        mask = find_mask(data / "Masks" / "Anomaly", path.stem)
        yield Sample(str(path), False, Truth(True, mask))


def _read_visa_split(root: Path) -> list[Category]:
    path = root / "split_csv" / "1cls.csv"
    if not path.is_file():
        return []
    categories: dict[str, list[Sample]] = {}
    try:
        with open(path, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                anomalous = row["label"] != "normal"
                mask = root / row["mask"] if row["mask"] else None
                sample = Sample(
                    str(root / row["image"]), row["split"] == "train", Truth(anomalous, mask)
                )
                categories.setdefault(row["object"], []).append(sample)
    except (KeyError, ValueError, OSError) as error:
        raise InputError(
            f"cannot read {str(path)!r} ({error!r}): it must have the columns object, split, "
            "label, image, mask"
        ) from error
    return [
        Category(
            name,
            sorted(samples, key=lambda s: (not s.train, s.truth.anomalous, natural_key(s.path))),
        )
        for name, samples in categories.items()
    ]


def _read_pairs(folder: Path) -> Iterator[Sample]:
    masks = folder / "masks"
    if not masks.is_dir():
        return
    for path in _list_images(folder / "images"):
        mask = find_mask(masks / path.parent.relative_to(folder / "images"), path.stem)
        anomalous = mask is not None and bool(read_mask(mask).any())
        yield Sample(str(path), False, Truth(anomalous, mask if anomalous else None))


def _list_images(folder: Path) -> list[Path]:
    found = (p for p in folder.rglob("*") if p.suffix.lower() in _IMAGES and p.is_file())
    return sorted((p for p in found if not p.name.startswith(".")), key=_natural)


def find_mask(folder: Path, stem: str) -> Path | None:
    """The mask of an image in a folder: NAME_mask or NAME, with the ending of any image."""
    names = (folder / (pattern.format(stem) + end) for pattern in _MASK_NAMES for end in _IMAGES)
    return next((path for path in names if path.is_file()), None)


def _natural(path: Path) -> list[tuple[int, int, str]]:
    return natural_key(str(path))


# --- truth of the images of a run ---------------------------------------------------------------


def find_truth(paths: Sequence[str], root: str | Path) -> list[Truth]:
    """Find the truth for images by their paths.

    `root` is the data set's folder or its `ground_truth`. Raises InputError if it is missing or an
    image has no truth.
    """
    base = Path(root)
    if not base.is_dir():
        raise InputError(f"{str(root)!r} is not a folder: name the data set or its ground_truth")
    known = _index(base)
    masks = base / "ground_truth" if (base / "ground_truth").is_dir() else base
    found = {path: _find_one(path, known, masks) for path in paths}
    unknown = [path for path, truth in found.items() if truth is None]
    if unknown:
        raise InputError(
            f"{len(unknown)} of {len(paths)} images have no truth, the first {unknown[0]!r}: put "
            f"its mask at {str(masks)!r}/<defect>/<name>_mask.png, or the image in a folder 'good'"
        )
    return [truth for truth in found.values() if truth is not None]


def _index(root: Path) -> dict[str, Truth]:
    """Truth by real path, if the folder is a data set of a known layout."""
    try:
        categories = read_dataset(root)
    except InputError:
        return {}
    return {os.path.realpath(s.path): s.truth for c in categories for s in c.samples}


def _find_one(path: str, known: dict[str, Truth], masks: Path) -> Truth | None:
    real = Path(os.path.realpath(path))
    if str(real) in known:
        return known[str(real)]
    kind = real.parent.name
    mask = find_mask(masks / kind, real.stem)
    if mask is not None:
        return Truth(True, mask)
    return Truth(False, None) if kind in NORMAL_FOLDERS else None


def read_mask(path: Path) -> NDArray[np.bool_]:
    """Read a mask: bool [height, width], True where the image is anomalous.

    Masks that reach 255 are cut at half of it, since some went through JPEG; in masks of labels
    everything but 0 is anomalous. Raises InputError.
    """
    try:
        with Image.open(path) as image:
            single = len(image.getbands()) == 1 and image.mode != "P"
            values = np.asarray(image if single else image.convert("L"))
        mask: NDArray[np.bool_] = values > (127 if values.max() == 255 else 0)
    except Exception as error:  # damaged files make Pillow's readers raise almost anything
        raise InputError(f"cannot read the mask {str(path)!r}: {reason(error)}") from error
    return mask
