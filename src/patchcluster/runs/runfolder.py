"""The layout of the run folder; the tables are those of tables.py.

RUN/
  run.json               what was asked and found; "state": see `info.State`
  scores.csv             a row an image: `tables.SCORES_HEADER`
  regions.csv            a row a region: `tables.REGIONS_HEADER`
  maps/000012.npy        float16 [h, w]: the score grid of the image with that id
  thumbnails/000012.jpg
  roi/NAME.png           a mask of what is scored; run.json says which image has which
  neighbours.safetensors what each patch was compared with: image ids, and patches (row-major in
                         the grid of that image)
  bank.safetensors       the fitted methods, one a network size
  patches/000012.safetensors  patches of some images as the network gave them, where the bank has
                         only some of the set; the run can do without (--no-cache)
  report.html
  report/000012.png      heat maps that report.html does not hold
  inputs/000012.png      images that were given as objects: see saved_inputs.py
  labels.sqlite          what was said of images in a review: see review/store.py; scans leave it
  .work/                 a scan in progress: features and comparisons, removed at its end
"""

import dataclasses
import io
import json
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError, RunError
from ..images import inputs
from ..images.masks import read_mask_file
from ..images.raster import Bools, at_size, encode
from ..scores.maps import Floats
from . import storage
from .info import FORMAT, ImageRecord, RunInfo, Skipped, parse
from .tables import REGIONS_FILE, SCORES_FILE

if TYPE_CHECKING:
    from torch import Tensor

RUN_FILE = "run.json"
NEIGHBOURS_FILE = "neighbours.safetensors"
BANK_FILE = "bank.safetensors"
REPORT_FILE = "report.html"
LABELS_FILE = "labels.sqlite"
HEAT_FOLDER = "report"
PATCHES_FOLDER = "patches"
WORK_FOLDER = ".work"
INPUTS_FOLDER = "inputs"

_FOLDERS = {"maps", "thumbnails", "roi", HEAT_FOLDER, PATCHES_FOLDER}


def is_run(folder: Path) -> bool:
    """Say whether a folder is (or was about to become) a run."""
    return os.path.isfile(folder / RUN_FILE) and (
        os.path.isdir(folder / "maps") or os.path.isdir(folder / WORK_FOLDER)
    )


def find_runs(names: Sequence[str]) -> set[str]:
    """Find the folders that are runs among the names of remote files."""
    folders = {one.rpartition("/")[0] for one in names if one.rpartition("/")[2] == RUN_FILE}
    in_maps = {one.split("/maps/")[0] for one in names if "/maps/" in one}
    return folders & in_maps


def map_path(folder: Path, image_id: int) -> Path:
    return folder / "maps" / f"{image_id:06d}.npy"


def thumbnail_path(folder: Path, image_id: int) -> Path:
    return folder / "thumbnails" / f"{image_id:06d}.jpg"


def heat_path(folder: Path, image_id: int) -> Path:
    return folder / HEAT_FOLDER / f"{image_id:06d}.png"


def _region_path(folder: Path, name: str) -> Path:
    return folder / "roi" / f"{name}.png"


def write_region(folder: Path, name: str, mask: Bools) -> None:
    """Write a mask of what is scored, as it was named."""
    storage.write_bytes(_region_path(folder, name), encode(mask))


def read_mask_of(folder: Path, image: ImageRecord) -> Bools | None:
    """Read the mask of what is scored of an image, bool [height, width] at its size.

    None: all of it. Raises RunError if the mask is missing or damaged.
    """
    if not image.roi:
        return None
    path = _region_path(folder, image.roi)
    try:
        mask = read_mask_file(path)
    except InputError as error:
        raise storage.unreadable(path, error) from error
    return at_size(mask, image.width, image.height)


def batch_paths(folder: Path) -> list[Path]:
    """Files of patches of a scan in progress, of a batch of images each."""
    return sorted((folder / WORK_FOLDER).glob("features-*.safetensors"))


def remove_batches_from(folder: Path, first: int) -> None:
    """Remove the batches from a number on."""
    for path in batch_paths(folder):
        if path >= batch_path(folder, first):
            path.unlink()


