"""VisA: folders Normal and Anomaly, and a table of which images are for training.

CATEGORY/Data/Images/{Normal,Anomaly}/NAME.JPG
CATEGORY/Data/Masks/Anomaly/NAME.png
split_csv/1cls.csv, next to the categories; without it all images are test
"""

import csv
from collections.abc import Iterator
from pathlib import Path

from ..errors import InputError
from ..images.inputs import natural_key
from ..images.masks import find_mask
from .masks import list_images
from .types import Category, Sample, Truth


def read(folder: Path) -> Iterator[Sample]:
    """The images of a category, all of them test."""
    data = folder / "Data"
    for path in list_images(data / "Images" / "Normal"):
        yield Sample(str(path), False, Truth(False))
    for path in list_images(data / "Images" / "Anomaly"):
        mask = find_mask(data / "Masks" / "Anomaly", path.stem)
        yield Sample(str(path), False, Truth(True, () if mask is None else (mask,)))


def read_split(root: Path) -> list[Category]:
    """The categories as the table has them; none without one. Raises InputError."""
    path = root / "split_csv" / "1cls.csv"
    if not path.is_file():
        return []
    categories: dict[str, list[Sample]] = {}
    try:
        with open(path, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                masks = (root / row["mask"],) if row["mask"] else ()
                truth = Truth(row["label"] != "normal", masks)
                sample = Sample(str(root / row["image"]), row["split"] == "train", truth)
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
