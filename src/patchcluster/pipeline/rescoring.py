"""A finished run scored again with labels."""

import dataclasses
from pathlib import Path

from ..runs import runfolder, storage
from ..runs.run import Run, hold_run
from ..scores.labels import Labels, match_labels
from .comparing import compare_all
from .image_set import ImageSet
from .job import Job, Progress
from .results import replace_results


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
        score_again(run, Job(folder, info, progress))
    return Run(folder)


def score_again(run: Run, job: Job, cache: bool = True) -> None:
    """Score the images of a finished run again, by its patches; the caller holds its lock.

    job: on the run's record, with the labels and the flagging that are asked for. cache: as in
    `scan`.
    """
    info = job.info
    for step in ("compare", "maps"):
        info.seconds.pop(step, None)
    if info.state != "rescoring":  # or some of the comparisons may be there
        storage.remove(run.folder / runfolder.WORK_FOLDER)
    image_set = ImageSet.of(run.images)
    with job.workers() as workers:
        compared = compare_all(job, image_set, workers)
    replace_results(job, image_set, compared, run.images, run.skipped, cache)
