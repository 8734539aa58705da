"""A scan: the order of its steps.

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
import functools
import os
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from .. import __version__
from ..errors import RunError, UnreadableImage
from ..images import roi
from ..images.inputs import find_images, local_path, stamp
from ..network.patches import block_side
from ..report import write_report
from ..runs import runfolder, storage
from ..runs.info import ImageRecord, RunInfo
from ..runs.run import Run
from ..scores.labels import Label, Labels, match_labels, read_labels
from ..scores.thresholds import Flagging
from ..settings import resolve
from .costs import Limits
from .forecast import Forecast, forecast, survey_set
from .job import Job, Progress
from .patch_files import load_batches
from .reflagging import flag_again
from .rescoring import compare_again
from .saved_inputs import save_inputs
from .sources import Source, open_inputs
from .steps import compare_all, extract_all, join_images, keep_masks, write_results


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

    def run_in(folder: Path) -> None:
        job = Job(folder, info, progress or (lambda *_: None), tell, ray)
        if isinstance(given, Source):
            check = functools.partial(_check_start, job, limits)
            save_inputs(given, folder, info, overwrite, check, job.step("inputs"))
        _run(job, limits, overwrite, cache)

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
    job = Job(Path(), info, progress or (lambda *_: None), ray=ray)
    return forecast(job, survey_set(job, _find_images(info.inputs)), limits)


def _asked(inputs: list[str], settings: Mapping[str, Any]) -> RunInfo:
    known = resolve(**settings)
    return RunInfo(
        inputs=inputs,
        settings=dataclasses.asdict(known),
        version=__version__,
        roi_sha256="" if known.roi is None else roi.hash_masks(known.roi),
    )


def _find_images(inputs: Sequence[str]) -> list[str]:
    return find_images(inputs, runfolder.is_run, runfolder.find_runs)


def _check_start(job: Job, limits: Limits, inputs: list[str]) -> None:
    """Raise what would keep a scan of these inputs from starting; nothing is written."""
    files = find_images(inputs)
    labels = _match(job.info.labels, files)
    info = dataclasses.replace(job.info, inputs=inputs, labels=labels, seconds={})
    trial = Job(job.folder, info, job.progress)
    survey_set(trial, files).planner.check(limits.memory)


def _match(labels: Labels, files: Sequence[str]) -> dict[str, Label]:
    """Name the files that labels are of. Raises InputError if one fits none, or several."""
    return {files[i]: label for i, label in sorted(match_labels(labels, files).items())}


def _run(job: Job, limits: Limits, overwrite: bool, cache: bool) -> None:
    """Scan; or take a finished run of the same as it is, with other labels or flags if asked."""
    folder, info = job.folder, job.info
    files = _find_images(info.inputs)
    info.labels = _match(info.labels, files)
    stale = False
    try:
        earlier = runfolder.read_earlier(folder, info)
    except RunError:
        if not overwrite:
            raise
        earlier, stale = None, True
    if earlier is None or earlier.state == "running" or overwrite:
        replace = stale or (earlier is not None and earlier.state != "running")
        _scan(job, limits, files, replace, cache)
    else:
        _take_up(job, earlier, files, cache)
    if not (folder / runfolder.REPORT_FILE).is_file():
        write_report(Run(folder), job.step("report"))
    storage.remove(folder / runfolder.WORK_FOLDER)


def _scan(job: Job, limits: Limits, files: Sequence[str], replace: bool, cache: bool) -> None:
    """Do all the work; replace: clear what the folder holds, once nothing can be refused."""
    folder, info, settings = job.folder, job.info, job.settings
    with job.workers() as workers:
        surveyed = survey_set(job, files)
        forecast(job, surveyed, limits)
        runfolder.begin(folder, info, replace)
        keep_masks(job, surveyed.planner.regions)
        extracted = extract_all(job, surveyed.backbone, surveyed.candidates, workers)
        image_set = join_images(job, extracted.images)
        side = block_side(surveyed.backbone.strides, settings.layout)
        load = functools.partial(load_batches, folder, image_set, side)
        compared = compare_all(job, image_set, load, surveyed.planner.device, workers)
    records = write_results(job, image_set, compared, cache)
    skipped = surveyed.skipped | extracted.skipped
    info.state = "complete"
    runfolder.write_info(folder, info, records, [skipped[i] for i in sorted(skipped)])


def _take_up(job: Job, earlier: RunInfo, files: Sequence[str], cache: bool) -> None:
    """Bring a finished run of the same to the labels and flags that are asked for."""
    info = job.info
    _check_unchanged(job.folder, files)
    if earlier.labels != info.labels or earlier.state == "rescoring":
        run = Run(job.folder, half_changed=True)
        asked = dataclasses.replace(run.info, labels=info.labels, flagging=info.flagging)
        compare_again(run, dataclasses.replace(job, info=asked), cache)
    elif earlier.flagging != info.flagging or earlier.state == "flagging":
        flag_again(job.folder, Flagging(**info.flagging), job.step("maps"))


def _check_unchanged(folder: Path, files: Sequence[str]) -> None:
    """Raise RunError if the images of a finished run are not as they were scanned."""
    run = Run(folder, half_changed=True)
    same = sorted(files) == sorted([*run.paths, *(skip.path for skip in run.skipped)])
    try:
        same = same and all(_is_unchanged(image) for image in run.images)
    except UnreadableImage:
        same = False
    if not same:
        raise RunError(
            f"the images have changed since {str(folder)!r} was written: add --overwrite "
            "to scan again, or choose another -o"
        )


def _is_unchanged(image: ImageRecord) -> bool:
    """Whether a file is as it was scanned, as far as can be said without reading it.

    Raises UnreadableImage.
    """
    size, version = stamp(image.path)
    return size == image.bytes and (not image.version or version == image.version)
