"""Comparisons -> the results in the run folder, all but run.json and the report."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..report import write_report
from ..runs import runfolder, storage, tables
from ..runs.info import ImageRecord, Skipped
from ..runs.run import Run
from ..runs.tables import Result
from ..runs.threads import map_in_threads
from ..scores import maps
from ..scores.feedback import find_boundary, learn
from ..scores.finish import Measured, SetBaseline, describe_baselines
from ..scores.groups import Describe
from ..scores.labels import Label
from ..scores.maps import Floats
from ..scores.probability import SetScores, describe_scores
from . import costs
from .comparing import Compared
from .flagging import Scored, find_results, finish_grid, write_state
from .image_set import ImageSet
from .job import Job, now


def write_results(
    job: Job, image_set: ImageSet, compared: Sequence[Compared], cache: bool = True
) -> list[ImageRecord]:
    """Write all that a finished run holds but run.json and the page; return its images.

    cache: whether the patches that the bank does not have are kept.
    """
    folder, finest = job.folder, max(compared, key=lambda result: result.size)
    with job.timed("maps"):
        scored = _score(job, image_set, compared, finest)
        results = find_results(folder, job.info, image_set, scored, finest.describe, job.progress)
        tables.write_scores(folder, results)
        tables.write_regions(folder, results)
        runfolder.write_neighbours(folder, _join_neighbours(image_set, results, finest))
        states = {result.size: result.method.state() for result in compared}
        method = finest.method
        note = {"method": method.name, "parameters": method.parameters()}
        runfolder.write_bank(folder, states, note)
    job.info.finished = now()
    job.info.memory["peak"] = costs.peak_memory()
    if cache and not method.whole:
        runfolder.keep_batches(folder)
    else:
        storage.remove(folder / runfolder.PATCHES_FOLDER)
    records = [result.record for result in results]
    runfolder.remove_others(folder, records)
    return records


def _join_neighbours(
    image_set: ImageSet, results: Sequence[Result], finest: Compared
) -> dict[str, Tensor]:
    """Join what each patch was compared with, as `runfolder.write_neighbours` takes it."""
    counts = [finest.grids[result.content].size for result in results]
    offsets = torch.tensor([0, *counts]).cumsum(0)
    shape = (int(offsets[-1]), finest.explanations[0].patch.shape[1])
    image, patch = (torch.empty(shape, dtype=torch.int32) for _ in range(2))
    distance = torch.empty(shape, dtype=torch.float16)
    ids = torch.tensor([record.id for record in image_set.firsts])
    # In the order of the contents, as those of a batch are in one file.
    for i in sorted(range(len(results)), key=lambda i: results[i].content):
        part, rows = finest.explanations[results[i].content], slice(offsets[i], offsets[i + 1])
        known = part.image.long()
        image[rows] = torch.where(known < 0, -1, ids[known])  # -1: a patch without a score
        patch[rows], distance[rows] = part.patch, part.distance
    return {
        "ids": torch.tensor([result.record.id for result in results]),
        "offsets": offsets,
        "image": image,
        "patch": patch,
        "distance": distance,
    }


def replace_results(
    job: Job,
    image_set: ImageSet,
    compared: Sequence[Compared],
    images: Sequence[ImageRecord],
    skipped: Sequence[Skipped],
    cache: bool = True,
) -> None:
    """Replace the images of a finished run, in input order. cache: as in `write_results`.

    A kill leaves what `flagging.finish_interrupted` can finish.
    """
    folder, info = job.folder, job.info
    write_state(folder, info, "rescoring", images, skipped)  # while files do not belong together
    records = write_results(job, image_set, compared, cache)
    runfolder.drop_patches(folder, {record.id for record in records})
    write_state(folder, info, "flagging", records, skipped)  # while the report is another's
    write_report(Run(folder, half_changed=True), job.step("report"))
    write_state(folder, info, "complete", records, skipped)
    storage.remove(folder / runfolder.WORK_FOLDER)


def _score(
    job: Job, image_set: ImageSet, compared: Sequence[Compared], finest: Compared
) -> list[Scored]:
    """Map, score and nearest image of every content; writes the maps."""
    firsts = image_set.firsts
    grids = [
        maps.round_as_stored(maps.fuse(list(of_image)))  # so that all figures agree
        for of_image in zip(*(result.grids for result in compared), strict=True)
    ]
    own, labels = compared[0].image_scores, image_set.labels(job.info.labels)
    found = score_grids(
        grids,
        partial(_measure, job, firsts),
        job.settings.image_score,
        own,
        finest.describe,
        labels,
    )
    job.info.boundary = found.boundary
    job.info.baseline = {} if found.baseline is None else dataclasses.asdict(found.baseline)
    job.info.set_scores = {} if found.of_set is None else dataclasses.asdict(found.of_set)
    scored = []
    for i, records in enumerate(image_set.records.values()):
        shown = finest.explanations[i].image[int(np.nanargmax(found.grids[i]))].tolist()
        nearest = firsts[shown[0]].path if shown else ""
        score = tables.round_as_written(found.scores[i])
        scored.append(Scored(records, found.grids[i], score, nearest))

    def write(one: Scored) -> None:
        for record in one.records:
            runfolder.write_map(job.folder, record.id, one.grid)

    for _ in map_in_threads(write, scored):
        pass
    return scored


@dataclass(frozen=True)
class ScoredGrids:
    """Score grids [h, w] of a set with what labels add, and its image scores.

    baseline: of the set, if the scores depend on it. of_set: what the scores are like; None: too
    few. boundary: of the blind scores, see `find_boundary`.
    """

    grids: list[Floats]
    scores: list[float]
    baseline: SetBaseline | None
    of_set: SetScores | None
    boundary: float


def score_grids(
    grids: list[Floats],
    measure: Callable[[Sequence[Floats]], Sequence[Measured]],
    rule: str,
    own: list[float] | None,
    describe: Describe,
    labels: Sequence[Label | None],
) -> ScoredGrids:
    """Score the images of a set by their score grids, and learn from labels.

    measure: grids -> figures of their maps. own: image scores by a rule of the method's own.
    """
    measured = measure(grids)
    baseline, offsets, scores = None, [0.0] * len(grids), own
    if scores is None:
        if rule == "baseline-corrected":
            baseline = describe_baselines([one.baseline for one in measured])
            offsets = [baseline.offset(one.baseline) for one in measured]
        scores = [one.map_score - off for one, off in zip(measured, offsets, strict=True)]
    boundary = find_boundary(np.array(scores))
    if any(labels):
        grids = learn(grids, scores, describe, labels)
        # What labels add raises the baseline of an image too: that is not taken off again.
        tops = [one.map_score for one in measure(grids)]
        scores = [top - offset for top, offset in zip(tops, offsets, strict=True)]
    of_set = describe_scores(np.array(scores), [one.contrast for one in measured])
    return ScoredGrids(grids, scores, baseline, of_set, boundary)


def _measure(job: Job, records: Sequence[ImageRecord], grids: Sequence[Floats]) -> list[Measured]:
    def measure(one: tuple[ImageRecord, Floats]) -> Measured:
        return finish_grid(job.folder, job.info, *one).measure()

    return list(map_in_threads(measure, list(zip(records, grids, strict=True))))
