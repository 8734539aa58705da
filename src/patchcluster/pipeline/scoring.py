"""New images against the bank of a finished run, which stays as it is."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field

import numpy as np
import torch

from ..errors import RunError, SettingError, UnreadableImage
from ..images.decode import Pixels, load_image, read_header
from ..images.finding import find_images
from ..images.inputs import local_path, read_input
from ..images.shapes import network_size
from ..methods import Method
from ..methods.base import NEIGHBOURS_KEPT
from ..network.devices import choose_device
from ..runs import runfolder, tables
from ..runs.info import ImageRecord, Skipped
from ..runs.run import Neighbour, Run, find_patch, load_run
from ..scores import maps
from ..scores.finish import Finished, finish
from ..scores.maps import Floats, Region
from ..scores.remarks import find_remarks
from ..settings import resolve
from .comparing import Explanations, to_grid
from .extraction import extract
from .image_set import ImageSet
from .loading import find_packing, load_method, load_network
from .sources import Paths, list_paths
from .survey import input_shapes
from .workers import thread_pool


@dataclass(frozen=True)
class ScoredImage:
    """A new image as a run sees it.

    `score`: larger is more anomalous; `probability`: that it is anomalous, by its score among those
    of the run's images, None if they are too few; `percentile`: the share of the run's images that
    score lower, in %; `flagged`: whether the score is over the run's threshold; `regions` as in
    `Run.regions`, without groups; `place`: x and y of the centre of its most anomalous patch, in
    pixels; `nearest`: path of the image of the set that this place is nearest to, or ""; `same_as`:
    path of the image of the set that has the same bytes, or ""; `remarks`: what is odd about it as
    a whole, by the limits of the set; `grid` float32 [h, w], NaN: not scored.
    """

    record: ImageRecord
    score: float
    probability: float | None
    percentile: float
    flagged: bool
    regions: list[Region]
    place: tuple[float, float]
    nearest: str
    same_as: str
    remarks: tuple[str, ...]
    grid: Floats
    _scorer: "Scorer" = field(repr=False)
    _explanations: Explanations = field(repr=False)

    @property
    def path(self) -> str:
        return self.record.path

    def map(self) -> Floats:
        """Anomaly map float32 [height, width]; NaN outside a region of interest."""
        return self._scorer.finish(self.record, self.grid).map()

    def neighbours(self, x: float, y: float) -> list[Neighbour]:
        """The places of the set that the place at pixel (x, y) was compared with, nearest first.

        Raises InputError if (x, y) lies outside the image.
        """
        patch = find_patch(self.record, self.grid.shape, x, y)
        return self._scorer.find_places(self._explanations, patch)


@dataclass(frozen=True)
class Scores:
    """Scores of new images in natural order of their paths, and skipped files with reasons."""

    images: list[ScoredImage]
    skipped: list[Skipped]

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write a CSV file with the columns of `tables.IMAGE_HEADER`.

        Raises RunError if it cannot be written, InputError for a URL.
        """
        rows = [
            tables.to_cells(
                one.path,
                one.score,
                one.probability,
                one.percentile,
                one.flagged,
                len(one.regions),
                one.nearest,
                one.remarks,
            )
            for one in self.images
        ]
        tables.write_table(local_path(path), tables.IMAGE_HEADER, rows)


