"""A finished run scored again with labels, or flagged again; what was interrupted is finished."""

import dataclasses
import functools
from pathlib import Path

from ..runs import runfolder, storage
from ..runs.run import Run, check_run, hold_run
from ..scores.labels import Labels, match_labels
from ..scores.thresholds import Flagging
from .image_set import ImageSet
from .job import Job, Progress
from .reflagging import flag_again, load_patches
from .steps import compare_all, replace_results


def rescore(folder: Path, labels: Labels, progress: Progress = lambda *_: None) -> Run:
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
        compare_again(run, Job(folder, info, progress))
    return Run(folder)


def compare_again(run: Run, job: Job, cache: bool = True) -> None:
    """Score the images of a finished run again, by the patches that it has, for who holds it.

    job: on the run's record, with the labels and the flagging that are asked for. cache: as in
    `scan`.
    """
    info = job.info
    for step in ("compare", "maps"):
        info.seconds.pop(step, None)
    if info.state != "rescoring":  # or some of the comparisons may be there
        storage.remove(run.folder / runfolder.WORK_FOLDER)
    image_set = ImageSet.of(run.images)
    load = functools.partial(load_patches, run, image_set)
    with job.workers() as workers:
        compared = compare_all(job, image_set, load, job.devices[0], workers)
    replace_results(job, image_set, compared, run.images, run.skipped, cache)


def refresh(folder: Path, how: Flagging, progress: Progress = lambda *_: None) -> Run:
    """Flag a finished run again (see `reflag`); first finish a scoring that was interrupted.

    Raises RunError or SettingError.
    """
    with hold_run(folder):
        return _refresh(folder, how, progress)


def _refresh(folder: Path, how: Flagging, progress: Progress) -> Run:
    run = Run(folder, half_changed=True)
    if run.info.state == "rescoring":
        compare_again(run, Job(folder, run.info, progress))
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
