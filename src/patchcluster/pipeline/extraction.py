"""Images -> patches: in memory, and of files to disk in batches that a later start can take up.

A batch is a list of files of one network size; which files it holds depends on the list of files
alone. On the CPU each thread takes an image from its file to its patches, with a network of one
thread: no thread waits for another. For a GPU the threads only decode, and prefetch.
"""

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Self

import torch
from torch import Tensor

from ..errors import InputError, UnreadableImage
from ..images.decode import LoadedImage, Pixels, load_image
from ..images.inputs import is_url, locate
from ..images.window import Windows
from ..network.backbones import Backbone
from ..network.devices import in_halves
from ..network.patches import patch_grid
from ..network.tiling import tiled_features
from ..runs import runfolder, storage
from ..runs.info import ImageRecord, Skipped
from ..settings import Settings
from .job import Job
from .survey import Candidate
from .workers import Batch, Note, Workers, run_stage

BATCH_PIXELS = 8 * 448 * 448  # of network input, all sizes together
_PREFETCHED = 4  # images a thread that may be waiting to be written, so that threads never wait


def extract(
    pixels: Sequence[Pixels], network: Backbone, settings: Settings, size: int
) -> list[Tensor]:
    """Turn images of one shape, at one network size, into patches float16 [h, w, c] of each.

    They lie where the network is.
    """
    tiled = settings.tile
    stages = tiled_features(network, pixels, size) if tiled else network.features(pixels)
    return list(patch_grid(stages, settings.layout).half())


@dataclass(frozen=True)
class Made:
    """An image, and its patches float16 [h, w, c] for each network size, once they are made."""

    image: LoadedImage
    grids: list[Tensor] | None


@dataclass(frozen=True)
class Features:
    """Files -> patches, a task (see `workers.Task`).

    On the CPU `prepare` does all of it, elsewhere it decodes and `finish` has the network.
    """

    backbone: Backbone
    settings: Settings
    windows: Windows
    prefetch: ClassVar[int] = _PREFETCHED

    def prepare(self, item: Candidate) -> Made | str:
        """An image, on the CPU with its patches, or the reason why it cannot be read."""
        try:
            image = load_image(item.path, item.header, item.inputs, self.windows)
        except UnreadableImage as error:
            return str(error)
        if not self._threads_have_networks:
            return Made(image, None)
        return _without_pixels(image, self.make_grids(image))

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
        made = map(_without_pixels, images, map(list, zip(*grids, strict=True)))
        return [one if isinstance(one, str) else next(made) for one in ready]

    def on(self, device: torch.device) -> Self:
        backbone = copy.deepcopy(self.backbone).to(device)
        return dataclasses.replace(self, backbone=backbone)

    def make_grids(self, image: LoadedImage) -> list[Tensor]:
        """Patches float16 [h, w, c] of one image for each network size, on the CPU."""
        sizes = self.settings.size
        return [self.patches([p], s)[0] for p, s in zip(image.pixels, sizes, strict=True)]

    def patches(self, pixels: Sequence[Pixels], size: int) -> list[Tensor]:
        """Images of one shape, at one network size -> patches float16 [h, w, c], on the CPU."""
        return [grid.cpu() for grid in extract(pixels, self.backbone, self.settings, size)]

    @property
    def _threads_have_networks(self) -> bool:
        """Whether each thread takes images to their patches; else they decode for one network."""
        return self.backbone.device.type == "cpu"


def _without_pixels(image: LoadedImage, grids: list[Tensor]) -> Made:
    return Made(dataclasses.replace(image, pixels=[]), grids)


