"""A scan: the order of its steps.

    survey     headers of all files: size, depth, or why a file cannot be read
    measure    a few images and a small search: how long the rest will take
    features   batches of files of one network size -> patches, thumbnails
    compare    the bank is fitted, and every image compared with it
    maps       scores, maps, regions, flags; run.json says "complete"
    report     the page

The work of the middle steps goes to disk in batches whose content depends on the set alone, so
that a scan that was killed resumes and ends with the same scores. Files of equal content are one
image: it is scored once and never compared with its copy.
"""

import dataclasses
import functools
import os
import tempfile
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from .. import __version__
from ..errors import InputError, RunError, SettingError, UnreadableImage
from ..images.finding import find_images
from ..images.inputs import local_path, stamp
from ..images.masks import hash_masks
from ..images.window import choose_windows
from ..network.backbones import Backbone
from ..report import write_report
from ..runs import runfolder, storage
from ..runs.info import RunInfo
from ..runs.run import Run
from ..scores.labels import Label, Labels, match_labels, read_labels
from ..scores.thresholds import Flagging
from ..settings import resolve
from .comparing import compare_all
from .costs import Planner, parse_limit
from .extraction import extract_all
from .flagging import flag_again, write_state
from .forecast import Forecast, forecast
from .image_set import join_images
from .job import Job, Progress, describe_network, describe_versions
from .rescoring import score_again
from .results import write_results
from .saved_inputs import save_inputs
from .sources import Paths, Source, list_paths, open_inputs
from .survey import Survey, check_sizes, keep_masks, survey_files, tell_several


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
    that does the work (`RayWorkers`); no score depends on it, and a scan may go on with or without.
    cache: whether a run whose bank has only some of the images keeps the patches of all, by which
    it can be scored again and updated. progress(step, done, total) is called as work gets done,
    tell(line) with what is predicted. settings: the fields of `Settings`.

    Raises InputError, SettingError, WeightsError, ClusterError or RunError.
    """
    since, limit = since or time.monotonic(), parse_limit(max_memory)
    given = open_inputs(inputs)
    known = labels if isinstance(labels, Mapping) else read_labels(labels)
    paths = given if isinstance(given, list) else []
    info = _asked(paths, settings, known, Flagging(expect, flag_top))

    def work(folder: Path) -> None:
        job = Job(folder, info, progress or (lambda *_: None), tell, ray, limit, since)
        if isinstance(given, Source):
            check = functools.partial(_check_start, job)
            save_inputs(given, folder, info, overwrite, check, job.step("inputs"))
        _run(job, overwrite, cache)

    if output is None:
        return _in_temporary_folder(work)
    folder = local_path(output)
    runfolder.check_output(folder, overwrite)
    with storage.lock(folder):
        work(folder)
    return Run(folder)


def predict(
    inputs: Paths,
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
    since, limit = since or time.monotonic(), parse_limit(max_memory)
    info = _asked(list_paths(inputs), settings, {}, Flagging())
    job = Job(Path(), info, progress or (lambda *_: None), ray=ray, max_memory=limit, since=since)
    return forecast(job, *_survey(job, _find_images(info.inputs, job.tell)))


def _in_temporary_folder(work: Callable[[Path], None]) -> Run:
    """Write a run to a folder that lives as long as the Run."""
    folder = Path(tempfile.mkdtemp(prefix="patchcluster-"))
    try:
        work(folder)
        run = Run(folder)
    except BaseException:
        storage.remove(folder)
        raise
    weakref.finalize(run, storage.remove, folder)
    return run


def _asked(
    inputs: list[str], settings: Mapping[str, Any], labels: Labels, how: Flagging
) -> RunInfo:
    known = resolve(**settings)
    return RunInfo(
        inputs=inputs,
        settings=dataclasses.asdict(known),
        version=__version__,
        labels=dict(labels),
        flagging=dataclasses.asdict(how),
        roi_sha256="" if known.roi is None else hash_masks(known.roi),
    )


def _find_images(inputs: Sequence[str], tell: Callable[[str], None]) -> list[str]:
    return find_images(inputs, runfolder.is_run, runfolder.find_runs, tell)


def _match(labels: Labels, files: Sequence[str]) -> dict[str, Label]:
    """Name the files that labels are of. Raises InputError if one fits none, or several."""
    return {files[i]: label for i, label in sorted(match_labels(labels, files).items())}


def _check_start(job: Job, inputs: list[str]) -> None:
    """Raise what would keep a scan of these inputs from starting; nothing is written."""
    files = find_images(inputs)
    labels = _match(job.info.labels, files)
    info = dataclasses.replace(job.info, inputs=inputs, labels=labels, seconds={})
    trial = dataclasses.replace(job, info=info)
    _, survey = _survey(trial, files)
    Planner.of(trial, survey.candidates).check(job.max_memory)


def _run(job: Job, overwrite: bool, cache: bool) -> None:
    """Scan; or take a finished run of the same as it is, with other labels or flags if asked."""
    folder, info = job.folder, job.info
    files = _find_images(info.inputs, job.tell)
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
        _scan(job, files, replace, cache)
    else:
        _take_up(job, files, cache)
    if not (folder / runfolder.REPORT_FILE).is_file():
        write_report(Run(folder), job.step("report"))
    storage.remove(folder / runfolder.WORK_FOLDER)


def _scan(job: Job, files: Sequence[str], replace: bool, cache: bool) -> None:
    """Do all the work; replace: clear what the folder holds, once nothing can be refused."""
    with job.workers() as workers:
        backbone, survey = _survey(job, files)
        forecast(job, backbone, survey)
        runfolder.begin(job.folder, job.info, replace)
        keep_masks(job.folder, survey.masks)
        images, unreadable = extract_all(job, backbone, survey.candidates, workers)
        image_set = join_images(images, job.info)
        compared = compare_all(job, image_set, workers)
    records = write_results(job, image_set, compared, cache)
    by_id = survey.skipped | unreadable
    skipped = [by_id[i] for i in sorted(by_id)]
    write_state(job.folder, job.info, "complete", records, skipped)


def _survey(job: Job, files: Sequence[str]) -> tuple[Backbone, Survey]:
    """Load the network and read all headers; what can be refused without a plan is refused."""
    job.begin()
    backbone, settings = job.load_network(), job.settings
    with job.timed("survey"):
        survey = survey_files(files, settings, backbone.strides, job.threads, job.step("survey"))
    candidates = survey.candidates
    if not candidates:
        reasons = sorted({skip.reason for skip in survey.skipped.values()})
        raise InputError(
            f"none of the {len(files)} files is an image that can be read "
            f"({'; '.join(reasons[:3])}): name a folder that holds images"
        )
    tell_several(candidates, job.tell)
    describe_network(job, backbone)
    describe_versions(job)
    check_sizes(candidates, settings.method)
    job.make_method().check_labels(job.info.labels.get(one.path) for one in candidates)
    job.info.windows = choose_windows((one.header.spread for one in candidates), settings.window)
    if settings.window is not None and not job.info.windows:
        raise SettingError("--window is for images of more than 8 bits, and none has: leave it out")
    return backbone, survey


def _take_up(job: Job, files: Sequence[str], cache: bool) -> None:
    """Bring a finished run of the same to the labels and flags that are asked for."""
    run, asked = Run(job.folder, half_changed=True), job.info
    _check_unchanged(run, files)
    if run.info.labels != asked.labels or run.info.state == "rescoring":
        info = dataclasses.replace(run.info, labels=asked.labels, flagging=asked.flagging)
        score_again(run, dataclasses.replace(job, info=info), cache)
    elif run.info.flagging != asked.flagging or run.info.state == "flagging":
        flag_again(run, Flagging(**asked.flagging), job.progress)


def _check_unchanged(run: Run, files: Sequence[str]) -> None:
    """Raise RunError if the images of a finished run are not as they were scanned.

    As far as can be said without reading them.
    """
    same = sorted(files) == sorted([*run.paths, *(skip.path for skip in run.skipped)])
    try:
        for image in run.images if same else []:
            size, version = stamp(image.path)
            same &= size == image.bytes and image.version in (0, version)
    except UnreadableImage:
        same = False
    if not same:
        raise RunError(
            f"the images have changed since {str(run.folder)!r} was written: add --overwrite "
            "to scan again, or choose another -o"
        )
