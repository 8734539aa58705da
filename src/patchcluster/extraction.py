"""Files -> patches on disk, in batches that a later start can take up again.

A batch is a list of files of one network size; which files it holds depends on the list of files
alone. On the CPU each thread takes an image from its file to its patches, with a network of one
thread: no thread waits for another. For a GPU the threads only decode, ahead of the network.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import roi, runfolder, storage
from .backbones import Backbone
from .errors import UnreadableImage
from .halving import in_halves
from .images import STRIDE, Header, LoadedImage, Pixels, load_image, network_size, survey
from .inputs import stamp
from .maps import cover
from .patches import Layout, patch_grid
from .runinfo import ImageRecord, Skipped
from .tiling import native_size, tiled_features

BATCH_PIXELS = 8 * 448 * 448  # of network input, all sizes together
_TRIED = 2  # images a thread, by which the time of all is foreseen
_AHEAD = 4  # images a thread that may be waiting to be written, so that threads never wait

Done = Callable[[int, int], None]  # done, total


@dataclass(frozen=True)
class Candidate:
    """A file that the survey could read. `id` is its place among all files found."""

    id: int
    path: str
    header: Header
    stamp: list[int]
    inputs: tuple[tuple[int, int], ...]  # network input (height, width), one a network size
    roi: str = ""  # name of its mask of what is scored


@dataclass(frozen=True)
class Regions:
    """What the masks of a scan say of its candidates."""

    candidates: list[Candidate] = field(default_factory=list)  # with the names of their masks
    skipped: dict[int, Skipped] = field(default_factory=dict)  # by id: nothing of them is inside
    files: dict[str, Path] = field(default_factory=dict)  # name of a mask -> its file
    # Pixels of the network's input that are scored, by id, one a network size.
    areas: dict[int, list[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Extracted:
    """What became of all candidates: records of the images, and the files that were skipped."""

    images: list[ImageRecord]
    skipped: dict[int, Skipped]  # by id


@dataclass(frozen=True)
class _Loaded:
    """An image, and, if the thread that loaded it made them, its patches for each network size."""

    image: LoadedImage
    grids: list[Tensor] | None


@dataclass(frozen=True)
class Trial:
    """How long images took in one thread; grids: the patches [h, w, c] of each at one size."""

    load: float  # seconds a pixel of the file
    network: float  # seconds a pixel of the network's input
    grids: list[Tensor]


@dataclass(frozen=True)
class Extractor:
    """Turns batches of files into patches."""

    backbone: Backbone
    sizes: Sequence[int]
    layout: Layout
    ranges: dict[str, list[float]]
    folder: Path
    threads: int
    tile: bool = False  # images larger than the network's size are cut into tiles of about that

    def run(self, batches: Sequence[Sequence[Candidate]], done: Done) -> Extracted:
        """Make the patches of all batches that the run folder does not hold yet."""
        runfolder.remove_batches_from(self.folder, len(batches))  # of an earlier, longer list
        notes = [self._note_on_disk(i, batch) for i, batch in enumerate(batches)]
        total = sum(len(batch) for batch in batches)
        finished = sum(len(batches[i]) for i, note in enumerate(notes) if note is not None)
        done(finished, total)
        pending = [(i, batches[i]) for i, note in enumerate(notes) if note is None]
        for i, batch, loaded in self._load_ahead(pending):
            notes[i] = self._extract(i, batch, loaded)
            finished += len(batch)
            done(finished, total)
        images = [ImageRecord(**image) for note in notes if note for image in note["images"]]
        skipped = {
            skip["id"]: Skipped(skip["path"], skip["reason"])
            for note in notes
            if note
            for skip in note["skipped"]
        }
        return Extracted(sorted(images, key=lambda image: image.id), skipped)

    def try_out(self, candidates: Sequence[Candidate]) -> Trial | None:
        """Take a few images to their patches, to see how long that takes.

        None if none of them can be read.
        """
        spread = candidates[:: max(1, len(candidates) // (_TRIED * self.threads))]
        usual = torch.get_num_threads()
        with ThreadPoolExecutor(self.threads, "try", lambda: torch.set_num_threads(1)) as pool:
            list(pool.map(self._try, spread[: self.threads]))  # what is first takes longer
            tried = pool.map(self._try, spread[: _TRIED * self.threads])
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
        grids = [self._patches([p], s)[0] for p, s in zip(image.pixels, self.sizes, strict=True)]
        size = candidate.header.width * candidate.header.height
        seen = sum(height * width for height, width in candidate.inputs)
        return Trial((loaded - start) / size, (time.perf_counter() - loaded) / seen, grids[-1:])

    def _identity(self, batch: Sequence[Candidate]) -> dict[str, Any]:
        """What a batch on disk must agree in to be taken as it is."""
        return {
            "weights": self.backbone.weights_hash,
            "sizes": list(self.sizes),
            "tile": self.tile,
            "layout": self.layout,
            "stages": list(self.backbone.indices),
            "ranges": self.ranges,
            "files": [[c.id, c.path, *c.stamp, c.roi] for c in batch],
        }

    def _note_on_disk(self, number: int, batch: Sequence[Candidate]) -> dict[str, Any] | None:
        note = storage.read_note(runfolder.batch_path(self.folder, number))
        if isinstance(note, dict) and note.get("identity") == self._identity(batch):
            return note
        return None

    def _load_ahead(
        self, pending: Sequence[tuple[int, Sequence[Candidate]]]
    ) -> Iterator[tuple[int, Sequence[Candidate], list[_Loaded | str]]]:
        """Yield each batch with its images, or reasons, while the threads work on the next ones."""
        threads = torch.get_num_threads()
        with ThreadPoolExecutor(self.threads, "load", lambda: torch.set_num_threads(1)) as pool:
            ahead: list[tuple[int, Sequence[Candidate], list[Future[_Loaded | str]]]] = []
            try:
                for number, batch in pending:
                    futures = [pool.submit(self._load, candidate) for candidate in batch]
                    ahead.append((number, batch, futures))
                    while sum(len(b) for _, b, _ in ahead[1:]) >= _AHEAD * self.threads:
                        number, batch, futures = ahead.pop(0)
                        yield number, batch, [future.result() for future in futures]
                while ahead:
                    number, batch, futures = ahead.pop(0)
                    yield number, batch, [future.result() for future in futures]
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
                torch.set_num_threads(threads)  # new threads would otherwise take the pool's

    @property
    def _threads_have_networks(self) -> bool:
        """Whether each thread takes images to their patches; else they decode for one network."""
        return self.backbone.mean.device.type == "cpu"

    def _load(self, candidate: Candidate) -> _Loaded | str:
        try:
            image = load_image(candidate.path, candidate.header, candidate.inputs, self.ranges)
        except UnreadableImage as error:
            return str(error)
        if not self._threads_have_networks:
            return _Loaded(image, None)
        grids = [self._patches([p], s)[0] for p, s in zip(image.pixels, self.sizes, strict=True)]
        return _Loaded(dataclasses.replace(image, pixels=[]), grids)

    def _patches(self, pixels: Sequence[Pixels], size: int) -> list[Tensor]:
        """Images of one shape, at one network size -> patches float16 [h, w, c], on the CPU."""
        if self.tile:
            stages = tiled_features(self.backbone, pixels, size)
        else:
            stages = self.backbone.features(pixels)
        return list(patch_grid(stages, self.layout).half().cpu())

    def _extract(
        self, number: int, batch: Sequence[Candidate], loaded: Sequence[_Loaded | str]
    ) -> dict[str, Any]:
        """Write one batch: thumbnails first, since the batch's file says that all is there."""
        both = list(zip(batch, loaded, strict=True))
        good = [(c, one.image) for c, one in both if not isinstance(one, str)]
        grids = [one.grids for one in loaded if not isinstance(one, str)]
        tensors: dict[str, Tensor] = {}
        for which, size in enumerate(self.sizes):
            made = [of_image[which] for of_image in grids if of_image is not None]
            if good and not made:
                pixels = [image.pixels[which] for _, image in good]
                parts = in_halves(partial(self._patches, size=size), pixels, "network")
                made = [grid for part in parts for grid in part]
            for (candidate, _), grid in zip(good, made, strict=True):
                tensors[patches_name(size, candidate.id)] = grid
        for candidate, image in good:
            path = runfolder.thumbnail_path(self.folder, candidate.id)
            storage.write_bytes(path, image.thumbnail, durable=False)
        note = {
            "identity": self._identity(batch),
            "images": [
                {
                    "id": c.id, "path": c.path, "sha256": image.sha256, "bytes": image.file_size,
                    "width": c.header.width, "height": c.header.height, "roi": c.roi,
                }
                for c, image in good
            ],
            "skipped": [
                {"id": c.id, "path": c.path, "reason": why}
                for c, why in both
                if isinstance(why, str)
            ],
        }  # fmt: skip
        storage.write_tensors(runfolder.batch_path(self.folder, number), tensors, note)
        return note


