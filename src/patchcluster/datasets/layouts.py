"""A folder -> the categories of the data set that it is, by whichever layout it has.

A layout is a function and a line in `_LAYOUTS`. It yields the images of one category, the training
part first; nothing, if the folder is laid out otherwise. It raises InputError if an image lacks the
mask that it must have.
"""

import csv
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import InputError
from ..images.inputs import natural_key
from ..images.masks import list_images, pair_masks
from ..images.matching import match_names
from . import coco
from .types import Category, Sample, Truth, take_mask

NORMAL_FOLDERS = ("good", "normal", "ok")


def read_dataset(root: str | Path) -> list[Category]:
    """List the categories of a data set: its folder, or a COCO file.

    Raises InputError if the layout is none that is known, or could be two, or something is missing.
    """
    base = Path(root)
    categories = list_categories(base)
    if not categories:
        raise InputError(f"no data set is known in {str(root)!r}: expected {_EXPECTED}")
    return [_find_files(category, base) for category in categories]


def list_categories(base: Path) -> list[Category]:
    """List the categories of a data set; none if its layout is none that is known.

    Raises InputError as `read_dataset`.
    """
    if coco.is_file(base):
        return [Category(_folder_of(base).resolve().name, coco.read_file(base))]
    if not base.is_dir():
        raise InputError(f"{str(base)!r} is not a folder: name the folder of a data set")
    split = _read_visa_split(base)
    if split:
        return split
    whole = _read_category(base)
    if whole is not None:
        return [whole]
    return [one for one in map(_read_category, _list_folders(base)) if one is not None]


def list_names(category: Category, base: Path) -> list[str]:
    """List the names of images as the data set has them."""
    return [sample.name or os.path.relpath(sample.path, base) for sample in category.samples]


def _find_files(category: Category, base: Path) -> Category:
    """Find the files of images that a list names otherwise. Raises InputError if one is missing."""
    lost = [i for i, sample in enumerate(category.samples) if not os.path.isfile(sample.path)]
    if not lost:
        return category
    folder = base if base.is_dir() else _folder_of(base)
    files = [str(path) for path in list_images(folder)]
    matches = match_names(list_names(category, base), files, [s.path for s in category.samples])
    places = {name: files[file] for file, name in matches.found.items()}
    missing = [category.samples[i].path for i in lost if i not in places]
    if missing:
        why = "".join(f" ({reason})" for reason in list(matches.unclear.values())[:1])
        raise InputError(
            f"{len(missing)} of {len(category.samples)} images of {category.name!r} are missing, "
            f"the first {missing[0]!r}{why}: put them into {str(folder)!r}"
        )
    samples = list(category.samples)
    for i in lost:
        samples[i] = replace(samples[i], path=places[i])
    return Category(category.name, samples)


def _folder_of(file: Path) -> Path:
    """Return the folder of the data set of a COCO file; CVAT has `annotations/` in it."""
    folder = file.absolute().parent
    return folder.parent if folder.name == "annotations" else folder


def _read_category(folder: Path) -> Category | None:
    found = {name: list(read(folder)) for name, read in _LAYOUTS.items()}
    fitting = [name for name, samples in found.items() if samples]
    if len(fitting) > 1:
        raise InputError(
            f"{str(folder)!r} could be {' or '.join(fitting)}: leave only one of them there, or "
            "name the file of annotations itself"
        )
    return Category(folder.resolve().name, found[fitting[0]]) if fitting else None


def _list_folders(folder: Path) -> list[Path]:
    """List the folders in a folder, in natural order."""
    inner = (f for f in folder.iterdir() if f.is_dir())
    return sorted(inner, key=lambda path: natural_key(str(path)))


def _read_mvtec(folder: Path) -> Iterator[Sample]:
    """MVTec AD, MVTec LOCO AD and BTAD: a folder for each kind of image.

    CATEGORY/{train,validation,test}/<defect or good>/NAME.png
    CATEGORY/ground_truth/<defect>/NAME_mask.png      MVTec AD
    CATEGORY/ground_truth/<defect>/NAME.png           BTAD (.bmp too), whose kinds are ok and ko
    CATEGORY/ground_truth/<defect>/NAME/000.png, ...  MVTec LOCO AD: a file for each anomaly, with a
                                                      value that says how much of it must be found
    The validation images of LOCO are normal, and count to the training part.
    """
    masks = folder / "ground_truth"
    for part in ("train", "validation", "test"):
        images = list_images(folder / part)
        defective = [path for path in images if path.parent.name not in NORMAL_FOLDERS]
        paired, _ = _pair(defective, masks, "*/*")
        for path in images:
            if path.parent == folder / part:
                continue  # an image whose kind nothing says
            train, kind = part != "test", path.parent.name
            if kind in NORMAL_FOLDERS:
                yield Sample(str(path), train, Truth(False))
                continue
            mask = paired.get(path)
            place = masks / kind / path.stem
            found = [mask] if mask is not None else list_images(place)
            if not found and masks.is_dir():
                raise InputError(
                    f"{str(path)!r} has no mask: put it at {str(place)!r}_mask.png, or the image "
                    "in a folder 'good'"
                )
            yield Sample(str(path), train, Truth(True, tuple(found)))


def _read_visa(folder: Path) -> Iterator[Sample]:
    """VisA: folders Normal and Anomaly, and a table of which images are for training.

    CATEGORY/Data/Images/{Normal,Anomaly}/NAME.JPG
    CATEGORY/Data/Masks/Anomaly/NAME.png
    split_csv/1cls.csv, next to the categories; without it all images are test
    """
    data = folder / "Data"
    for path in list_images(data / "Images" / "Normal"):
        yield Sample(str(path), False, Truth(False))
    images = list_images(data / "Images" / "Anomaly")
    masks, _ = _pair(images, data / "Masks" / "Anomaly")
    for path in images:
        yield Sample(str(path), False, Truth(True, (masks[path],) if path in masks else ()))


