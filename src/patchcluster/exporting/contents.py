"""What all formats write of a run: its images under their names, and where they are anomalous.

All places are in pixels of the image as shown, that is with its EXIF orientation applied, as maps
and regions are.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ..errors import InputError, RunError, UnreadableImage
from ..images.inputs import find_again, is_url, open_input
from ..images.masks import Bools
from ..images.polygons import Points
from ..runs.info import ImageRecord
from ..runs.run import Run
from ..runs.tables import REGIONS_FILE, percentiles
from ..scores.maps import Floats, Region
from . import names, shapes

CATEGORY = "anomaly"  # of all regions
Step = Callable[[int, int], None]  # done, total


@dataclass(frozen=True)
class Item:
    """One image of a run. `rank` is from 1, the most anomalous; `percentile` in %."""

    image: ImageRecord
    name: str  # its path in the folder that all images of the run lie in
    stem: str  # the same without ending, unlike that of any other image
    rank: int
    score: float
    percentile: float
    flagged: bool
    label: str  # what a person said of it; "": nothing
    nearest: str
    regions: list[Region]


@dataclass(frozen=True)
class Area:
    """A region and its pixels."""

    region: Region
    mask: Bools  # [region.height, region.width]

    @functools.cached_property
    def polygon(self) -> Points:
        """The polygon [n, 2] around it, see `shapes.trace`."""
        polygon: Points = shapes.trace(self.mask) + np.array([self.region.x, self.region.y])
        return polygon


class Contents:
    """The images that an export has; iterating over it gives each in input order, with progress."""

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
        """The regions of an image with their pixels, in the order of `Run.regions`."""
        if not item.regions:
            return []
        run, image = self.run, item.image
        finished = run.finished(image.path)
        least = finished.map_threshold(item.score, run.threshold.value)
        found = _Components(finished.map(), least)
        return [Area(region, self._pixels(found, region)) for region in item.regions]

    def _pixels(self, found: "_Components", region: Region) -> Bools:
        mask = found.mask_of(region)
        if mask is None:
            raise RunError(
                f"{str(self.run.folder / REGIONS_FILE)!r} does not fit the maps: `patchcluster "
                "report` writes it again"
            )
        return mask

    def file_of(self, item: Item) -> Path:
        """The local file of an image, absolute. Raises InputError if it is gone, or at a URL."""
        path = item.image.path
        if is_url(path):
            raise InputError(f"{path!r} lies elsewhere: add --images copy")
        try:
            return find_again(path, self.run.folder).absolute()
        except UnreadableImage as error:
            raise InputError(f"cannot take {path!r}: {error}") from error

    def read_file(self, item: Item) -> bytes:
        """The bytes of the file of an image. Raises InputError."""
        path = item.image.path
        try:
            with open_input(path if is_url(path) else str(self.file_of(item))) as file:
                return file.read()
        except UnreadableImage as error:
            raise InputError(f"cannot read {path!r}: {error}") from error


class _Components:
    """The connected areas where a map [height, width] exceeds a threshold."""

    def __init__(self, image_map: Floats, threshold: float) -> None:
        self._map = image_map
        self._labels: NDArray[np.int32]
        self._labels, _ = ndimage.label(image_map > threshold, structure=np.ones((3, 3)))
        self._by_box: dict[tuple[int, int, int, int], list[int]] = {}
        for number, (rows, columns) in enumerate(ndimage.find_objects(self._labels), 1):
            box = (columns.start, rows.start, columns.stop, rows.stop)
            self._by_box.setdefault(box, []).append(number)

    def mask_of(self, region: Region) -> Bools | None:
        """The pixels of a region within its box; None: there are none.

        Another processor may round a map otherwise in its last digit, so that a box differs by a
        pixel: then it is the area that has most of the box.
        """
        right, below = region.x + region.width, region.y + region.height
        within = (slice(region.y, below), slice(region.x, right))
        labels, values = self._labels[within], self._map[within]
        numbers = self._by_box.get((region.x, region.y, right, below), [])
        if numbers:
            peaks = [float(values[labels == number].max()) for number in numbers]
            number = numbers[int(np.abs(np.array(peaks) - region.peak).argmin())]
        else:
            counts = np.bincount(labels.ravel())
            counts[0] = 0
            number = int(counts.argmax())
        return labels == number if number else None


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
            round(float(lower[i]), 2),
            bool(run.flagged[i]),
            run.info.labels.get(image.path, ""),
            run.nearest[i],
            run.regions(image.path),
        )
        for i, image in enumerate(run.images)
    ]