def patches_name(size: int, image_id: int) -> str:
    """Name of an image's patches float16 [h, w, c] in the file of its batch."""
    return f"{size}.{image_id}"


def survey_files(
    paths: Sequence[str],
    sizes: Sequence[int],
    threads: int,
    done: Done,
    lattice: int | None = None,
) -> tuple[list[Candidate], dict[int, Skipped]]:
    """Read the headers of all files; those that cannot be read are skipped with the reason.

    lattice: of the tiles, in a scan that cuts large images into tiles.
    """
    candidates: list[Candidate] = []
    skipped: dict[int, Skipped] = {}
    with ThreadPoolExecutor(threads, "survey") as pool:
        for i, (path, found) in enumerate(zip(paths, pool.map(_survey, paths), strict=True)):
            if isinstance(found, str):
                skipped[i] = Skipped(path, found)
            else:
                header, mark = found
                inputs = tuple(_input_size(header, size, lattice) for size in sizes)
                candidates.append(Candidate(i, path, header, mark, inputs))
            done(i + 1, len(paths))
    return candidates, skipped


def _input_size(header: Header, size: int, lattice: int | None) -> tuple[int, int]:
    if lattice is None:
        return network_size(header.width, header.height, size)
    return native_size(header.width, header.height, size, lattice)