def _read_visa_split(root: Path) -> list[Category]:
    """Read the categories of VisA as its table has them; none without one. Raises InputError."""
    path = root / "split_csv" / "1cls.csv"
    if not path.is_file():
        return []
    categories: dict[str, list[Sample]] = {}
    try:
        with open(path, newline="", encoding="utf-8") as file:
            table = csv.DictReader(file, restval="")
            for row in table:
                if not all(row[name] for name in ("object", "split", "label", "image")):
                    raise ValueError(f"line {table.line_num} is too short")
                image, mask = (row[name].replace("\\", "/") for name in ("image", "mask"))
                truth = Truth(row["label"] != "normal", (root / mask,) if mask else ())
                sample = Sample(str(root / image), row["split"] == "train", truth)
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
    """A folder of images next to one of masks.

    CATEGORY/images/NAME.*
    CATEGORY/masks/NAME.png (or NAME_mask.png)

    An image without a mask, or with an empty one, is normal; all images are test.
    """
    images, masks = list_images(folder / "images"), folder / "masks"
    if not masks.is_dir():
        return
    paired, others = _pair(images, masks)
    bare = [path for path in images if path not in paired]
    if others and bare:
        raise InputError(
            f"the mask {str(others[0])!r} matches no image, and {str(bare[0])!r} has none, so that "
            "nothing says whether that image is normal: give the mask the name of its image, or "
            "remove the mask"
        )
    for path in images:
        yield Sample(str(path), False, take_mask(paired.get(path)))


def _pair(
    images: Sequence[Path], masks: Path, pattern: str = "**/*"
) -> tuple[dict[Path, Path], list[Path]]:
    """Pair images with their masks. -> the mask of each image, and masks that are of none.

    Raises InputError where it is not clear which is which.
    """
    files, matches = pair_masks([str(path) for path in images], masks, pattern)
    for image, why in matches.unclear.items():
        raise InputError(f"the mask of {str(images[image])!r} is not clear ({why}): rename one")
    paired = {images[image]: files[mask] for image, mask in matches.found.items()}
    return paired, sorted(set(files) - set(paired.values()))


def _read_kolektor(folder: Path) -> Iterator[Sample]:
    """KolektorSDD: a mask next to each image, empty if that is normal; all images are test.

    kos01/Part0.jpg, kos01/Part0_label.bmp            50 such folders
    """
    parts = [f for f in _list_folders(folder) if re.fullmatch(r"kos\d+", f.name)]
    yield from _read_next_to([(part, False) for part in parts or [folder]], "_label")


def _read_kolektor2(folder: Path) -> Iterator[Sample]:
    """KolektorSDD2: the same, with defects in the training part too.

    {train,test}/10301.png, .../10301_GT.png

    The archive holds two files by mistake, `10301 (copy).png` and `10301_GT (copy).png`: they are
    left out.
    """
    yield from _read_next_to([(folder / "train", True), (folder / "test", False)], "_GT")


def _read_next_to(places: Sequence[tuple[Path, bool]], mark: str) -> Iterator[Sample]:
    """Read folders whose images have masks next to them, of the same names with a mark behind.

    places: folders, and whether each is the training part.
    """
    every = [(path, train) for place, train in places for path in list_images(place, "*")]
    files = [(path, train) for path, train in every if " (copy)" not in path.stem]
    masks = {path.with_suffix(""): path for path, _ in files if path.stem.endswith(mark)}
    if not masks:
        return
    for path, train in files:
        if path.stem.endswith(mark):
            continue
        mask = masks.get(path.with_name(path.stem + mark))
        if mask is None:
            raise InputError(
                f"{str(path)!r} has no mask: put it at {str(path.with_suffix(''))!r}{mark}.png, "
                "empty if the image is normal"
            )
        yield Sample(str(path), train, take_mask(mask))


def _read_magnetic_tile(folder: Path) -> Iterator[Sample]:
    """The magnetic-tile defects as they are published: masks among the images.

    MT_{Blowhole,Break,Crack,Fray,Free,Uneven}/Imgs/NAME.jpg, NAME.png

    MT_Free is normal; all images are test.
    """
    for kind in _list_folders(folder):
        if not kind.name.startswith("MT_"):
            continue
        for path in list_images(kind / "Imgs", "*"):
            if path.suffix.lower() not in (".jpg", ".jpeg"):
                continue
            mask = path.with_suffix(".png")
            if kind.name != "MT_Free" and not mask.is_file():
                raise InputError(f"{str(path)!r} has no mask: put it at {str(mask)!r}")
            truth = Truth(False) if kind.name == "MT_Free" else Truth(True, (mask,))
            yield Sample(str(path), False, truth)


_LAYOUTS: dict[str, Callable[[Path], Iterator[Sample]]] = {
    "MVTec AD": _read_mvtec,  # and MVTec LOCO AD, and BTAD
    "VisA": _read_visa,
    "images and masks": _read_pairs,
    "KolektorSDD": _read_kolektor,
    "KolektorSDD2": _read_kolektor2,
    "magnetic tile": _read_magnetic_tile,
    "COCO": coco.read,
}
_EXPECTED = (
    "CATEGORY/test/<defect>/ with CATEGORY/ground_truth/ (MVTec AD), CATEGORY/images/ with "
    "CATEGORY/masks/, annotations.json (COCO), or as VisA, KolektorSDD, KolektorSDD2 or magnetic "
    "tile are published"
)