def batch_path(folder: Path, batch: int) -> Path:
    return folder / WORK_FOLDER / f"features-{batch:06d}.safetensors"


def kept_paths(folder: Path) -> list[Path]:
    """Files of patches that a run keeps."""
    return sorted((folder / PATCHES_FOLDER).glob("*.safetensors"))


def _kept_path(folder: Path, number: int) -> Path:
    return folder / PATCHES_FOLDER / f"{number:06d}.safetensors"


def keep_batches(folder: Path) -> None:
    """Have a run keep the patches of a scan in progress, besides those that it has."""
    kept = kept_paths(folder)
    first = int(kept[-1].stem) + 1 if kept else 0
    with storage.writing(folder):
        (folder / PATCHES_FOLDER).mkdir(exist_ok=True)
        for number, path in enumerate(batch_paths(folder), start=first):
            path.rename(_kept_path(folder, number))


def take_back_batches(folder: Path) -> None:
    """Undo `keep_batches` of a scan that was killed while it did that."""
    with storage.writing(folder):
        for number, path in enumerate(kept_paths(folder)):
            path.rename(batch_path(folder, number))
    storage.remove(folder / PATCHES_FOLDER)


def drop_patches(folder: Path, wanted: Collection[int]) -> None:
    """Have the run keep the patches of images with these ids only."""
    for path in kept_paths(folder):
        names = storage.read_shapes(path)[0]
        left = {name for name in names if int(name.partition(".")[2]) in wanted}
        if len(left) == len(names):
            continue
        if left:
            storage.write_tensors(path, {n: storage.read_tensor(path, n) for n in sorted(left)})
        else:
            path.unlink()


def comparison_path(folder: Path, size: int, batch: int) -> Path:
    return folder / WORK_FOLDER / f"comparison-{size}-{batch:06d}.safetensors"


def fitted_path(folder: Path, size: int) -> Path:
    return folder / WORK_FOLDER / f"fitted-{size}.safetensors"


def write_info(
    folder: Path, info: RunInfo, images: Sequence[ImageRecord], skipped: Sequence[Skipped]
) -> None:
    """Write run.json."""
    value = dataclasses.asdict(info)
    value["images"] = [dataclasses.asdict(image) for image in images]
    value["skipped"] = [dataclasses.asdict(skip) for skip in skipped]
    storage.write_json(folder / RUN_FILE, value)


def read_info(folder: Path) -> tuple[RunInfo, list[ImageRecord], list[Skipped]]:
    """Read run.json. Raises RunError if it is missing, damaged or of another format."""
    value = storage.read_json(folder / RUN_FILE)
    written = value.get("format") if isinstance(value, dict) else None
    if isinstance(written, int) and written > FORMAT:
        raise RunError(f"{str(folder)!r} is of a newer patchcluster: upgrade to read it")
    if isinstance(written, int) and written < FORMAT:
        raise RunError(
            f"{str(folder)!r} is of an earlier patchcluster: scan again into another folder"
        )
    try:
        return parse(value)
    except ValueError as error:
        raise storage.damaged(folder / RUN_FILE, str(error)) from error


def write_map(folder: Path, image_id: int, grid: Floats) -> None:
    """Write one score grid [h, w] as float16."""
    buffer = io.BytesIO()
    np.save(buffer, grid.astype(np.float16), allow_pickle=False)
    storage.write_bytes(map_path(folder, image_id), buffer.getvalue(), durable=False)


def write_neighbours(folder: Path, tensors: Mapping[str, "Tensor"]) -> None:
    """Write what each patch of each image was compared with.

    ids int64 [n]: of the images; offsets int64 [n + 1]: where the patches of each begin; of each
    patch image int32 [p, 3] (an id; -1: the patch has no score), patch int32 [p, 3] (row-major in
    the grid of that image) and distance float16 [p, 3].
    """
    storage.write_tensors(folder / NEIGHBOURS_FILE, tensors)


