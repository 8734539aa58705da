"""The pipeline: the only file that knows the order of the steps.

    survey     headers of all files: size, depth, or why a file cannot be read
    measure    a few images and a small search: how long the rest will take
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
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import numpy as np
import PIL
import torch

from .. import __version__
from ..errors import (
    InputError,
    RunError,
    UnreadableImage,
)
from ..images import roi
from ..images.decode import deep_range
from ..images.inputs import (
    find_images,
    local_path,
    stamp,
)
from ..images.masks import read_mask_file
from ..methods import Method
from ..network.backbones import Backbone, load_backbone
from ..network.devices import choose_devices
from ..network.patches import block_side
from ..report import write_report
from ..runs import runfolder, storage
from ..runs.info import (
    ImageRecord,
    RunInfo,
    Skipped,
)
from ..runs.run import (
    Run,
    check_run,
    hold_run,
)
from ..scores import maps
from ..scores.labels import (
    Labels,
    match_labels,
    read_labels,
)
from ..scores.thresholds import Flagging
from ..settings import resolve
from . import costs, times
from .comparing import Compared, Comparer, ImageSet, Loaded, load_batches
from .extraction import (
    Candidate,
    Extracted,
    Extractor,
    Features,
    Regions,
    make_batches,
    survey_files,
    take_regions,
)
from .finishing import Finisher, name_near_duplicates
from .planning import Planner, check_sizes
from .reflagging import flag_again, load_patches
from .saved_inputs import save_inputs
from .sources import Source, open_inputs
from .workers import Devices, Here, Workers

Progress = Callable[[str, int, int], None]  # step, done, total

_FORMAT = 4  # of the files of comparisons


def scan(
    inputs: Any,
    output: str | os.PathLike[str] | None = None,
    *,
    overwrite: bool = False,
    max_memory: int | str | None = None,
    since: float | None = None,
    labels: str | os.PathLike[str] | Labels = MappingProxyType({}),
    expect: float | None = None,
    flag_top: int | None = None,
    ray: str | None = None,
    cache: bool = True,
    progress: Progress | None = None,
    tell: Callable[[str], None] = lambda _: None,
    **settings: Any,
) -> Run:
    """Score a set of images blindly and write a run.

    inputs: folders, files, globs or fsspec URLs; what `read_dataset` returned; or images given as
    objects, by a Hugging Face data set, a torch Dataset or any iterable (see sources.py), which are
    saved to the folder `inputs` of the run. output: the run folder; None: a temporary one that goes
    with the Run. If it holds an unfinished scan of the same, that goes on; if the finished one, it
    is returned as it is; if anything else, RunError. With `overwrite` a finished scan, or one of
    something else, is replaced once the new one can start.
    max_memory: bytes, or text such as "8GB". since: when the work began, of `time.monotonic`; None:
    now. labels: what a person said of some images, by path, or a CSV file (`read_labels`); a
    finished scan is then compared again, without its images. expect, flag_top: see
    `choose_threshold`; a finished scan is then flagged again. ray: the address of a Ray cluster
    whose workers make the features and compare (`cluster.RayWorkers`); no score depends on it, and
    a scan may go on with or without. cache: whether a run whose bank has only some of the images
    keeps the patches of all, by which it can be scored again and updated. progress(step, done,
    total) is called as work gets done, tell(line) with what is predicted. settings: the fields of
    `Settings`.

    Raises InputError, SettingError, WeightsError, ClusterError or RunError.
    """
    limits = Limits.of(max_memory, since)
    folder = None if output is None else local_path(output)
    given = open_inputs(inputs)
    info = _asked(given if isinstance(given, list) else [], settings)
    info.labels = dict(labels) if isinstance(labels, Mapping) else read_labels(labels)
    info.flagging = dataclasses.asdict(Flagging(expect, flag_top))
    step = progress or (lambda *_: None)

    def run_in(folder: Path) -> None:
        scan = Scan(folder, info, limits, step, tell, ray, cache)
        if isinstance(given, Source):
            count = functools.partial(step, "inputs")
            save_inputs(given, folder, info, overwrite, scan.check, count)
        scan.run(overwrite)

    if folder is not None:
        runfolder.check_output(folder, overwrite)
        with storage.lock(folder):
            run_in(folder)
        return Run(folder)
    folder = Path(tempfile.mkdtemp(prefix="patchcluster-"))
    try:
        run_in(folder)
        run = Run(folder)
    except BaseException:
        storage.remove(folder)
        raise
    weakref.finalize(run, storage.remove, folder)  # the folder lives as long as its run
    return run


@dataclass(frozen=True)
class Forecast:
    """What a scan would do and need. seconds: of each step; without `compare` if not known."""

    images: int
    skipped: int
    patches: int
    bank: int  # images that each is compared with
    seconds: dict[str, float]
    memory: int  # bytes
    settings: dict[str, Any]

    def describe(self) -> str:
        """The forecast in one line."""
        total = times.format_seconds(sum(self.seconds.values()))
        steps = ", ".join(f"{name} {spent:.1f}" for name, spent in self.seconds.items())
        if not self.seconds:
            needed = "time not known"
        elif "compare" not in self.seconds:
            needed = f"about {total} ({steps}) and the comparison, whose time is not known"
        else:
            needed = f"about {total} ({steps})"
        memory = costs.format_bytes(self.memory)
        what = f"{self.images} images, {self.patches} patches"
        if self.bank < self.images:
            what += f", each compared with {self.bank} images"
        return f"{what}: {needed}; about {memory} of memory"


def predict(
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    max_memory: int | str | None = None,
    since: float | None = None,
    ray: str | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Forecast:
    """Say what a scan would do and need on this machine, from headers and a few images.

    Parameters and errors as in `scan`; nothing is written, and no cluster asked: with `ray` the
    time is not known.
    """
    limits = Limits.of(max_memory, since)
    given = [inputs] if isinstance(inputs, str | os.PathLike) else inputs
    info = _asked([os.fspath(item) for item in given], settings)
    return Scan(Path(), info, limits, progress or (lambda *_: None), ray=ray).predict()


def _asked(inputs: list[str], settings: Mapping[str, Any]) -> RunInfo:
    known = resolve(**settings)
    return RunInfo(
        inputs=inputs,
        settings=dataclasses.asdict(known),
        version=__version__,
        roi_sha256="" if known.roi is None else roi.hash_masks(known.roi),
    )


@dataclass(frozen=True)
class Limits:
    """What a scan must keep within (memory, in bytes), and when it began."""

    memory: int | None = None
    since: float = 0.0

    @classmethod
    def of(cls, max_memory: int | str | None, since: float | None) -> Self:
        memory = costs.parse_bytes(max_memory) if isinstance(max_memory, str) else max_memory
        return cls(memory, time.monotonic() if since is None else since)


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
        Scan(folder, info, Limits(), progress or (lambda *_: None)).compare_again(run)
    return Run(folder)


def refresh(folder: Path, how: Flagging, progress: Progress = lambda *_: None) -> Run:
    """Flag a finished run again (see `reflag`); first finish a scoring that was interrupted.

    Raises RunError or SettingError.
    """
    with hold_run(folder):
        return _refresh(folder, how, progress)


def _refresh(folder: Path, how: Flagging, progress: Progress) -> Run:
    run = Run(folder, half_changed=True)
    if run.info.state == "rescoring":
        Scan(folder, run.info, Limits(), progress).compare_again(run)
    storage.remove(folder / runfolder.WORK_FOLDER)
    return flag_again(folder, how, lambda done, total: progress("maps", done, total))


def finish_held(folder: Path, progress: Progress) -> None:
    """Finish a change of a run that was interrupted, for who holds its lock."""
    info, _, _ = runfolder.read_info(folder)
    _refresh(folder, Flagging(**info.flagging), progress)


def finish(folder: Path, progress: Progress = lambda *_: None) -> None:
    """Finish what was interrupted while a finished run was flagged or scored again.

    Raises RunError if it is no finished run, or in use.
    """
    check_run(folder)
    info, _, _ = runfolder.read_info(folder)
    if info.state != "complete":
        refresh(folder, Flagging(**info.flagging), progress)


class Scan:
    """One scan of one set into one run folder."""

    backbone: Backbone  # once it is loaded

    def __init__(
        self,
        folder: Path,
        info: RunInfo,
        limits: Limits,
        progress: Progress,
        tell: Callable[[str], None] = lambda _: None,
        ray: str | None = None,
        cache: bool = True,
    ) -> None:
        self.folder = folder
        self.info = info
        self.limits = limits
        self.progress = progress
        self.tell = tell
        self.ray = ray
        self.cache = cache
        self.hired = ExitStack()  # workers that are not of this process
        self.settings = resolve(**info.settings)
        self.threads = torch.get_num_threads()
        self.regions = Regions()

    def run(self, overwrite: bool = False) -> None:
        files = find_images(self.info.inputs, runfolder.is_run, runfolder.find_runs)
        matched = match_labels(self.info.labels, files)
        self.info.labels = {files[i]: label for i, label in sorted(matched.items())}
        stale = False
        try:
            earlier = runfolder.read_earlier(self.folder, self.info)
        except RunError:
            if not overwrite:
                raise
            earlier, stale = None, True
        with self.hired:
            if earlier is None or earlier.state == "running" or overwrite:
                replace = stale or (earlier is not None and earlier.state != "running")
                self._scan(files, replace)
            else:
                self._check_unchanged(files)
                if earlier.labels != self.info.labels or earlier.state == "rescoring":
                    self.compare_again(Run(self.folder, half_changed=True))
                elif earlier.flagging != self.info.flagging or earlier.state == "flagging":
                    flag_again(self.folder, Flagging(**self.info.flagging), self._step("maps"))
        if not (self.folder / runfolder.REPORT_FILE).is_file():
            write_report(Run(self.folder), self._step("report"))
        storage.remove(self.folder / runfolder.WORK_FOLDER)

    def check(self, inputs: list[str]) -> None:
        """Raise what would keep a scan of these from starting; nothing is written."""
        info = dataclasses.replace(self.info, inputs=inputs, seconds={})
        trial = Scan(self.folder, info, self.limits, self.progress)
        planner, _ = trial._survey(find_images(inputs))
        planner.check(self.limits.memory)

    def predict(self) -> Forecast:
        """What the scan would do and need; nothing is written."""
        planner, skipped = self._survey(
            find_images(self.info.inputs, runfolder.is_run, runfolder.find_runs)
        )
        return self._plan(planner, len(skipped))

    def _scan(self, files: Sequence[str], replace: bool) -> None:
        """Do all the work; replace: clear what the folder holds, once nothing can be refused."""
        self._hire()
        planner, skipped = self._survey(files)
        self._plan(planner, len(skipped))
        runfolder.begin(self.folder, self.info, replace)
        for name, file in self.regions.files.items():
            runfolder.write_region(self.folder, name, read_mask_file(file))

        extracted = self._extract_batches(make_batches(planner.candidates))
        skipped |= extracted.skipped
        image_set = self._image_set(extracted.images)
        side = block_side(planner.backbone.strides, self.settings.layout)
        load = functools.partial(load_batches, self.folder, image_set, side)
        compared = self._compare(image_set, load, planner.device)
        self.info.near_duplicates = name_near_duplicates(image_set, compared)
        records = self._write_results(image_set, compared)
        self._settle(compared)
        runfolder.remove_others(self.folder, records)
        self.info.state = "complete"
        runfolder.write_info(self.folder, self.info, records, [skipped[i] for i in sorted(skipped)])

    def _survey(self, files: Sequence[str]) -> tuple[Planner, dict[int, Skipped]]:
        """Load the network and read all headers; what can be refused without a plan is refused."""
        self._begin()
        self.backbone = backbone = self._load_network()
        with self._timed("survey"):
            candidates, skipped = survey_files(
                files, self.settings, backbone.strides, self.threads, self._step("survey")
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
        labels = (self.info.labels.get(candidate.path) for candidate in candidates)
        self._make_method().check_labels(labels)
        self.info.deep_range = deep_range(candidate.header for candidate in candidates)
        memory = costs.resident_memory()
        planner = Planner(candidates, self.regions, self.settings, backbone, self.threads, memory)
        return planner, skipped

    def _load_network(self) -> Backbone:
        settings = self.settings
        with self._timed("network"):
            return load_backbone(
                settings.backbone, settings.weights, self.devices[0], settings.strides
            )

    def _plan(self, planner: Planner, skipped: int) -> Forecast:
        """Check the memory, measure the machine, and say what the scan will take."""
        self.info.memory["predicted"] = planner.check(self.limits.memory)
        rates = self._measure(planner)
        if rates is not None:
            seconds = {"start": time.monotonic() - self.limits.since}
            seconds |= times.predict_seconds(planner.count_work(), rates)
            self.info.predicted_seconds = {name: round(s, 3) for name, s in seconds.items()}
        forecast = self._forecast(planner, skipped)
        self.tell(forecast.describe())
        return forecast

    def _measure(self, planner: Planner) -> times.Rates | None:
        """Measure this machine; None if no image that was tried can be read, or if it is not this
        machine that will do the work.
        """
        if self.ray is not None:
            return None
        with self._timed("measure"):
            return times.measure_repeatedly(
                lambda: self._measure_once(planner),
                lambda rates: sum(times.predict_seconds(planner.count_work(), rates).values()),
            )

    def _measure_once(self, planner: Planner) -> times.Rates | None:
        """The same by one measurement, of about half a second."""
        trial = self._features().try_out(planner.candidates, self.threads)
        if trial is None:
            return None
        build, scan, rank = times.measure_search(planner.device)
        smooth, regions = times.measure_maps(self.settings.frame)
        share = len(self.devices)
        return times.Rates(
            trial.load, trial.network / share, build, scan / share, rank / share, smooth, regions
        )

    def _forecast(self, planner: Planner, skipped: int) -> Forecast:
        work = planner.plan(self.settings)
        return Forecast(
            work.images,
            skipped,
            sum(work.patches),
            work.bank,
            self.info.predicted_seconds,
            self.info.memory["predicted"],
            self.info.settings,
        )

    def compare_again(self, run: Run) -> None:
        """Score the images of a finished scan again, by the patches in its bank."""
        self.info = dataclasses.replace(
            run.info, labels=self.info.labels, flagging=self.info.flagging
        )
        for step in ("compare", "maps"):
            self.info.seconds.pop(step, None)
        if self.info.state != "rescoring":  # or some of the patches may be there
            storage.remove(self.folder / runfolder.WORK_FOLDER)
        self._hire()
        image_set = ImageSet.of(run.images)
        load = functools.partial(load_patches, run, image_set)
        compared = self._compare(image_set, load, self.devices[0])
        self.replace_results(image_set, compared, run.images, run.skipped)

    def replace_results(
        self,
        image_set: ImageSet,
        compared: list[Compared],
        images: Sequence[ImageRecord],
        skipped: Sequence[Skipped],
    ) -> None:
        """Make a finished run one of these images, in input order; a kill leaves what `finish` can
        finish."""
        self.info.state = "rescoring"  # while the files of the run do not belong together
        runfolder.write_info(self.folder, self.info, images, skipped)
        records = self._write_results(image_set, compared)
        self._settle(compared)
        runfolder.remove_others(self.folder, records)
        runfolder.drop_patches(self.folder, {record.id for record in records})
        self.info.state = "flagging"  # while the report is another's
        runfolder.write_info(self.folder, self.info, records, skipped)
        write_report(Run(self.folder, half_changed=True), self._step("report"))
        self.info.state = "complete"
        runfolder.write_info(self.folder, self.info, records, skipped)
        storage.remove(self.folder / runfolder.WORK_FOLDER)

    def _settle(self, compared: list[Compared]) -> None:
        """Keep the patches that the bank does not have, unless they are not wanted."""
        if self.cache and not compared[0].method.whole:
            runfolder.keep_batches(self.folder)
        else:
            storage.remove(self.folder / runfolder.PATCHES_FOLDER)

    def _begin(self) -> None:
        self.info.started = _now()
        self.info.device = "ray" if self.ray else ",".join(map(str, self.devices))

    def _describe(self, backbone: Backbone) -> None:
        self.info.backbone = {
            "name": backbone.name,
            "weights": self.settings.weights or "pretrained",
            "sha256": backbone.weights_hash,
            "channels": backbone.channels,
            "strides": backbone.strides,
        }
        self._describe_versions()

    def _describe_versions(self) -> None:
        self.info.versions = {
            "patchcluster": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "timm": importlib.metadata.version("timm"),
            "faiss": importlib.metadata.version("faiss-cpu"),
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

    def _extract_batches(self, batches: Sequence[Sequence[Candidate]]) -> Extracted:
        extractor = Extractor(self._features(), self.folder, self.workers)
        with self._timed("features"):
            return extractor.run(batches, self._step("features"))

    def _features(self) -> Features:
        return Features(self.backbone, self.settings, self.info.deep_range)

    @functools.cached_property
    def devices(self) -> list[torch.device]:
        """Those that share the work; the first has what is not shared."""
        return choose_devices("cpu" if self.ray else self.settings.device)

    @functools.cached_property
    def workers(self) -> Workers:
        one = len(self.devices) == 1
        return Here(self.threads) if one else Devices(self.devices, self.threads)

    def _hire(self) -> None:
        """Have a cluster do the work from here to the end of the comparison, if one was named."""
        if self.ray is not None:
            from .ray_workers import RayWorkers  # takes a moment, and an extra

            hired = RayWorkers(self.ray, self.settings.device, self.threads, self.tell)
            self.workers = self.hired.enter_context(hired)

    def _image_set(self, images: Sequence[ImageRecord]) -> ImageSet:
        image_set = ImageSet.of(images)
        if len(image_set.shas) < 2:
            raise InputError(
                f"{len(images)} of the files are images that can be read, and "
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
        comparer = Comparer(
            self.folder,
            image_set,
            load,
            self.info.labels,
            device,
            name_common(self.info, image_set),
            self.progress,
            self.workers,
        )
        compared = []
        for size in self.settings.size:
            with self._timed("compare"):
                method = self._make_method()
                compared.append(comparer.run(size, method, self.settings.image_score))
        self.hired.close()
        return compared

    def _make_method(self) -> Method:
        backbone = self.info.backbone
        return self.settings.make_method(backbone["channels"], backbone["strides"])

    def _write_results(self, image_set: ImageSet, compared: list[Compared]) -> list[ImageRecord]:
        """Write everything that a finished run holds but run.json; gives the images in it."""
        finisher = Finisher(self.folder, self.info, self.settings, self.threads, self._step("maps"))
        with self._timed("maps"):
            records = finisher.write(image_set, compared)
        self.info.finished = _now()
        self.info.memory["peak"] = costs.peak_memory()
        return records

    def _check_unchanged(self, files: Sequence[str]) -> None:
        run = Run(self.folder, half_changed=True)
        same = sorted(files) == sorted([*run.paths, *(skip.path for skip in run.skipped)])
        try:
            same = same and all(_is_unchanged(image) for image in run.images)
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


def name_common(info: RunInfo, image_set: ImageSet) -> str:
    """A name for all that comparisons of a set depend on beside the contents of its images."""
    labels = image_set.labels(info.labels)
    identity = [
        __version__,
        _FORMAT,
        info.settings,
        info.backbone["sha256"],
        labels if any(labels) else [],
    ]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def _is_unchanged(image: ImageRecord) -> bool:
    """Whether a file is as it was scanned, as far as can be said without reading it.

    Raises UnreadableImage.
    """
    size, version = stamp(image.path)
    return size == image.bytes and (not image.version or version == image.version)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
