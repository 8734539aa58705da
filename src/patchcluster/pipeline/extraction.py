"""Files -> patches on disk, in batches that a later start can take up again.

A batch is a list of files of one network size; which files it holds depends on the list of files
alone. On the CPU each thread takes an image from its file to its patches, with a network of one
thread: no thread waits for another. For a GPU the threads only decode, ahead of the network.
"""

import copy
import dataclasses
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor

from ..errors import InputError, UnreadableImage
from ..images.decode import LoadedImage, Pixels, load_image
from ..images.inputs import is_url, locate
from ..network.backbones import Backbone
from ..network.out_of_memory import in_halves
from ..runs import runfolder, storage
from ..runs.info import ImageRecord, Skipped
from ..settings import Settings
from .extract import extract
from .stage import Batch, Note, run_stage
from .survey import Candidate, Done
from .workers import Workers

_TRIED = 2  # images a thread, by which the time of all is foreseen
_PREFETCHED = 4  # images a thread that may be waiting to be written, so that threads never wait


@dataclass(frozen=True)
class Extracted:
    """What became of all candidates: records of the images, and the files that were skipped."""

    images: list[ImageRecord]
    skipped: dict[int, Skipped]  # by id


@dataclass(frozen=True)
class Made:
    """An image, and its patches float16 [h, w, c] for each network size, once they are made."""

    image: LoadedImage
    grids: list[Tensor] | None


@dataclass(frozen=True)
class Trial:
    """How long images took in one thread; grids: the patches [h, w, c] of each at one size."""

    load: float  # seconds a pixel of the file
    network: float  # seconds a pixel of the network's input
    grids: list[Tensor]


