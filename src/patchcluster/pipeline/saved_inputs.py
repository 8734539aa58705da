"""Save images that were given as objects to RUN/inputs, from where the scan reads them.

A file's name begins with the image's index in its data set: 000017.png, or 000017-NAME.jpg if the
data set has names. The natural order of the files is that of the data set.

A scan that resumes compares each image with its file and writes what is missing. With `overwrite`,
images that differ from those of the run are saved to RUN/.work/inputs first, so that the earlier
run stays whole until the new one can start.
"""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import RunError
from ..runs import runfolder, storage
from ..runs.info import RunInfo
from ..runs.runfolder import INPUTS_FOLDER, RUN_FILE, WORK_FOLDER

if TYPE_CHECKING:
    from .sources import Source


def index_of(path: str) -> int:
    """Return an image's index in its data set, from 0. Raises ValueError if it has none."""
    number = re.match(r"\d{6,}", Path(path).name)
    if number is None:
        raise ValueError(f"{path!r} is not the path of an image from a data set")
    return int(number.group())


def save_inputs(
    source: "Source",
    folder: Path,
    info: RunInfo,
    overwrite: bool,
    check: Callable[[list[str]], None],
    progress: Callable[[int, int], None],
) -> None:
    """Save the images to the run folder, and make its `inputs` the input of the scan in `info`.

    check(inputs) raises what would keep a scan of the inputs from starting; progress(done, total).
    Raises InputError for an image that cannot be converted, RunError if the folder holds a scan of
    other images (without `overwrite`) or cannot be written.
    """
    saved, staged = folder / INPUTS_FOLDER, folder / WORK_FOLDER / INPUTS_FOLDER
    info.inputs = [str(saved)]
    if not overwrite:
        runfolder.read_earlier(folder, info)  # raises RunError for another scan
    is_run = (folder / RUN_FILE).is_file()
    storage.remove(staged)
    target = staged if is_run else saved
    with storage.writing(folder):
        (folder / WORK_FOLDER).mkdir(parents=True, exist_ok=True)  # first: see check_output
        target.mkdir(exist_ok=True)
        had_inputs = saved.is_dir()
        others = {path.name for path in saved.iterdir()} if had_inputs else set()
    must_match = is_run and had_inputs and not overwrite
    kept: list[str] = []
    done = 0
    for done, (name, data) in enumerate(source.files(), start=1):
        others.discard(name)
        if _holds(saved / name, data):
            kept.append(name)
        elif must_match:
            raise _differs(folder, name)
        else:
            storage.write_bytes(target / name, data, durable=False)
        progress(done, source.total or done)
    if others and must_match:
        raise _differs(folder, min(others))
    if not is_run:
        with storage.writing(folder):
            for name in others:
                (saved / name).unlink()
    elif others or len(kept) < done:
        with storage.writing(folder):
            for name in kept:
                shutil.copyfile(saved / name, staged / name)
        if overwrite:
            check([str(staged)])
            runfolder.begin(folder, info, replace=True)
        storage.remove(saved)  # killed from here on, the same call saves the images again
        with storage.writing(folder):
            staged.rename(saved)


def _differs(folder: Path, name: str) -> RunError:
    return RunError(
        f"{str(folder)!r} holds a scan of other images ({name} differs): choose another output, or "
        "overwrite=True. A data set that shuffles or augments its images cannot be resumed"
    )


def _holds(path: Path, data: bytes) -> bool:
    try:
        return path.stat().st_size == len(data) and path.read_bytes() == data
    except OSError:
        return False
