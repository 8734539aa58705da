"""A finished run, read from its folder."""

import functools
import math
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, RunError
from ..images.inputs import PathFinder, local_path
from ..scores.feedback import order_by_doubt
from ..scores.finish import Finished, MapRule, finish
from ..scores.maps import Floats, Region
from ..scores.remarks import Limits, find_limits, find_remarks
from ..scores.thresholds import Threshold
from ..settings import resolve
from . import storage
from .info import ImageRecord
from .runfolder import NEIGHBOURS_FILE, RUN_FILE, map_path, read_info, read_mask_of
from .tables import rank, read_regions, read_scores


@dataclass(frozen=True)
class Neighbour:
    """A place of the set that a place was compared with; x, y are its centre in pixels."""

    path: str
    x: float
    y: float
    distance: float


def load_run(folder: str | os.PathLike[str]) -> "Run":
    """Open a finished run.

    Raises RunError if it is missing, unfinished, damaged or too new; InputError for a URL.
    """
    return Run(local_path(folder))


@contextmanager
def hold_run(folder: Path) -> Iterator[None]:
    """Hold a run against other processes, to change it; leave a folder that is none as it is.

    Raises RunError if it is none, or in use.
    """
    check_run(folder)
    with storage.lock(folder):
        yield


def check_run(folder: Path) -> None:
    """Raise RunError if a folder is no run, finished or not."""
    if not os.path.isfile(folder / RUN_FILE):
        raise RunError(f"{str(folder)!r} is not a run: name the folder that scan -o wrote")


def find_patch(image: ImageRecord, shape: tuple[int, ...], x: float, y: float) -> int:
    """Find the patch, row-major in a grid of a shape (h, w), that pixel (x, y) of an image lies in.

    Raises InputError if it lies outside the image.
    """
    if not (0 <= x < image.width and 0 <= y < image.height):
        raise InputError(
            f"({x}, {y}) lies outside the image, which is {image.width} x {image.height} pixels"
        )
    rows, columns = shape
    row = min(rows - 1, int(y * rows / image.height))
    return row * columns + min(columns - 1, int(x * columns / image.width))