def _survey(path: str) -> tuple[Header, list[int]] | str:
    try:
        return survey(path), stamp(path)
    except UnreadableImage as error:
        return str(error)


def at_sizes(
    candidates: Sequence[Candidate],
    regions: Regions,
    sizes: Sequence[int],
    lattice: int | None = None,
) -> tuple[list[Candidate], Regions]:
    """The same files at other network sizes; what masks leave of them keeps its share."""
    resized, areas = [], {}
    for candidate in candidates:
        inputs = tuple(_input_size(candidate.header, size, lattice) for size in sizes)
        if candidate.roi:
            height, width = candidate.inputs[0]
            share = regions.areas[candidate.id][0] / (height * width)
            areas[candidate.id] = [round(share * high * wide) for high, wide in inputs]
        resized.append(dataclasses.replace(candidate, inputs=inputs))
    return resized, dataclasses.replace(regions, candidates=resized, areas=areas)


def take_regions(candidates: Sequence[Candidate], masks: str) -> Regions:
    """Give every image its mask: of a file for all, or of a folder.

    Raises InputError if an image has none, or a mask cannot be read.
    """
    regions, last = Regions(), None
    files = roi.find_masks([candidate.path for candidate in candidates], masks)
    for candidate, file in zip(candidates, files, strict=True):
        if file != last:  # a mask for all is read once; those of a set may not fit in memory
            mask, last = roi.read_region(file), file
            name = roi.name_region(mask)
        shown = roi.at_size(mask, candidate.header.width, candidate.header.height)
        if not shown.any():
            reason = "nothing of it is inside its mask"
            regions.skipped[candidate.id] = Skipped(candidate.path, reason)
            continue
        regions.files[name] = file
        regions.areas[candidate.id] = [
            int(cover(shown, (height // STRIDE, width // STRIDE)).sum()) * STRIDE**2
            for height, width in candidate.inputs
        ]
        regions.candidates.append(dataclasses.replace(candidate, roi=name))
    return regions


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
