"""Which images of a run are flagged, and where: of a new scan, or again of a finished run.

Without PyTorch, unless regions change that are grouped by their patches.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import RunError
from ..images.inputs import natural_key
from ..report import write_report
from ..runs import runfolder, storage, tables
from ..runs.info import ImageRecord, RunInfo, Skipped, State
from ..runs.run import Run, check_run, hold_run
from ..runs.tables import Result
from ..runs.threads import map_in_threads
from ..scores.finish import Finished, finish
from ..scores.groups import Describe, describe_regions, group_regions
from ..scores.labels import move_threshold
from ..scores.maps import Floats, Region
from ..scores.thresholds import Flagging, choose_threshold
from ..settings import resolve
from .image_set import ImageSet

if TYPE_CHECKING:
    from torch import Tensor

    from .job import Progress


@dataclass(frozen=True)
class Scored:
    """One content of a set that was compared; the files with that content share it."""

    records: list[ImageRecord]
    grid: Floats  # [h, w]
    score: float
    nearest: str  # path of the image that its most anomalous patch is nearest to


def reflag(folder: Path, how: Flagging, progress: "Progress" = lambda *_: None) -> Run:
    """Flag the images of a finished run again: scores.csv, regions.csv, run.json and report.html.

    Scores, maps and labels stay as they are; a new scoring that was interrupted is finished first.
    Raises RunError if it is no finished run, or in use; SettingError.
    """
    with hold_run(folder):
        flag_again(_finish_scoring(folder, progress), how, progress)
    return Run(folder)


def finish_interrupted(folder: Path, progress: "Progress" = lambda *_: None) -> None:
    """Finish what was interrupted while a finished run was flagged or scored again.

    Raises RunError if it is no finished run, or in use.
    """
    check_run(folder)
    if runfolder.read_info(folder)[0].state != "complete":
        with hold_run(folder):
            finish_held(folder, progress)


def finish_held(folder: Path, progress: "Progress") -> None:
    """`finish_interrupted`; the caller holds the run's lock."""
    run = _finish_scoring(folder, progress)
    if run.info.state == "flagging":
        flag_again(run, Flagging(**run.info.flagging), progress)


def _finish_scoring(folder: Path, progress: "Progress") -> Run:
    """Finish a scoring that was interrupted; the features of an interrupted update stay."""
    run = Run(folder, half_changed=True)
    if run.info.state == "rescoring":
        from .job import Job  # these load torch
        from .rescoring import score_again

        score_again(run, Job(folder, run.info, progress))
    elif run.info.state == "flagging":
        storage.remove(folder / runfolder.WORK_FOLDER)  # of a scoring that has ended
    return Run(folder, half_changed=True)


def flag_again(run: Run, how: Flagging, progress: "Progress") -> None:
    """Flag the images of a finished run again; the caller holds its lock."""
    info = dataclasses.replace(run.info, flagging=dataclasses.asdict(how))
    image_set = ImageSet.of(run.images)
    scored = []
    for copies in image_set.records.values():
        i = run.index(copies[0].path)
        grid = run.grid(copies[0].path)
        scored.append(Scored(copies, grid, float(run.scores[i]), run.nearest[i]))
    known: list[list[Region]] = []
    with suppress(RunError):  # a damaged table is written anew
        known = [run.regions(one.records[0].path) for one in scored]
    describe = _describe_kept(run, image_set, scored)
    results = find_results(run.folder, info, image_set, scored, describe, progress, known)
    # Until all files belong together:
    write_state(run.folder, info, "flagging", run.images, run.skipped)
    tables.write_scores(run.folder, results)
    tables.write_regions(run.folder, results)
    write_report(Run(run.folder, half_changed=True))
    write_state(run.folder, info, "complete", run.images, run.skipped)


