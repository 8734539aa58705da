"""The pipeline: the only file that knows the order of the steps.

    survey     headers of all files: size, depth, or why a file cannot be read
    features   batches of files of one network size -> patches, thumbnails
    compare    the bank is fitted, and every image compared with it
    finish     scores, maps, regions, flags; run.json says "complete"; report

The work of the middle steps goes to disk in batches whose content depends on the set alone, so
that a scan that was killed goes on where it stopped and ends with the same scores. Files of equal
content are one image: it is scored once and never compared with its copy.
"""

import dataclasses
import datetime
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import PIL
import torch

from . import __version__, costs, maps, roi, runfolder, storage
from .backbones import Backbone, load_backbone
from .comparing import Compared, Comparer, ImageSet, Loaded, load_batches
from .errors import InputError, RunError, SettingError, UnreadableImage
from .extraction import (
    Candidate,
    Extracted,
    Extractor,
    Regions,
    make_batches,
    survey_files,
    take_regions,
)
from .feedback import find_boundary, learn
from .framing import Framing
from .images import deep_range
from .inputs import find_images, stamp
from .labels import Labels, match_labels, read_labels
from .maps import Floats
from .methods import Method
from .patches import block_side
from .planning import check_sizes, plan
from .reflagging import flag_again, load_patches
from .report import write_report
from .results import Scored, find_results, flag
from .runinfo import ImageRecord, RunInfo, Skipped
from .runs import Run, hold_run
from .settings import resolve
from .thresholds import Flagging
from .tiling import find_lattice

Progress = Callable[[str, int, int], None]  # step, done, total


def scan(
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str] | None = None,
    *,
    overwrite: bool = False,
    max_memory: int | str | None = None,
    labels: str | os.PathLike[str] | Labels = MappingProxyType({}),
    expect: float | None = None,
    flag_top: int | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Run:
    """Score a set of images blindly and write a run.

    inputs: folders, files, globs or fsspec URLs. output: the run folder; None: a temporary one that
    goes with the Run. If it holds an unfinished scan of the same, that goes on; if the finished
    one, it is returned as it is; if anything else, RunError. With `overwrite` a finished scan, or
    one of something else, is replaced once the new one can start. max_memory: bytes, or text such
    as "8GB". labels: what a person said of some images, by path, or a CSV file (`read_labels`); a
    finished scan is then compared again, without its images. expect, flag_top: see
    `choose_threshold`; a finished scan is then flagged again. progress(step, done, total) is called
    as work gets done. settings: the fields of `Settings`.

    Raises InputError, SettingError, WeightsError or RunError.
    """
    items = [inputs] if isinstance(inputs, str | os.PathLike) else list(inputs)
    limit = costs.parse_bytes(max_memory) if isinstance(max_memory, str) else max_memory
    info = RunInfo(
        inputs=[os.fspath(item) for item in items],
        settings=dataclasses.asdict(resolve(**settings)),
        version=__version__,
        labels=dict(labels) if isinstance(labels, Mapping) else read_labels(labels),
        flagging=dataclasses.asdict(Flagging(expect, flag_top)),
    )
    step = progress or (lambda *_: None)
    if output is not None:
        folder = Path(output)
        runfolder.check_output(folder, overwrite)
        with storage.lock(folder):
            Scan(folder, info, limit, step).run(overwrite)
        return Run(folder)
    folder = Path(tempfile.mkdtemp(prefix="patchcluster-"))
    try:
        Scan(folder, info, limit, step).run()
        run = Run(folder)
    except BaseException:
        storage.remove(folder)
        raise
    weakref.finalize(run, storage.remove, folder)  # the folder lives as long as its run
    return run


def rescore(folder: Path, labels: Labels, progress: Progress | None = None) -> Run:
    """Score a finished run again with what a person said of some of its images.

    labels: by path, all that hold now. The images themselves are not needed; an interruption before
    the new scores are there leaves the old ones. Raises InputError, SettingError or RunError.
    """
    with hold_run(folder):
        run = Run(folder, half_changed=True)
        matched = match_labels(labels, run.paths)
        info = dataclasses.replace(
            run.info, labels={run.paths[i]: label for i, label in sorted(matched.items())}
        )
        Scan(folder, info, None, progress or (lambda *_: None)).compare_again(run)
    return Run(folder)


