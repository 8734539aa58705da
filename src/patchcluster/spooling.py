"""Images that are no files -> files in the run folder, which the scan then takes as any others.

They are written once into RUN/inputs, under names that say their places: 000017.png, or
000017-NAME.jpg where the data set has names. Their natural order is that of the data set.

A start that goes on compares each image with its file and writes what is missing. A scan with
`overwrite` of other images writes them to RUN/.work/inputs first, so that the run that is there
stays whole until the new one can start.
"""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

from . import runfolder, storage
from .errors import RunError
from .runfolder import INPUTS_FOLDER, RUN_FILE, WORK_FOLDER
from .runinfo import RunInfo
from .sources import Picture, Source


def index_of(path: str) -> int:
    """The place in its data set of an image of a run, from 0. Raises ValueError if it has none."""
    number = re.match(r"\d{6,}", Path(path).name)
    if number is None:
        raise ValueError(f"{path!r} is not the path of an image from a data set")
    return int(number.group())


def spool(
    source: Source,
    folder: Path,
    info: RunInfo,
    overwrite: bool,
    check: Callable[[list[str]], None],
    progress: Callable[[int, int], None],
) -> None:
    """Write the images of a data set, and name them in `info` as what the scan is asked for.

    check(files) raises what would keep a scan of files from starting; progress(done, total).
    Raises InputError for an image that cannot be written, RunError if the folder holds a scan of
    other images (without `overwrite`) or cannot be written.
    """
    Spool(folder, info, overwrite).take(source, check, progress)


class Spool:
    """The images of one scan on their way to its folder."""

    def __init__(self, folder: Path, info: RunInfo, overwrite: bool) -> None:
        info.inputs = [str(folder / INPUTS_FOLDER)]
        self._folder, self._info, self._overwrite = folder, info, overwrite
        self._known, self._aside = folder / INPUTS_FOLDER, folder / WORK_FOLDER / INPUTS_FOLDER
        # The images of a run are complete, and stay as they are.
        self._is_run = (folder / RUN_FILE).is_file()
        self._place = self._aside if self._is_run and not self._known.is_dir() else self._known
        self._names: list[str] = []

    def take(
        self,
        source: Source,
        check: Callable[[list[str]], None],
        progress: Callable[[int, int], None],
    ) -> None:
        """Write all images."""
        if not self._overwrite:
            runfolder.read_earlier(self._folder, self._info)  # refuses another scan
        with storage.writing(self._folder):
            (self._folder / WORK_FOLDER).mkdir(parents=True, exist_ok=True)  # see check_output
            self._place.mkdir(exist_ok=True)
        for picture in source.pictures():
            self._put(picture)
            progress(len(self._names), source.total or len(self._names))
        self._remove_others()
        if self._place == self._aside:
            self._take_over(check)

    def _put(self, picture: Picture) -> None:
        if not _holds(self._place / picture.name, picture.data):
            self._go_aside(picture.name)
            storage.write_bytes(self._place / picture.name, picture.data, durable=False)
        self._names.append(picture.name)

    def _go_aside(self, name: str) -> None:
        """Leave the images of a run as they are. Raises RunError if it must not be replaced."""
        if not self._is_run or self._place == self._aside:
            return
        if not self._overwrite:
            raise RunError(
                f"{str(self._folder)!r} holds a scan of other images ({name} differs): choose "
                "another output, or overwrite=True. Images that are drawn anew each time, shuffled "
                "or augmented, cannot be taken up again"
            )
        self._place = self._aside
        with storage.writing(self._folder):
            self._aside.mkdir(exist_ok=True)
            for same in self._names:
                shutil.copyfile(self._known / same, self._aside / same)

    def _remove_others(self) -> None:
        """Remove what an earlier start left that is no image of this data set."""
        if others := self._find_others():
            self._go_aside(others[0].name)
        with storage.writing(self._folder):
            for path in self._find_others():
                path.unlink()

    def _find_others(self) -> list[Path]:
        names = set(self._names)
        return [path for path in self._place.iterdir() if path.name not in names]

    def _take_over(self, check: Callable[[list[str]], None]) -> None:
        """Put the images into the run; the same call takes up from any kill."""
        if self._overwrite:
            check([str(self._aside)])
            runfolder.begin(self._folder, self._info, replace=True)
        storage.remove(self._known)
        with storage.writing(self._folder):
            self._aside.rename(self._known)


def _holds(path: Path, data: bytes) -> bool:
    try:
        return path.stat().st_size == len(data) and path.read_bytes() == data
    except OSError:
        return False