def make_batches(candidates: Sequence[Candidate]) -> list[list[Candidate]]:
    """Group files by network size, then cut the groups to batches of about equal cost."""
    groups: dict[tuple[tuple[int, int], ...], list[Candidate]] = {}
    for candidate in candidates:
        groups.setdefault(candidate.inputs, []).append(candidate)
    batches = []
    for inputs, group in groups.items():
        most = max(1, BATCH_PIXELS // sum(height * width for height, width in inputs))
        batches += [group[i : i + most] for i in range(0, len(group), most)]
    return batches


def extract_all(
    job: Job, backbone: Backbone, candidates: Sequence[Candidate], workers: Workers
) -> tuple[list[ImageRecord], dict[int, Skipped]]:
    """Make the patches of all files that the work folder does not hold yet, batch by batch.

    Returns records of the images, and the files that were skipped, by id.
    """
    features = Features(backbone, job.settings, job.info.windows)
    batches = make_batches(candidates)
    runfolder.remove_batches_from(job.folder, len(batches))  # of an earlier, longer list
    with job.timed("features"):
        notes = run_stage(
            [_make_batch(job, features, n, batch) for n, batch in enumerate(batches)],
            features,
            workers,
            lambda n, made: _keep(job, features, workers, batches[n], made),
            job.step("features"),
        )
    images = [ImageRecord(**image) for note in notes for image in note["images"]]
    skipped = {
        skip["id"]: Skipped(skip["path"], skip["reason"])
        for note in notes
        for skip in note["skipped"]
    }
    return sorted(images, key=lambda image: image.id), skipped


def _make_batch(
    job: Job, features: Features, number: int, batch: Sequence[Candidate]
) -> Batch[Candidate]:
    key = {
        "weights": features.backbone.weights_hash,
        "sizes": list(features.settings.size),
        "tile": features.settings.tile,
        "layout": features.settings.layout,
        "stages": list(features.backbone.indices),
        "windows": features.windows,
        "files": [[c.id, c.path, *c.stamp, c.roi] for c in batch],
    }
    return Batch(
        runfolder.batch_path(job.folder, number),
        key,
        len(batch),
        lambda: [dataclasses.replace(one, path=locate(one.path)) for one in batch],
    )


def _keep(
    job: Job,
    features: Features,
    workers: Workers,
    batch: Sequence[Candidate],
    made: Sequence[Made | str],
) -> tuple[dict[str, Tensor], Note]:
    """Name the patches of a batch, and what became of its files.

    Writes the thumbnails: the batch's file, which comes after, says that all is there.
    """
    if workers.remote:
        _check_same_files(features, batch, made)
    tensors: dict[str, Tensor] = {}
    images, skipped = [], []
    for candidate, one in zip(batch, made, strict=True):
        if isinstance(one, str):
            skipped.append({"id": candidate.id, "path": candidate.path, "reason": one})
            continue
        for size, grid in zip(features.settings.size, one.grids or [], strict=True):
            tensors[patches_name(size, candidate.id)] = grid
        thumbnail = runfolder.thumbnail_path(job.folder, candidate.id)
        storage.write_bytes(thumbnail, one.image.thumbnail, durable=False)
        record = ImageRecord(
            candidate.id,
            candidate.path,
            one.image.sha256,
            one.image.file_size,
            candidate.header.width,
            candidate.header.height,
            candidate.roi,
            candidate.stamp[1] if is_url(candidate.path) else 0,
            one.image.look,
        )
        images.append(dataclasses.asdict(record))
    return tensors, {"images": images, "skipped": skipped}


def _check_same_files(
    features: Features, batch: Sequence[Candidate], made: Sequence[Made | str]
) -> None:
    """Raise InputError if workers on other machines saw other files than the survey did."""
    for candidate, one in zip(batch, made, strict=True):
        if isinstance(one, Made) and candidate.stamp[0] in (0, one.image.file_size):
            continue
        here = features.prepare(candidate)
        if isinstance(here, str):  # nobody can read it
            continue
        if isinstance(one, str) or one.image.sha256 != here.image.sha256:
            why = one if isinstance(one, str) else "another file is there"
            raise InputError(
                f"a worker of the cluster cannot read {candidate.path!r} ({why}), which is "
                "here: put the images on storage that all nodes share, under one path, or "
                "name them by URL"
            )


def patches_name(size: int, image_id: int) -> str:
    """Name of an image's patches float16 [h, w, c] in the file of its batch."""
    return f"{size}.{image_id}"
