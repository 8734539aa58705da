"""A run in the formats of other tools. A new format is a file and a line in FORMATS.

contents.py    the content for all formats: images, their names and their anomalous areas
names.py       distinct names of images and files
areas.py       regions as masks, polygons and run lengths
output.py      writes an export whole or not at all, and never over other files
plain.py       CSV, JSON, Parquet; masks and heat maps
coco.py, cvat.py, labelstudio.py, yolo.py, fiftyone.py    annotations for these tools
onnx.py        the network of the run
flagged.py     the flagged files themselves, copied or linked
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import SettingError
from ..images.inputs import local_path
from ..runs.run import Run, load_run
from . import coco, cvat, fiftyone, labelstudio, plain, yolo
from .contents import Contents, Step
from .output import replacing

__all__ = ["FORMATS", "Format", "export"]


@dataclass(frozen=True)
class Format:
    """A format: `write(contents, path, **options)` writes a run to a file or folder.

    ending: of the file; "": a folder. options: the values of each option, its default first; None:
    any text, without a default.
    """

    write: Callable[..., None]
    ending: str = ""
    options: Mapping[str, tuple[str, ...] | None] = field(default_factory=dict)


def _write_network(contents: Contents, path: Path) -> None:
    """Write the network that made the patches of the run."""
    from .onnx import export_network  # loads torch

    if contents.flagged_only:
        raise SettingError("format onnx has no images: leave flagged-only out")
    export_network(contents.run, path)


_SHAPES = {"segmentation": ("polygon", "rle", "box")}

FORMATS = {
    "csv": Format(plain.write_csv, ".csv"),
    "json": Format(plain.write_json, ".json"),
    "parquet": Format(plain.write_parquet, ".parquet"),
    "masks": Format(plain.write_masks),
    "heatmaps": Format(plain.write_heatmaps),
    "coco": Format(coco.write, ".json", _SHAPES),
    "cvat": Format(cvat.write, ".xml", _SHAPES),
    "labelstudio": Format(labelstudio.write, "", {**_SHAPES, "image_prefix": None}),
    "yolo": Format(
        yolo.write, "", {"segmentation": ("polygon", "box"), "images": ("copy", "link")}
    ),
    "fiftyone": Format(fiftyone.write, "", {"images": ("link", "copy")}),
    "onnx": Format(_write_network, ".onnx"),
}


def export(
    run: Run | str | os.PathLike[str],
    format: str,
    output: str | os.PathLike[str] | None = None,
    *,
    flagged_only: bool = False,
    segmentation: str | None = None,
    images: str | None = None,
    image_prefix: str | None = None,
    overwrite: bool = False,
    progress: Step = lambda *_: None,
) -> Path:
    """Write a run in a format of FORMATS and return the file or folder that was written.

    run: or its folder. output: by default next to the run, named after both. flagged_only: only the
    flagged images. segmentation, images, image_prefix: for the formats that have them, see
    docs/export.md. overwrite: replace a file, or a folder that an export wrote. progress: called
    with the number of images done and in total.

    Raises SettingError for an option that the format does not have, RunError if the output cannot
    be written, InputError if run or output is a URL or an image is needed and gone,
    PatchclusterError if a package is not installed.
    """
    if format not in FORMATS:
        raise SettingError(f"no format {format!r}: choose from {', '.join(FORMATS)}")
    chosen = FORMATS[format]
    given = {"segmentation": segmentation, "images": images, "image_prefix": image_prefix}
    options = _choose(format, chosen, given)
    if not isinstance(run, Run):
        run = load_run(run)
    path = _name_output(run, format) if output is None else local_path(output)
    contents = Contents(run, flagged_only, progress)
    with replacing(path, not chosen.ending, overwrite) as part:
        chosen.write(contents, part, **options)
    return path


def _name_output(run: Run, format: str) -> Path:
    """Return the path of a file or folder next to the run, named after both."""
    ending = FORMATS[format].ending
    name = f"-{format}{ending}" if ending != f".{format}" else ending
    folder = run.folder if run.folder.name else run.folder.resolve()
    return folder.with_name(folder.name + name)


def _choose(name: str, chosen: Format, given: Mapping[str, str | None]) -> dict[str, Any]:
    """Return the options of a format. Raises SettingError for one that it does not take."""
    options: dict[str, Any] = {}
    for option, value in given.items():
        words = option.replace("_", "-")
        if option not in chosen.options:
            if value is not None:
                raise SettingError(f"format {name} has no {words}: leave it out")
            continue
        allowed = chosen.options[option]
        if value is not None and allowed and value not in allowed:
            raise SettingError(
                f"format {name} has no {words} {value!r}: choose from {', '.join(allowed)}"
            )
        options[option] = value if value is not None or not allowed else allowed[0]
    return options
