"""The content of an export, for all formats: images, their names and their anomalous areas.

All coordinates are in pixels of the image as shown, that is with its EXIF orientation applied, as
in maps and regions.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from ..errors import InputError, RunError, UnreadableImage
from ..images.inputs import find_again, is_url, read_input
from ..runs import storage
from ..runs.info import ImageRecord
from ..runs.run import Run
from ..runs.tables import REGIONS_FILE, percentiles
from ..scores.maps import Region
from . import names
from .areas import Area, find_area

CATEGORY = "anomaly"  # of all regions
Step = Callable[[int, int], None]  # done, total


@dataclass(frozen=True)
class Item:
    """One image of a run. `rank` is from 1, the most anomalous; `percentile` in %."""

    image: ImageRecord
    name: str  # its path relative to the folder that all images of the run lie in
    stem: str  # the name without its suffix, distinct in the run
    rank: int
    score: float
    probability: float | None
    percentile: float
    flagged: bool
    label: str  # "": none
    nearest: str
    remarks: tuple[str, ...]
    regions: list[Region]

    @property
    def file_name(self) -> str:
        """Name of a copy of the image, distinct in the run."""
        return f"{self.stem}{PurePosixPath(self.name).suffix}"


class Contents:
    """The images of an export; iterating yields each in input order and reports progress."""

    def __init__(self, run: Run, flagged_only: bool, step: Step) -> None:
        self.run, self.flagged_only = run, flagged_only
        self.folder = names.image_folder(run.paths)
        self.items = [item for item in _list_items(run) if item.flagged or not flagged_only]
        self._step = step

    def __iter__(self) -> Iterator[Item]:
        for done, item in enumerate(self.items, start=1):
            yield item
            self._step(done, len(self.items))

    def areas(self, item: Item) -> list[Area]:
        """Return the regions of an image with their pixels, in the order of `Run.regions`.

        Raises RunError if a region does not fit the map.
        """
        if not item.regions:
            return []
        finished = self.run.finished(item.image.path)
        threshold = finished.map_threshold(item.score, self.run.threshold.value)
        image_map = finished.map()
        try:
            return [find_area(region, image_map, threshold) for region in item.regions]
        except ValueError as error:
            raise RunError(
                f"{str(self.run.folder / REGIONS_FILE)!r} does not fit the maps: `patchcluster "
                "report` writes it again"
            ) from error

    def file_of(self, item: Item) -> Path:
        """Return the absolute path of an image. Raises InputError if it is gone, or at a URL."""
        path = item.image.path
        if is_url(path):
            raise InputError(f"{path!r} lies elsewhere: add --images copy")
        try:
            return find_again(path, self.run.folder).absolute()
        except UnreadableImage as error:
            raise InputError(f"cannot take {path!r}: {error}") from error

    def copy_file(self, item: Item, to: Path) -> None:
        """Copy the file of an image. Raises InputError if it cannot be read, or RunError."""
        path = item.image.path
        try:
            data = read_input(path if is_url(path) else str(self.file_of(item)))
        except UnreadableImage as error:
            raise InputError(f"cannot read {path!r}: {error}") from error
        storage.write_bytes(to, data, durable=False)


def _list_items(run: Run) -> list[Item]:
    ranks = np.empty(len(run), int)
    ranks[run.ranking] = np.arange(1, len(run) + 1)
    lower = percentiles(run.scores)
    mirrored = names.mirror(run.paths)
    stems = names.stems(mirrored)
    return [
        Item(
            image,
            mirrored[i],
            stems[i],
            int(ranks[i]),
            float(run.scores[i]),
            run.probabilities[i],
            round(float(lower[i]), 2),
            bool(run.flagged[i]),
            run.info.labels.get(image.path, ""),
            run.nearest[i],
            run.remarks[i],
            run.regions(image.path),
        )
        for i, image in enumerate(run.images)
    ]