@dataclass(frozen=True)
class Features:
    """Files -> patches; the work of a batch of files (see `workers.Work`).

    On the CPU `prepare` does all of it, elsewhere it decodes and `finish` has the network.
    """

    backbone: Backbone
    settings: Settings
    ranges: dict[str, list[float]]
    prefetch: ClassVar[int] = _PREFETCHED

    def prepare(self, item: Candidate) -> Made | str:
        """An image, on the CPU with its patches, or the reason why it cannot be read."""
        try:
            image = load_image(item.path, item.header, item.inputs, self.ranges)
        except UnreadableImage as error:
            return str(error)
        if not self._threads_have_networks:
            return Made(image, None)
        sizes = self.settings.size
        grids = [self.patches([p], s)[0] for p, s in zip(image.pixels, sizes, strict=True)]
        return Made(dataclasses.replace(image, pixels=[]), grids)

    def finish(self, ready: Sequence[Made | str]) -> list[Made | str]:
        """The images of a batch, all with their patches."""
        images = [one.image for one in ready if isinstance(one, Made) and one.grids is None]
        if not images:
            return list(ready)
        grids: list[list[Tensor]] = []
        for which, size in enumerate(self.settings.size):
            pixels = [image.pixels[which] for image in images]
            parts = in_halves(partial(self.patches, size=size), pixels, "network")
            grids.append([grid for part in parts for grid in part])
        made = (
            Made(dataclasses.replace(image, pixels=[]), list(of_image))
            for image, of_image in zip(images, zip(*grids, strict=True), strict=True)
        )
        return [one if isinstance(one, str) else next(made) for one in ready]

    def on(self, device: torch.device) -> Self:
        backbone = copy.deepcopy(self.backbone).to(device)
        return dataclasses.replace(self, backbone=backbone)

    def try_out(self, candidates: Sequence[Candidate], threads: int) -> Trial | None:
        """Take a few images to their patches, to see how long that takes.

        None if none of them can be read.
        """
        spread = candidates[:: max(1, len(candidates) // (_TRIED * threads))]
        usual = torch.get_num_threads()
        with ThreadPoolExecutor(threads, "try", lambda: torch.set_num_threads(1)) as pool:
            list(pool.map(self._try, spread[:threads]))  # what is first takes longer
            tried = pool.map(self._try, spread[: _TRIED * threads])
            trials = [trial for trial in tried if trial is not None]
        torch.set_num_threads(usual)
        if not trials:
            return None
        return Trial(
            sum(trial.load for trial in trials) / len(trials),
            sum(trial.network for trial in trials) / len(trials),
            [grid for trial in trials for grid in trial.grids],
        )

    def _try(self, candidate: Candidate) -> Trial | None:
        start = time.perf_counter()
        try:
            image = load_image(candidate.path, candidate.header, candidate.inputs, self.ranges)
        except UnreadableImage:
            return None
        loaded = time.perf_counter()
        sizes = self.settings.size
        grids = [self.patches([p], s)[0] for p, s in zip(image.pixels, sizes, strict=True)]
        size = candidate.header.width * candidate.header.height
        seen = sum(height * width for height, width in candidate.inputs)
        return Trial((loaded - start) / size, (time.perf_counter() - loaded) / seen, grids[-1:])

    def patches(self, pixels: Sequence[Pixels], size: int) -> list[Tensor]:
        """Images of one shape, at one network size -> patches float16 [h, w, c], on the CPU."""
        return [grid.cpu() for grid in extract(pixels, self.backbone, self.settings, size)]

    @property
    def _threads_have_networks(self) -> bool:
        """Whether each thread takes images to their patches; else they decode for one network."""
        return self.backbone.mean.device.type == "cpu"


@dataclass(frozen=True)
class Extractor:
    """Has batches of files turned into patches, and writes them."""

    features: Features
    folder: Path
    workers: Workers

    def run(self, batches: Sequence[Sequence[Candidate]], done: Done) -> Extracted:
        """Make the patches of all batches that the run folder does not hold yet."""
        runfolder.remove_batches_from(self.folder, len(batches))  # of an earlier, longer list
        notes = run_stage(
            [self._batch(number, batch) for number, batch in enumerate(batches)],
            self.features,
            self.workers,
            lambda number, made: self._keep(batches[number], made),
            done,
        )
        images = [ImageRecord(**image) for note in notes for image in note["images"]]
        skipped = {
            skip["id"]: Skipped(skip["path"], skip["reason"])
            for note in notes
            for skip in note["skipped"]
        }
        return Extracted(sorted(images, key=lambda image: image.id), skipped)

    def _batch(self, number: int, batch: Sequence[Candidate]) -> Batch[Candidate]:
        features = self.features
        key = {
            "weights": features.backbone.weights_hash,
            "sizes": list(features.settings.size),
            "tile": features.settings.tile,
            "layout": features.settings.layout,
            "stages": list(features.backbone.indices),
            "ranges": features.ranges,
            "files": [[c.id, c.path, *c.stamp, c.roi] for c in batch],
        }
        return Batch(
            runfolder.batch_path(self.folder, number),
            key,
            len(batch),
            lambda: [dataclasses.replace(one, path=locate(one.path)) for one in batch],
        )

    def _check_same_files(self, batch: Sequence[Candidate], made: Sequence[Made | str]) -> None:
        """Raise InputError if workers on other machines saw other files than the survey did."""
        for candidate, one in zip(batch, made, strict=True):
            if isinstance(one, Made) and candidate.stamp[0] in (0, one.image.file_size):
                continue
            here = self.features.prepare(candidate)
            if isinstance(here, str):  # nobody can read it
                continue
            if isinstance(one, str) or one.image.sha256 != here.image.sha256:
                why = one if isinstance(one, str) else "another file is there"
                raise InputError(
                    f"a worker of the cluster cannot read {candidate.path!r} ({why}), which is "
                    "here: put the images on storage that all nodes share, under one path, or "
                    "name them by URL"
                )

    def _keep(
        self, batch: Sequence[Candidate], made: Sequence[Made | str]
    ) -> tuple[dict[str, Tensor], Note]:
        """Name the patches of a batch, and what became of its files.

        Writes the thumbnails: the batch's file, which comes after, says that all is there.
        """
        if self.workers.apart:
            self._check_same_files(batch, made)
        both = list(zip(batch, made, strict=True))
        good = [(c, one) for c, one in both if not isinstance(one, str)]
        tensors: dict[str, Tensor] = {}
        for candidate, one in good:
            for size, grid in zip(self.features.settings.size, one.grids or [], strict=True):
                tensors[patches_name(size, candidate.id)] = grid
            path = runfolder.thumbnail_path(self.folder, candidate.id)
            storage.write_bytes(path, one.image.thumbnail, durable=False)
        images = [
            {
                "id": c.id, "path": c.path, "sha256": one.image.sha256,
                "bytes": one.image.file_size, "width": c.header.width,
                "height": c.header.height, "roi": c.roi,
                "version": c.stamp[1] if is_url(c.path) else 0,
            }
            for c, one in good
        ]  # fmt: skip
        skipped = [
            {"id": c.id, "path": c.path, "reason": why} for c, why in both if isinstance(why, str)
        ]
        return tensors, {"images": images, "skipped": skipped}


def patches_name(size: int, image_id: int) -> str:
    """Name of an image's patches float16 [h, w, c] in the file of its batch."""
    return f"{size}.{image_id}"