def score(
    run: Run | str | os.PathLike[str],
    inputs: Paths,
    *,
    device: str | None = None,
    weights: str | None = None,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Scores:
    """Score new images against the bank of a run, or its folder, without changing it.

    inputs: folders, files, globs or fsspec URLs. Others as in `Scorer`; progress(done, total).
    Raises InputError, SettingError, WeightsError or RunError.
    """
    files = find_images(list_paths(inputs), runfolder.is_run, runfolder.find_runs)
    scorer = Scorer(run, device=device, weights=weights)
    images, skipped = [], []
    with scorer.threads() as pool:
        for found in pool.map(scorer.try_file, files):
            if isinstance(found, Skipped):
                skipped.append(found)
            else:
                images.append(found)
            progress(len(images) + len(skipped), len(files))
    return Scores(images, skipped)


class Scorer:
    """Scores images one by one against the bank of a run; safe to use from several threads.

    An image is brought to the network, compared and mapped as the images of the scan were, by
    their scale of deep images, tiles and mask. It is compared with all images of the set; what
    labels taught of the set's own images (`feedback`) shifts no score of a new one. An image whose
    bytes are in the set is compared like any other: it meets itself there at next to no distance,
    so that it looks ordinary, unless the method leaves near-duplicates out, as the default does.

    Parameters: the run, or its folder; `device`: another than the scan's; `weights`: where
    the file of the backbone's weights lies now. Raises RunError if the weights are not the scan's,
    or each image of the run has a mask of its own; WeightsError; SettingError.
    """

    def __init__(
        self,
        run: Run | str | os.PathLike[str],
        *,
        device: str | None = None,
        weights: str | None = None,
    ) -> None:
        self.run = run if isinstance(run, Run) else load_run(run)
        self.settings = resolve(**self.run.info.settings)
        self._roi = self._find_mask()
        self.device = choose_device(device or self.settings.device)
        self.backbone = load_network(self.run, weights, self.device)
        self._methods = [load_method(self.run, size, self.device) for size in self.settings.size]
        self._set = ImageSet.of(self.run.images).firsts
        self._same = {image.sha256: image.path for image in reversed(self.run.images)}
        self._ascending = np.sort(self.run.scores)
        self._warm_up()

    @property
    def parallel(self) -> int:
        """How many images are best scored at a time."""
        return torch.get_num_threads() if self.device.type == "cpu" else 1

    def threads(self, count: int | None = None) -> AbstractContextManager[ThreadPoolExecutor]:
        """Threads to score in, by default one a core: each image stays in one, as in a scan."""
        count = count or self.parallel
        return thread_pool(count, each=max(1, torch.get_num_threads() // count))

    def try_file(self, path: str) -> ScoredImage | Skipped:
        """Score a file, or say why it cannot be."""
        try:
            return self.score(read_input(path), path)
        except UnreadableImage as error:
            return Skipped(path, str(error))

    def score(self, data: bytes, path: str = "", max_pixels: int | None = None) -> ScoredImage:
        """Score an image by the bytes of its file.

        Raises UnreadableImage with the reason, also if it has more than `max_pixels`; None: than
        the scan would take.
        """
        header = read_header(data, max_pixels or self.settings.max_pixels)
        windows = self.run.info.windows
        if header.depth != "byte" and header.depth not in windows:
            raise UnreadableImage(
                f"has {header.depth} values of more than 8 bits, and no image of the set has: "
                "its window is not known, save it with 8 bits"
            )
        shapes = input_shapes(header.width, header.height, self.settings, self.backbone.strides)
        image = load_image(data, header, shapes, windows)
        record = ImageRecord(
            -1,
            path,
            image.sha256,
            image.file_size,
            header.width,
            header.height,
            self._roi,
            look=image.look,
        )
        with torch.inference_mode():
            return self._score(record, image.pixels)

    def finish(self, record: ImageRecord, grid: Floats) -> Finished:
        """Bring the score grid of an image to its frame, as those of the scan were."""
        mask = runfolder.read_mask_of(self.run.folder, record)
        return finish(grid, record.width, record.height, self.run.map_rule, mask)

    def find_places(self, explanations: Explanations, patch: int) -> list[Neighbour]:
        """Where the places of the set lie that a patch was compared with, nearest first."""
        places = []
        parts = (explanations.image, explanations.patch, explanations.distance)
        for image, at, distance in zip(*(part[patch].tolist() for part in parts), strict=True):
            if image >= 0:
                record = self._set[image]
                packing = find_packing(self.run, record, self.run.patch_grid_shape(record.id))
                place = at if packing is None else int(packing.cells[at])
                places.append(self.run.neighbour(record.id, place, distance))
        return places

    def _score(self, record: ImageRecord, pixels: Sequence[Pixels]) -> ScoredImage:
        compared = [
            self._compare(record, one, size, method)
            for one, size, method in zip(pixels, self.settings.size, self._methods, strict=True)
        ]
        grid = maps.round_as_stored(maps.fuse([one for one, _, _ in compared]))
        _, explanations, own = compared[int(np.argmax(self.settings.size))]
        finished, threshold = self.finish(record, grid), self.run.threshold.value
        # As those that the threshold was chosen from:
        value = tables.round_as_written(finished.score if own is None else own)
        peak = int(np.nanargmax(grid))
        (rows, columns), (row, column) = grid.shape, divmod(peak, grid.shape[1])
        shown = explanations.image[peak].tolist()
        return ScoredImage(
            record,
            value,
            self.run.info.probabilities(np.array([value]))[0],
            100 * float(np.searchsorted(self._ascending, value)) / len(self._ascending),
            value > threshold,
            finished.regions(value, threshold),
            ((column + 0.5) * record.width / columns, (row + 0.5) * record.height / rows),
            self._set[shown[0]].path if shown else "",
            self._same.get(record.sha256, ""),
            find_remarks([record.figures], self.run.limits)[0],
            grid,
            self,
            explanations,
        )

    def _compare(
        self, record: ImageRecord, pixels: Pixels, size: int, method: Method
    ) -> tuple[Floats, Explanations, float | None]:
        """Compare an image at one network size: its score grid, with what its patches were compared
        with, and its score by a rule of the method's own."""
        (patches,) = extract([pixels], self.backbone, self.settings, size)
        shape = (patches.shape[0], patches.shape[1])
        packing = find_packing(self.run, record, shape)
        if packing is not None:
            if not len(packing.cells):
                raise UnreadableImage("nothing of it is inside the mask of the run")
            patches = packing.pack(patches.cpu()).to(self.device)
        blocks = None if packing is None else [packing.blocks]
        try:
            comparison = method.compare([patches], blocks=blocks)
        except SettingError as error:  # padim: another size than the set's
            raise UnreadableImage(str(error)) from error
        scores, image_score = method.to_scores(comparison), None
        if self.settings.image_score in method.facts.image_scores:
            image_score = float(method.score_images([patches], [scores])[0])
        explanations = Explanations.of(
            method.bank_image_,
            method.bank_patch_,  # in packed grids, as the bank has them
            comparison.neighbours[:, :NEIGHBOURS_KEPT],
            comparison.neighbour_distances[:, :NEIGHBOURS_KEPT],
            packing,
        )
        return to_grid(scores.cpu(), shape, packing), explanations, image_score

    def _find_mask(self) -> str:
        """Name of the mask of all images of the run, and so of new ones; "": none."""
        names = {image.roi for image in self.run.images}
        if len(names) > 1:
            raise RunError(
                f"{str(self.run.folder)!r} was scanned with a mask for each image, and a new image "
                "has none: scan with one mask for all"
            )
        return names.pop()

    def _warm_up(self) -> None:
        """Build what methods build at their first comparison, before threads share them."""
        first, sizes = self.run.images[0], self.settings.size
        shapes = [network_size(first.width, first.height, size) for size in sizes]
        height, width = shapes[0]
        record = ImageRecord(-1, "", "", 0, width, height, self._roi)
        with torch.inference_mode(), suppress(UnreadableImage):
            self._score(record, [np.full((*shape, 3), 128, np.uint8) for shape in shapes])