def _describe_kept(run: Run, image_set: ImageSet, scored: Sequence[Scored]) -> Describe:
    """Describe patches by what the run keeps of them, which is read when it is first asked for."""

    @functools.cache
    def load() -> Callable[[int], "Tensor | None"]:
        from .loading import describe_whole, find_packing, load_method, load_patches  # load torch

        method, patches = load_method(run), None
        if method.bounded and runfolder.kept_paths(run.folder):
            patches, _ = load_patches(run, image_set, max(resolve(**run.info.settings).size))

        def describe(content: int) -> "Tensor | None":
            one = scored[content]
            packing = find_packing(run, one.records[0], (one.grid.shape[0], one.grid.shape[1]))
            return describe_whole(method, patches, content, packing)

        return describe

    return lambda content: load()(content)


def write_state(
    folder: Path,
    info: RunInfo,
    state: State,
    images: Sequence[ImageRecord],
    skipped: Sequence[Skipped],
) -> None:
    """Write run.json with the state that the folder is in from now on."""
    info.state = state
    runfolder.write_info(folder, info, images, skipped)


def find_results(
    folder: Path,
    info: RunInfo,
    image_set: ImageSet,
    scored: Sequence[Scored],
    describe: Describe,
    progress: "Progress",
    known: Sequence[list[Region]] = (),
) -> list[Result]:
    """Flag the images of a set as run.json asks for, and find the regions of those.

    describe: what the patches of a content look like, for the grouping of regions. known: regions
    of each content with their groups, which stay if no region has changed. The threshold goes into
    `info`; results are those of all files, in input order.
    """
    labels = np.array(image_set.labels(info.labels))
    anomalous, normal = labels == "anomalous", labels == "normal"
    scores, how = np.array([one.score for one in scored]), Flagging(**info.flagging)
    threshold = choose_threshold(scores, how, info.of_set)
    probabilities = info.probabilities(scores)
    if how == Flagging():
        threshold = move_threshold(threshold, scores, anomalous, normal)
    info.threshold = dataclasses.asdict(threshold)
    flagged = ((scores > threshold.value) | anomalous) & ~normal

    def find(one: Scored) -> list[Region]:
        finished = finish_grid(folder, info, one.records[0], one.grid)
        return finished.regions(one.score, threshold.value)

    regions: list[list[Region]] = []
    for found in map_in_threads(find, scored):
        regions.append(found)
        progress("maps", len(regions), len(scored))
    regions = list(known) if _are_same(known, regions) else _group(scored, regions, describe)
    results = [
        Result(record, i, one.score, probabilities[i], bool(flagged[i]), regions[i], one.nearest)
        for i, one in enumerate(scored)
        for record in one.records
    ]
    return sorted(results, key=lambda result: natural_key(result.record.path))


def _are_same(known: Sequence[list[Region]], found: Sequence[list[Region]]) -> bool:
    """Say whether regions of regions.csv are those that were found, but for their groups."""

    def plain(region: Region) -> Region:
        return dataclasses.replace(region, group=0, peak=tables.round_as_written(region.peak))

    return [list(map(plain, one)) for one in known] == [list(map(plain, one)) for one in found]


def finish_grid(folder: Path, info: RunInfo, image: ImageRecord, grid: Floats) -> Finished:
    """Bring the score grid [h, w] of an image of a run to its frame."""
    rule = resolve(**info.settings).map_rule(info.baseline)
    mask = runfolder.read_mask_of(folder, image)
    return finish(grid, image.width, image.height, rule, mask)


def _group(
    scored: Sequence[Scored], regions: Sequence[list[Region]], describe: Describe
) -> list[list[Region]]:
    """Number the groups of regions, if they can be described."""
    # Into one array: see `Stages.summarise`.
    described, count = None, 0
    for i, (one, found) in enumerate(zip(scored, regions, strict=True)):
        if not found:
            continue
        vectors = describe(i)
        if vectors is None or len(vectors) != one.grid.size:
            return list(regions)
        if described is None:
            described = np.empty((sum(map(len, regions)), vectors.shape[1]), np.float32)
        record, rows = one.records[0], slice(count, count + len(found))
        described[rows] = describe_regions(vectors, one.grid, found, record.width, record.height)
        count = rows.stop
    if described is None:
        return list(regions)
    numbers = iter(group_regions(described).tolist())
    return [[dataclasses.replace(r, group=next(numbers)) for r in found] for found in regions]
