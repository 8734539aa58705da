"""Comparisons -> the results in the run folder, all but run.json and the report."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from ..images.inputs import natural_key
from ..report import write_report
from ..runs import runfolder, storage, tables
from ..runs.info import ImageRecord, Skipped, State
from ..runs.run import Run
from ..runs.tables import Result
from ..runs.threads import map_in_threads
from ..scores import maps
from ..scores.baseline import SetBaseline, describe_baselines
from ..scores.feedback import find_boundary, learn
from ..scores.finish import Finished, finish
from ..scores.groups import Describe, describe_regions, group_regions
from ..scores.labels import Label, move_threshold
from ..scores.maps import Floats, Region
from ..scores.thresholds import Flagging, choose_threshold
from . import costs
from .comparing import Compared
from .image_set import ImageSet
from .job import Job, now


@dataclass(frozen=True)
class Scored:
    """One content of a set that was compared; the files with that content share it."""

    records: list[ImageRecord]
    grid: Floats  # [h, w]
    score: float
    nearest: str  # path of the image that its most anomalous patch is nearest to


def write_results(
    job: Job, image_set: ImageSet, compared: Sequence[Compared], cache: bool = True
) -> list[ImageRecord]:
    """Write all that a finished run holds but run.json and the page; return its images.

    cache: whether the patches that the bank does not have are kept.
    """
    folder, finest = job.folder, max(compared, key=lambda result: result.size)
    with job.timed("maps"):
        scored = _score(job, image_set, compared, finest)
        results = find_results(job, image_set, scored, finest.describe)
        tables.write_scores(folder, results)
        tables.write_regions(folder, results)
        ids = [image.id for image in image_set.firsts]
        patches = [grid.size for grid in finest.grids]
        runfolder.write_neighbours(folder, results, finest.explanations, patches, ids)
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


def replace_results(
    job: Job,
    image_set: ImageSet,
    compared: Sequence[Compared],
    images: Sequence[ImageRecord],
    skipped: Sequence[Skipped],
    cache: bool = True,
) -> None:
    """Replace the images of a finished run, in input order. cache: as in `write_results`.

    A kill leaves what `rescoring.finish_interrupted` can finish.
    """
    write_state(job, "rescoring", images, skipped)  # while files do not belong together
    records = write_results(job, image_set, compared, cache)
    runfolder.drop_patches(job.folder, {record.id for record in records})
    write_state(job, "flagging", records, skipped)  # while the report is another's
    write_report(Run(job.folder, half_changed=True), job.step("report"))
    write_state(job, "complete", records, skipped)
    storage.remove(job.folder / runfolder.WORK_FOLDER)


def write_state(
    job: Job, state: State, images: Sequence[ImageRecord], skipped: Sequence[Skipped]
) -> None:
    """Write run.json with the state that the folder is in from now on."""
    job.info.state = state
    runfolder.write_info(job.folder, job.info, images, skipped)


def find_results(
    job: Job, image_set: ImageSet, scored: Sequence[Scored], describe: Describe
) -> list[Result]:
    """Flag the images of a set as run.json asks for, and find the regions of those.

    describe: what the patches of a content look like, for the grouping of regions. The threshold
    goes into run.json; results are those of all files, in input order.
    """
    labels = np.array(image_set.labels(job.info.labels))
    anomalous, normal = labels == "anomalous", labels == "normal"
    scores, how = np.array([one.score for one in scored]), Flagging(**job.info.flagging)
    threshold = choose_threshold(scores, how.expect, how.flag_top)
    if how == Flagging():
        threshold = move_threshold(threshold, scores, anomalous, normal)
    job.info.threshold = dataclasses.asdict(threshold)
    flagged = ((scores > threshold.value) | anomalous) & ~normal

    def find(one: Scored) -> list[Region]:
        return _finish(job, one.records[0], one.grid).regions(one.score, threshold.value)

    regions: list[list[Region]] = []
    for found in map_in_threads(find, scored, job.threads):
        regions.append(found)
        job.progress("maps", len(regions), len(scored))
    regions = _group(scored, regions, describe)
    results = [
        Result(record, i, one.score, bool(flagged[i]), regions[i], one.nearest)
        for i, one in enumerate(scored)
        for record in one.records
    ]
    return sorted(results, key=lambda result: natural_key(result.record.path))


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
    grids, scores, baseline, boundary = score_grids(
        grids,
        partial(_measure, job, firsts),
        job.settings.image_score,
        own,
        finest.describe,
        labels,
    )
    job.info.boundary = boundary
    job.info.baseline = {} if baseline is None else dataclasses.asdict(baseline)
    scored = []
    for i, records in enumerate(image_set.records.values()):
        shown = finest.explanations[i].image[int(np.nanargmax(grids[i]))].tolist()
        nearest = firsts[shown[0]].path if shown else ""
        scored.append(Scored(records, grids[i], tables.round_as_written(scores[i]), nearest))

    def write(one: Scored) -> None:
        for record in one.records:
            runfolder.write_map(job.folder, record.id, one.grid)

    for _ in map_in_threads(write, scored, job.threads):
        pass
    return scored


def score_grids(
    grids: list[Floats],
    measure: Callable[[Sequence[Floats]], Sequence[tuple[float, float]]],
    rule: str,
    own: list[float] | None,
    describe: Describe,
    labels: Sequence[Label | None],
) -> tuple[list[Floats], list[float], SetBaseline | None, float]:
    """Score the images of a set by their score grids, and learn from labels.

    measure: grids -> score by the map alone, and baseline, of each image. own: image scores by a
    rule of the method's own. Returns the grids with what labels add, the image scores, the
    baseline of the set if they depend on it, and the boundary of the blind scores
    (`find_boundary`).
    """
    of_set, offsets, scores = None, [0.0] * len(grids), own
    if scores is None:
        measured = measure(grids)
        if rule == "baseline-corrected":
            of_set = describe_baselines([baseline for _, baseline in measured])
            offsets = [of_set.offset(baseline) for _, baseline in measured]
        scores = [top - offset for (top, _), offset in zip(measured, offsets, strict=True)]
    boundary = find_boundary(np.array(scores))
    if any(labels):
        grids = learn(grids, scores, describe, labels)
        # What labels add raises the baseline of an image too: that is not taken off again.
        tops = [top for top, _ in measure(grids)]
        scores = [top - offset for top, offset in zip(tops, offsets, strict=True)]
    return grids, scores, of_set, boundary


def _measure(
    job: Job, records: Sequence[ImageRecord], grids: Sequence[Floats]
) -> list[tuple[float, float]]:
    """Return score by the map alone, and baseline, of each image."""

    def measure(one: tuple[ImageRecord, Floats]) -> tuple[float, float]:
        finished = _finish(job, *one)
        return finished.map_score, finished.baseline

    both = list(zip(records, grids, strict=True))
    return list(map_in_threads(measure, both, job.threads))


def _finish(job: Job, image: ImageRecord, grid: Floats) -> Finished:
    rule = job.settings.map_rule(job.info.baseline)
    mask = runfolder.read_mask_of(job.folder, image)
    return finish(grid, image.width, image.height, rule, mask)


def _group(
    scored: Sequence[Scored], regions: Sequence[list[Region]], describe: Describe
) -> list[list[Region]]:
    """Number the groups of regions, if they can be described."""
    # Into one tensor: see `Stages.summarise`.
    described, count = None, 0
    for i, (one, found) in enumerate(zip(scored, regions, strict=True)):
        if not found:
            continue
        vectors = describe(i)
        if vectors is None or len(vectors) != one.grid.size:
            return list(regions)
        if described is None:
            described = torch.empty(sum(map(len, regions)), vectors.shape[1])
        record, rows = one.records[0], slice(count, count + len(found))
        described[rows] = describe_regions(vectors, one.grid, found, record.width, record.height)
        count = rows.stop
    if described is None:
        return list(regions)
    numbers = iter(group_regions(described.numpy()).tolist())
    return [[dataclasses.replace(r, group=next(numbers)) for r in found] for found in regions]
