"""A folder -> the categories of the data set that it is."""

from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import InputError
from . import coco, kolektor, magnetic_tile, mvtec, pairs, visa
from .masks import list_folders
from .types import Category, Sample

_LAYOUTS: dict[str, Callable[[Path], Iterator[Sample]]] = {
    "MVTec AD": mvtec.read,  # and MVTec LOCO AD, and BTAD
    "VisA": visa.read,
    "images and masks": pairs.read,
    "KolektorSDD": kolektor.read_parts,
    "KolektorSDD2": kolektor.read_second,
    "magnetic tile": magnetic_tile.read,
    "COCO": coco.read,
}
_EXPECTED = (
    "CATEGORY/test/<defect>/ with CATEGORY/ground_truth/ (MVTec AD), CATEGORY/images/ with "
    "CATEGORY/masks/, annotations.json (COCO), or as VisA, KolektorSDD, KolektorSDD2 or magnetic "
    "tile are published"
)


def read_dataset(root: str | Path) -> list[Category]:
    """List the categories of a data set: its folder, or a COCO file.

    Raises InputError if the layout is none that is known, or could be two, or something is missing.
    """
    base = Path(root)
    if not base.is_dir() and not is_json(base):
        raise InputError(f"{str(root)!r} is not a folder: name the data set's folder")
    categories = list_categories(base)
    if not categories:
        raise InputError(f"no data set is known in {str(root)!r}: expected {_EXPECTED}")
    return categories


def list_categories(base: Path) -> list[Category]:
    """The same; none if the layout is none that is known."""
    if is_json(base):
        return [Category(base.absolute().parent.name, coco.read_file(base))]
    split = visa.read_split(base)
    if split:
        return split
    whole = _read_category(base)
    if whole is not None:
        return [whole]
    return [one for one in map(_read_category, list_folders(base)) if one is not None]


def is_json(path: Path) -> bool:
    """Whether a path is that of a file of annotations."""
    return path.suffix.lower() == ".json" and path.is_file()


def _read_category(folder: Path) -> Category | None:
    found = {name: list(read(folder)) for name, read in _LAYOUTS.items()}
    fitting = [name for name, samples in found.items() if samples]
    if len(fitting) > 1:
        raise InputError(
            f"{str(folder)!r} could be {' or '.join(fitting)}: leave only one of them there, or "
            "name the file of annotations itself"
        )
    return Category(folder.resolve().name, found[fitting[0]]) if fitting else None