class Run:
    """A finished run.

    Attributes, all in input order: `paths` (as the user gave them), `scores` float64 [n],
    `probabilities` (that an image is anomalous, by its score among the others; None in a set of
    fewer than 5 images), `flagged` bool [n], `nearest` (path of the image that the most anomalous
    place is nearest to), `images`, `remarks` (a tuple of what is odd about each as a whole).
    `ranking` int64 [n] orders them from most to least anomalous:
    `run.paths[i] for i in run.ranking`. `skipped` lists the files without a score, `threshold` says
    which scores are flagged and why, `info` is the rest of run.json.

    An image has a score `grid`, one score a patch; a `frame_map`, the grid smoothed on a frame of
    fixed area; and a `map`, the frame at the size of the image. Each covers the whole image, with
    NaN outside a region of interest.
    """

    def __init__(self, folder: Path, half_changed: bool = False) -> None:
        """Read a run. half_changed: also if a change was interrupted; the caller holds its lock."""
        check_run(folder)
        self.folder = folder
        self.info, self.images, self.skipped = read_info(folder)
        readable = ("complete", "flagging", "rescoring") if half_changed else ("complete",)
        if self.info.state not in readable:
            if not half_changed and storage.is_held(folder):
                raise RunError(f"{str(folder)!r} is being written by another process: wait for it")
            raise RunError(self.say_unfinished())
        self.threshold = Threshold(**self.info.threshold)
        self.paths = [image.path for image in self.images]
        self.scores: NDArray[np.float64] = np.zeros(len(self.paths))
        self.nearest = [""] * len(self.paths)
        self.flagged: NDArray[np.bool_] = np.zeros(len(self.paths), bool)
        if self.info.state != "rescoring":  # whose tables may be of other images
            self.scores, self.nearest, self.flagged = read_scores(folder, self.paths)
        self.probabilities = self.info.probabilities(self.scores)
        self.ranking = rank(self.scores)

    def say_unfinished(self) -> str:
        """Say why the run cannot be read as it is, and what to do."""
        name = repr(str(self.folder))
        if self.info.state == "running":
            return f"the scan of {name} is not finished: run the same scan again, it resumes"
        command = f"patchcluster report {shlex.quote(str(self.folder))}"
        for option, value in self.info.flagging.items():  # without them it would flag otherwise
            if value is not None:
                command += f" --{option.replace('_', '-')} {value}"
        return f"{self.info.state} {name} was interrupted: `{command}` finishes it"

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return f"<Run {str(self.folder)!r}: {len(self)} images, {self.flagged.sum()} flagged>"

    def _repr_html_(self) -> str:
        """Show the most anomalous images as small cards in a notebook."""
        from .notebook import cards_html  # which needs a run itself

        return cards_html(self)

    def index(self, path: str) -> int:
        """Find the position of an image in `paths`, by its path or the end of it if only one fits.

        Raises InputError if none or several fit.
        """
        return self._finder.find(str(path))

    @property
    def doubtful(self) -> list[str]:
        """Images without a label; a label of the first would say most about the others."""
        labels = [self.info.labels.get(path) for path in self.paths]
        order = order_by_doubt(self.scores, labels, self.info.boundary)
        return [self.paths[int(i)] for i in order]

    def grid(self, path: str) -> Floats:
        """Read the score grid float32 [h, w] of an image, one score a patch; NaN: not scored."""
        image = self.images[self.index(path)]
        grid = self._read_grid(image.id).astype(np.float32)
        scored = np.isfinite(grid)
        if not (scored.any() if image.roi else scored.all()):
            raise storage.damaged(map_path(self.folder, image.id), "a score is no number")
        return grid

    def _read_grid(self, image_id: int) -> NDArray[np.float16]:
        """Map the score grid [h, w] of the image with an id from the disk."""
        file = map_path(self.folder, image_id)
        try:
            grid: NDArray[np.float16] = np.lib.format.open_memmap(file, mode="r")
        except Exception as error:  # damaged files make NumPy's reader raise almost anything
            raise storage.unreadable(file, error) from error
        if grid.ndim != 2 or grid.size == 0 or grid.dtype != np.float16:
            raise storage.damaged(file, f"{grid.dtype} of shape {grid.shape}")
        return grid

    def frame_map(self, path: str) -> Floats:
        """Return the smoothed map float32 [h', w'] on its frame, before it is brought to the image.

        NaN outside a region of interest.
        """
        return self.finished(path).smoothed

    def map(self, path: str) -> Floats:
        """Return the map float32 [height, width] of the original image; larger: more anomalous.

        NaN outside a region of interest (`scan(..., roi=...)`).
        """
        return self.finished(path).map()

    def map_at(self, path: str, width: int, height: int) -> Floats:
        """Return the map of an image at another size, float32 [height, width]; NaN as in `map`."""
        return self.finished(path).map(width, height)

    def map_threshold(self, path: str) -> float:
        """Return the value that the map of an image exceeds in its regions.

        `threshold.value`, raised by what the image's baseline took off its score.
        """
        score = float(self.scores[self.index(path)])
        return self.finished(path).map_threshold(score, self.threshold.value)

    def finished(self, path: str) -> Finished:
        """Smooth the grid of an image: its map on the frame, from which all else follows."""
        image, grid = self.images[self.index(path)], self.grid(path)
        mask = read_mask_of(self.folder, image)
        return finish(grid, image.width, image.height, self.map_rule, mask)

    def regions(self, path: str) -> list[Region]:
        """Return the regions of an image, highest peak first, in pixels of the original."""
        return self._regions.get(self.paths[self.index(path)], [])

    def neighbours(self, path: str, x: float, y: float) -> list[Neighbour]:
        """Return the places that the place at pixel (x, y) was compared with, nearest first.

        With the default method they lie in different other images: what the place should have
        looked like. Outside a region of interest there are none. Raises InputError if (x, y) lies
        outside the image.
        """
        image = self.images[self.index(path)]
        patch = find_patch(image, self.patch_grid_shape(image.id), x, y)
        return [self.neighbour(*place) for place in self._neighbour_places(image.id, patch)]

    def neighbour(self, image_id: int, patch: int, distance: float) -> Neighbour:
        """Locate a patch (row-major in the grid of its image), by the id of the image."""
        image = self._by_id[image_id]
        height, width = self.patch_grid_shape(image_id)
        row, column = divmod(patch, width)
        x, y = (column + 0.5) * image.width / width, (row + 0.5) * image.height / height
        return Neighbour(image.path, x, y, distance)

    def _neighbour_places(self, image_id: int, patch: int) -> list[tuple[int, int, float]]:
        """Look up image id, patch and distance of the neighbours of a patch."""
        file, arrays = self.folder / NEIGHBOURS_FILE, self._neighbour_arrays
        try:
            position = int(np.flatnonzero(arrays["ids"] == image_id)[0])
            at = int(arrays["offsets"][position]) + patch
            rows = [arrays[name][at].tolist() for name in ("image", "patch", "distance")]
            places = [(int(i), int(p), float(d)) for i, p, d in zip(*rows, strict=True) if i >= 0]
        except (ArithmeticError, LookupError, TypeError, ValueError, RuntimeError) as error:
            raise storage.damaged(file, error) from error
        for other, place, _ in places:
            if other not in self._by_id:
                raise storage.damaged(file, "an image that the run does not have")
            if not 0 <= place < math.prod(self.patch_grid_shape(other)):
                raise storage.damaged(file, "a place that its image does not have")
        return places

    def patch_grid_shape(self, image_id: int) -> tuple[int, int]:
        """Return rows and columns of the score grid of the image with an id."""
        rows, columns = self._read_grid(image_id).shape
        return rows, columns

    @functools.cached_property
    def map_rule(self) -> MapRule:
        """How score grids become maps and image scores."""
        return resolve(**self.info.settings).map_rule(self.info.baseline)

    @functools.cached_property
    def remarks(self) -> list[tuple[str, ...]]:
        """What is odd about each image as a whole: words of `scores.remarks.REMARKS`."""
        return find_remarks([image.figures for image in self.images], self.limits)

    @functools.cached_property
    def limits(self) -> Limits | None:
        """Limits of what images of the set look like; None: too few images."""
        return find_limits([image.figures for image in self.images])

    @functools.cached_property
    def _finder(self) -> PathFinder:
        return PathFinder(self.paths)

    @functools.cached_property
    def _by_id(self) -> dict[int, ImageRecord]:
        return {image.id: image for image in self.images}

    @functools.cached_property
    def _neighbour_arrays(self) -> dict[str, NDArray[Any]]:
        file = self.folder / NEIGHBOURS_FILE
        arrays = storage.read_arrays(file)
        if any(values.dtype.kind not in "iuf" for values in arrays.values()):
            raise storage.damaged(file, "values that are no real numbers")
        return arrays

    @functools.cached_property
    def _regions(self) -> dict[str, list[Region]]:
        return read_regions(self.folder, self.images)
