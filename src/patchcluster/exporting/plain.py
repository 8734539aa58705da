"""Formats that any tool reads: scores and regions as CSV, JSON or Parquet; masks and heat maps."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..errors import PatchclusterError
from ..images.raster import encode
from ..runs import storage, tables
from ..runs.storage import clean
from .areas import box_of
from .contents import Contents, Item

SCHEMA = "patchcluster-export-1"  # see export.schema.json
_IMAGE = {  # columns of an image, and their Parquet types
    "rank": "int32", "path": "string", "score": "float64", "probability": "float64",
    "percentile": "float64", "flagged": "bool", "label": "string", "image_width": "int32",
    "image_height": "int32", "sha256": "string", "nearest": "string", "regions": "int32",
    "remarks": "string",
}  # fmt: skip
_REGION = {
    "region": "int32", "x": "int32", "y": "int32", "width": "int32", "height": "int32",
    "area": "int64", "peak": "float64", "group": "int32",
}  # fmt: skip


def write_csv(contents: Contents, file: Path) -> None:
    """Write one row per region; an image without regions has one row, with these cells empty."""
    rows = [[tables.to_cell(value) for value in row.values()] for row in _rows(contents)]
    file.write_bytes(tables.to_csv([*_IMAGE, *_REGION], rows))


def write_parquet(contents: Contents, file: Path) -> None:
    """Write the rows of `write_csv` with types, empty cells as null.

    Raises PatchclusterError if pyarrow is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise PatchclusterError(
            "Parquet needs a package that is not installed: pip install 'patchcluster[parquet]'"
        ) from error
    types = _IMAGE | _REGION
    columns: dict[str, list[Any]] = {name: [] for name in types}
    for row in _rows(contents):
        for name, value in row.items():
            columns[name].append(clean(value) if isinstance(value, str) else value)
    schema = pyarrow.schema([(name, kind) for name, kind in types.items()])
    parquet.write_table(pyarrow.table(columns, schema=schema), file)


def write_json(contents: Contents, file: Path) -> None:
    """Write one object: run, threshold, images with their regions, skipped files."""
    run = contents.run
    images = [
        _image(item) | {"remarks": item.remarks, "regions": _regions(item)} for item in contents
    ]
    value = {
        "schema": SCHEMA,
        "version": __version__,
        "run": str(run.folder),
        "threshold": dataclasses.asdict(run.threshold),
        "images": images,
        "skipped": [dataclasses.asdict(skip) for skip in run.skipped],
    }
    storage.write_json(file, value)


def write_masks(contents: Contents, folder: Path) -> None:
    """Write NAME_mask.png of each image, 8 bits, at its size: 255 in a region, 0 elsewhere."""
    for item in contents:
        mask = np.zeros((item.image.height, item.image.width), np.uint8)
        for area in contents.areas(item):
            mask[box_of(area.region)][area.mask] = 255
        storage.write_bytes(folder / f"{item.stem}_mask.png", encode(mask), durable=False)


def write_heatmaps(contents: Contents, folder: Path) -> None:
    """Write the map of each image as NAME.tiff, float32, one channel; NaN outside a mask."""
    for item in contents:
        image_map = contents.run.map(item.image.path)
        data = encode(image_map, "TIFF", compression="tiff_adobe_deflate")
        storage.write_bytes(folder / f"{item.stem}.tiff", data, durable=False)


def _rows(contents: Contents) -> Iterator[dict[str, Any]]:
    for item in contents:
        for region in _regions(item) or [dict.fromkeys(_REGION)]:
            yield _image(item) | region


def _image(item: Item) -> dict[str, Any]:
    return {
        "rank": item.rank,
        "path": item.image.path,
        "score": item.score,
        "probability": item.probability,
        "percentile": item.percentile,
        "flagged": item.flagged,
        "label": item.label or None,
        "image_width": item.image.width,
        "image_height": item.image.height,
        "sha256": item.image.sha256,
        "nearest": item.nearest,
        "regions": len(item.regions),
        "remarks": "; ".join(item.remarks),
    }


def _regions(item: Item) -> list[dict[str, Any]]:
    return [
        {"region": n} | dataclasses.asdict(region) | {"group": region.group or None}
        for n, region in enumerate(item.regions, start=1)
    ]