def refresh(folder: Path, how: Flagging) -> Run:
    """Flag a finished run again (see `reflag`); first finish a scoring that was interrupted.

    Raises RunError or SettingError.
    """
    with hold_run(folder):
        run = Run(folder, half_changed=True)
        if run.info.state == "rescoring":
            Scan(folder, run.info, None, lambda *_: None).compare_again(run)
        return flag_again(folder, how, lambda *_: None)


class Scan:
    """One scan of one set into one run folder."""

    def __init__(
        self, folder: Path, info: RunInfo, max_memory: int | None, progress: Progress
    ) -> None:
        self.folder = folder
        self.info = info
        self.max_memory = max_memory
        self.progress = progress
        self.settings = resolve(**info.settings)
        self.threads = torch.get_num_threads()
        self.regions = Regions()

    def run(self, overwrite: bool = False) -> None:
        files = find_images(self.info.inputs, runfolder.is_run)
        matched = match_labels(self.info.labels, files)
        self.info.labels = {files[i]: label for i, label in sorted(matched.items())}
        if self.settings.roi is not None:
            self.info.roi_sha256 = roi.hash_masks(self.settings.roi)
        stale = False
        try:
            earlier = runfolder.read_earlier(self.folder, self.info)
        except RunError:
            if not overwrite:
                raise
            earlier, stale = None, True
        if earlier is None or earlier.state == "running" or overwrite:
            self._scan(files, stale or (earlier is not None and earlier.state != "running"))
        else:
            self._check_unchanged(files)
            if earlier.labels != self.info.labels or earlier.state == "rescoring":
                self.compare_again(Run(self.folder, half_changed=True))
            elif earlier.flagging != self.info.flagging or earlier.state == "flagging":
                flag_again(self.folder, Flagging(**self.info.flagging), self._step("maps"))
        if not (self.folder / runfolder.REPORT_FILE).is_file():
            write_report(Run(self.folder), self._step("report"))
        storage.remove(self.folder / runfolder.WORK_FOLDER)

    def _scan(self, files: Sequence[str], replace: bool) -> None:
        """Do all the work; `replace`: clear what the folder holds, once nothing can be refused."""
        device = choose_device(self.settings.device)
        self.info.started = _now()
        self.info.device = str(device)
        with self._timed("network"):
            backbone = load_backbone(
                self.settings.backbone, self.settings.weights, device, self.settings.strides
            )
        with self._timed("survey"):
            candidates, skipped = survey_files(
                files,
                self.settings.size,
                self.threads,
                self._step("survey"),
                find_lattice(backbone.strides) if self.settings.tile else None,
            )
            if self.settings.roi is not None and candidates:
                self.regions = take_regions(candidates, self.settings.roi)
                candidates = self.regions.candidates
                skipped |= self.regions.skipped
        if not candidates:
            reasons = sorted({skip.reason for skip in skipped.values()})
            raise InputError(
                f"none of the {len(files)} files is an image that can be read "
                f"({'; '.join(reasons[:3])}): name a folder that holds images"
            )
        self._describe(backbone)
        check_sizes(candidates, self.settings.method)
        self._make_method().heed(list(self.info.labels.values()))
        self._check_memory(candidates, backbone)
        if replace:
            runfolder.clear(self.folder)
        runfolder.write_info(self.folder, self.info, [], [])  # from here on a kill leaves a run
        for name, file in self.regions.files.items():
            runfolder.write_region(self.folder, name, roi.read_region(file))

        extracted = self._extract(candidates, backbone)
        skipped |= extracted.skipped
        image_set = self._image_set(extracted)
        side = block_side(backbone.strides, self.settings.layout)
        load = functools.partial(load_batches, self.folder, image_set, side)
        compared = self._compare(image_set, load, device)
        self.info.near_duplicates = _name_near_duplicates(image_set, compared)
        self._finish(image_set, compared, [skipped[i] for i in sorted(skipped)])

    def compare_again(self, run: Run) -> None:
        """Score the images of a finished scan again, by the patches in its bank."""
        self.info = dataclasses.replace(
            run.info, labels=self.info.labels, flagging=self.info.flagging
        )
        for step in ("compare", "maps"):
            self.info.seconds.pop(step, None)
        storage.remove(self.folder / runfolder.WORK_FOLDER)
        image_set = ImageSet.of(run.images)
        load = functools.partial(load_patches, run, image_set)
        compared = self._compare(image_set, load, choose_device(self.settings.device))
        self.info.state = "rescoring"  # while the files of the run do not belong together
        runfolder.write_info(self.folder, self.info, run.images, run.skipped)
        self._finish(image_set, compared, run.skipped)
        storage.remove(self.folder / runfolder.WORK_FOLDER)
        write_report(Run(self.folder), self._step("report"))

    def _describe(self, backbone: Backbone) -> None:
        self.info.backbone = {
            "name": backbone.name,
            "weights": self.settings.weights or "pretrained",
            "sha256": backbone.weights_hash,
            "channels": backbone.channels,
            "strides": backbone.strides,
        }
        self.info.versions = {
            "patchcluster": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "timm": importlib.metadata.version("timm"),
            "numpy": np.__version__,
            "pillow": PIL.__version__,
        }
        self.info.map_rule = {
            "frame": self.settings.frame,
            "native_from": self.settings.native_from,
            "sigma": maps.SIGMA,
            "steps": "if native_from is a number, multiply frame by sqrt(width * height) / "
            "native_from where that is above 1; bilinear (half-pixel centres) from the grid to "
            "round(frame / a) x round(frame * a) rows x columns, a = sqrt(width / height); "
            "Gaussian of sigma pixels there, edges repeated; bilinear to height x width. With a "
            "region of interest each step averages what is inside it, and the rest is NaN",
        }

    def _check_memory(self, candidates: Sequence[Candidate], backbone: Backbone) -> None:
        work = plan(candidates, self.regions, self.settings, backbone, self.threads)
        predicted = costs.predict_memory(work, costs.resident_memory())
        self.info.memory["predicted"] = predicted
        if self.settings.tile:
            costs.check_memory(predicted, self.max_memory, "a scan without --tile")
        else:
            costs.check_memory(predicted, self.max_memory)

    def _extract(self, candidates: Sequence[Candidate], backbone: Backbone) -> Extracted:
        self.info.deep_range = deep_range(candidate.header for candidate in candidates)
        extractor = Extractor(
            backbone,
            self.settings.size,
            self.settings.layout,
            self.info.deep_range,
            self.folder,
            self.threads,
            self.settings.tile,
        )
        with self._timed("features"):
            return extractor.run(make_batches(candidates), self._step("features"))

    def _image_set(self, extracted: Extracted) -> ImageSet:
        image_set = ImageSet.of(extracted.images)
        if len(image_set.shas) < 2:
            raise InputError(
                f"{len(extracted.images)} of the files are images that can be read, and "
                f"{len(image_set.shas)} differ: a blind scan compares images with each other, give "
                "at least 2"
            )
        self.info.duplicates = [
            [record.path for record in copies]
            for copies in image_set.records.values()
            if len(copies) > 1
        ]
        return image_set

    def _compare(
        self,
        image_set: ImageSet,
        load: Callable[[int], Loaded],
        device: torch.device,
    ) -> list[Compared]:
        labels = image_set.labels(self.info.labels)
        identity = [self.info.settings, self.info.backbone["sha256"], image_set.shas, labels]
        digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
        comparer = Comparer(self.folder, image_set, load, device, digest, self.progress)
        compared = []
        for size in self.settings.size:
            with self._timed("compare"):
                method = self._make_method()
                method.heed(labels)
                compared.append(comparer.run(size, method, self.settings.image_score))
        return compared

    def _make_method(self) -> Method:
        backbone = self.info.backbone
        return self.settings.make_method(backbone["channels"], backbone["strides"])

    def _finish(
        self, image_set: ImageSet, compared: list[Compared], skipped: Sequence[Skipped]
    ) -> None:
        """Write everything that a finished run holds, run.json last."""
        finest = max(compared, key=lambda result: result.size)
        with self._timed("maps"):
            scored = self._score(image_set, compared)
            threshold, flagged = flag(
                np.array([one.score for one in scored]),
                image_set.labels(self.info.labels),
                Flagging(**self.info.flagging),
            )
            self.info.threshold = dataclasses.asdict(threshold)
            results = find_results(
                scored,
                flagged,
                threshold.value,
                self._framing(),
                finest.describe,
                self.threads,
                self._step("maps"),
            )
        ids = [copies[0].id for copies in image_set.records.values()]
        runfolder.write_scores(self.folder, results)
        runfolder.write_regions(self.folder, results)
        runfolder.write_neighbours(self.folder, results, finest.explanations, ids)
        runfolder.write_bank(
            self.folder, {result.size: result.method.state() for result in compared}
        )
        self.info.finished = _now()
        self.info.memory["peak"] = costs.peak_memory()
        self.info.state = "complete"
        runfolder.write_info(self.folder, self.info, [result.record for result in results], skipped)

    def _score(self, image_set: ImageSet, compared: list[Compared]) -> list[Scored]:
        """Map, score and nearest image of every content; writes the maps."""
        grids = [_fuse(compared, image) for image in range(len(image_set.shas))]
        copies = list(image_set.records.values())
        finest = max(compared, key=lambda result: result.size)
        firsts = [records[0] for records in copies]
        scores = self._image_scores(firsts, grids, compared)
        labels = image_set.labels(self.info.labels)
        self.info.boundary = find_boundary(np.array(scores))
        if any(labels):
            grids = learn(grids, scores, finest.describe, labels)
            scores = self._image_scores(firsts, grids, compared)
        scored = []
        for i, (records, grid, score) in enumerate(zip(copies, grids, scores, strict=True)):
            shown = finest.explanations[i].image[int(np.nanargmax(grid))].tolist()
            nearest = copies[shown[0]][0].path if shown else ""
            for record in records:
                runfolder.write_map(self.folder, record.id, grid)
            scored.append(Scored(records, grid, score, nearest))
        return scored

    def _image_scores(
        self, records: Sequence[ImageRecord], grids: Sequence[Floats], compared: list[Compared]
    ) -> list[float]:
        if compared[0].image_scores is not None:
            return compared[0].image_scores
        framing, rule = self._framing(), self.settings.image_score
        with ThreadPoolExecutor(self.threads, "maps") as pool:
            return list(pool.map(lambda r, g: framing.score(r, g, rule), records, grids))

    def _framing(self) -> Framing:
        return Framing(self.folder, self.settings.frame, self.settings.native_from)

    def _check_unchanged(self, files: Sequence[str]) -> None:
        run = Run(self.folder, half_changed=True)
        same = sorted(files) == sorted([*run.paths, *(skip.path for skip in run.skipped)])
        try:
            same = same and all(stamp(image.path)[0] == image.bytes for image in run.images)
        except UnreadableImage:
            same = False
        if not same:
            raise RunError(
                f"the images have changed since {str(self.folder)!r} was written: add --overwrite "
                "to scan again, or choose another -o"
            )

    def _step(self, name: str) -> Callable[[int, int], None]:
        return lambda done, total: self.progress(name, done, total)

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        spent = time.perf_counter() - start
        self.info.seconds[name] = round(self.info.seconds.get(name, 0.0) + spent, 3)


def _fuse(compared: Sequence[Compared], image: int) -> Floats:
    """Mean of an image's grids [h, w], rounded as it is stored, so that all figures agree."""
    return maps.round_as_stored(maps.fuse([result.grids[image] for result in compared]))


def _name_near_duplicates(image_set: ImageSet, compared: Sequence[Compared]) -> list[list[str]]:
    """Paths of near-duplicates, by the finest network size; of copies the first, in input order."""
    firsts = [copies[0] for copies in image_set.records.values()]
    finest = max(compared, key=lambda result: result.size)
    groups = [[firsts[image] for image in group] for group in finest.near_duplicates]
    ordered = sorted(sorted((image.id, image.path) for image in group) for group in groups)
    return [[path for _, path in group] for group in ordered]


def choose_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda`, `cuda:1`, `mps` -> device. Raises SettingError if it is not there."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # as torch refuses one
        reason = str(error).splitlines()[0][:120]
        raise SettingError(
            f"device {name!r} cannot be used ({reason}): choose cpu or auto"
        ) from error
    return device


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
