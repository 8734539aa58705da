"""A finished run scored again with labels, or flagged again; what was interrupted is finished."""

import dataclasses
from pathlib import Path

from torch import Tensor

from ..report import write_report
from ..runs import runfolder, storage, tables
from ..runs.run import Run, check_run, hold_run
from ..scores.labels import Labels, match_labels
from ..scores.thresholds import Flagging
from .comparing import compare_all
from .image_set import ImageSet
from .job import Job, Progress
from .loading import describe_whole, find_packing, load_method, load_patches
from .results import Scored, find_results, replace_results, write_state


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


def reflag(folder: Path, how: Flagging, progress: Progress = lambda *_: None) -> Run:
    """Flag the images of a finished run again: scores.csv, regions.csv, run.json and report.html.

    Scores, maps and labels stay as they are; a new scoring that was interrupted is finished first.
    Raises RunError if it is no finished run, or in use; SettingError.
    """
    with hold_run(folder):
        flag_again(_finish_scoring(folder, progress), how, progress)
    return Run(folder)


def finish_interrupted(folder: Path, progress: Progress = lambda *_: None) -> None:
    """Finish what was interrupted while a finished run was flagged or scored again.

    Raises RunError if it is no finished run, or in use.
    """
    check_run(folder)
    if runfolder.read_info(folder)[0].state != "complete":
        with hold_run(folder):
            finish_held(folder, progress)


def finish_held(folder: Path, progress: Progress) -> None:
    """`finish_interrupted`; the caller holds the run's lock."""
    run = _finish_scoring(folder, progress)
    if run.info.state == "flagging":
        flag_again(run, Flagging(**run.info.flagging), progress)


def _finish_scoring(folder: Path, progress: Progress) -> Run:
    """Finish a scoring that was interrupted; the features of an interrupted update stay."""
    run = Run(folder, half_changed=True)
    if run.info.state == "rescoring":
        score_again(run, Job(folder, run.info, progress))
    elif run.info.state == "flagging":
        storage.remove(folder / runfolder.WORK_FOLDER)  # of a scoring that has ended
    return Run(folder, half_changed=True)


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


def flag_again(run: Run, how: Flagging, progress: Progress) -> None:
    """Flag the images of a finished run again; the caller holds its lock."""
    info = dataclasses.replace(run.info, flagging=dataclasses.asdict(how))
    job, image_set = Job(run.folder, info, progress), ImageSet.of(run.images)
    scored = []
    for copies in image_set.records.values():
        i = run.index(copies[0].path)
        grid = run.grid(copies[0].path)
        scored.append(Scored(copies, grid, float(run.scores[i]), run.nearest[i]))
    method, patches = load_method(run), None
    if method.bounded and runfolder.kept_paths(run.folder):
        patches, _ = load_patches(run, image_set, max(job.settings.size))

    def describe(content: int) -> Tensor | None:
        one = scored[content]
        packing = find_packing(run, one.records[0], (one.grid.shape[0], one.grid.shape[1]))
        return describe_whole(method, patches, content, packing)

    results = find_results(job, image_set, scored, describe)
    write_state(job, "flagging", run.images, run.skipped)  # until all files belong together
    tables.write_scores(run.folder, results)
    tables.write_regions(run.folder, results)
    write_report(Run(run.folder, half_changed=True))
    write_state(job, "complete", run.images, run.skipped)