def write_bank(
    folder: Path, states: Mapping[int, Mapping[str, "Tensor"]], note: Mapping[str, Any]
) -> None:
    """Write the fitted methods, one a network size, as tensors named SIZE.NAME: docs/bank.md.

    note: what they need besides the tensors.
    """
    tensors = {f"{size}.{name}": t for size, state in states.items() for name, t in state.items()}
    storage.write_tensors(folder / BANK_FILE, tensors, note)


def begin(folder: Path, info: RunInfo, replace: bool) -> None:
    """Make a folder an unfinished run; replace: remove all that an earlier scan wrote.

    A kill at any instant leaves a run, or a folder that `check_output` takes for an empty one. So
    the work folder comes first, by which `is_run` knows a run, then run.json; only then files go,
    but for the report: a scan that resumes would take an old one for its own.
    """
    work = folder / WORK_FOLDER
    with storage.writing(folder):
        work.mkdir(parents=True, exist_ok=True)
        (folder / REPORT_FILE).unlink(missing_ok=True)
    write_info(folder, info, [], [])
    if not _takes_inputs(folder, info):
        storage.remove(folder / INPUTS_FOLDER)
    if not replace:
        take_back_batches(folder)
        return
    with storage.writing(folder):
        for path in work.iterdir():  # before the thumbnails, which belong to what it holds
            if path.is_file():  # not the images of the new scan
                path.unlink()
        for name in (SCORES_FILE, REGIONS_FILE, NEIGHBOURS_FILE, BANK_FILE):
            (folder / name).unlink(missing_ok=True)
        for name in _FOLDERS:
            storage.remove(folder / name)


def _takes_inputs(folder: Path, info: RunInfo) -> bool:
    """Say whether a scan is of images that lie in its own folder."""
    own = Path(os.path.abspath(folder / INPUTS_FOLDER))
    return any(Path(os.path.abspath(item)).is_relative_to(own) for item in info.inputs)


def remove_others(folder: Path, images: Sequence[ImageRecord]) -> None:
    """Remove files of images that a run does not have: an earlier start may have left some."""
    kept = {path(folder, image.id) for image in images for path in (map_path, thumbnail_path)}
    kept |= {_region_path(folder, image.roi) for image in images}
    with storage.writing(folder):
        for name in ("maps", "thumbnails", "roi"):
            for path in (folder / name).glob("*"):
                if path not in kept:
                    path.unlink()


def check_output(folder: Path, overwrite: bool) -> None:
    """Raise RunError if a scan must not write into a folder."""
    if not os.path.isdir(folder):
        if os.path.exists(folder):
            raise RunError(f"{str(folder)!r} is a file: choose a folder for the run with -o")
        return
    if is_run(folder):
        return
    # A scan that was killed as it began may have left these.
    ours = {storage.LOCK_FILE, WORK_FOLDER, storage.part_path(folder / RUN_FILE).name}
    if os.path.isdir(folder / WORK_FOLDER):  # which is there first: see saved_inputs.py
        ours.add(INPUTS_FOLDER)
    try:
        others = sorted(path.name for path in folder.iterdir() if path.name not in ours)
    except OSError as error:
        raise RunError(
            f"cannot look into {str(folder)!r}: {inputs.reason(error)}. Choose another -o"
        ) from error
    if others:
        advice = "choose another -o" if overwrite else "choose a new or empty folder with -o"
        raise RunError(f"{str(folder)!r} holds other files ({', '.join(others[:3])}): {advice}")


def read_earlier(folder: Path, info: RunInfo) -> RunInfo | None:
    """Read run.json if the folder holds a scan of the same, finished or not; None if empty.

    Raises RunError if it holds a scan of something else.
    """
    if not os.path.isfile(folder / RUN_FILE):
        return None
    earlier, _, _ = read_info(folder)
    # tuples become lists
    asked = json.loads(json.dumps([info.inputs, info.settings, info.roi_sha256]))
    known = [earlier.inputs, earlier.settings, earlier.roi_sha256]
    if known != asked:
        what = "masks" if known[:2] == asked[:2] else "settings"
        raise RunError(
            f"{str(folder)!r} holds a scan of other inputs or {what}: choose another -o, or add "
            "--overwrite"
        )
    return earlier
