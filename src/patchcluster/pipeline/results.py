"""Scores and score grids -> what a run says of each image: flag, regions, groups."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..images.inputs import natural_key
from ..runs.info import ImageRecord
from ..runs.tables import Result
from ..runs.threads import map_in_threads
from ..scores.finish import Finished
from ..scores.groups import Describe, describe_regions, group_regions
from ..scores.labels import Label, move_threshold
from ..scores.maps import Floats, Region
from ..scores.thresholds import Flagging, Scores, Threshold, choose_threshold


@dataclass(frozen=True)
class Scored:
    """One content of a set that was compared; the files with that content share it."""

    records: list[ImageRecord]
    grid: Floats  # [h, w]
    score: float
    nearest: str  # path of the image that its most anomalous patch is nearest to


def flag(
    scores: Scores, labels: Sequence[Label | None], how: Flagging
) -> tuple[Threshold, NDArray[np.bool_]]:
    """Threshold for image scores [n], and which images are flagged, bool [n].

    labels, one an image or None, overrule the threshold for their images, and move an automatic
    one.
    """
    anomalous = np.array([label == "anomalous" for label in labels])
    normal = np.array([label == "normal" for label in labels])
    threshold = choose_threshold(scores, how.expect, how.flag_top)
    if how == Flagging():
        threshold = move_threshold(threshold, scores, anomalous, normal)
    return threshold, ((scores > threshold.value) | anomalous) & ~normal


def find_results(
    scored: Sequence[Scored],
    flagged: NDArray[np.bool_],
    threshold: float,
    bring: Callable[[Scored], Finished],
    describe: Describe,
    threads: int,
    step: Callable[[int, int], None],
) -> list[Result]:
    """Results of all files, in input order.

    bring: brings a content's grid to its frame. describe: what the patches of a content look like,
    for the grouping of regions.
    """
    regions: list[list[Region]] = []
    for found in map_in_threads(
        lambda one: bring(one).regions(one.score, threshold), scored, threads
    ):
        regions.append(found)
        step(len(regions), len(scored))
    regions = _group(scored, regions, describe)
    results = [
        Result(record, i, one.score, bool(flagged[i]), regions[i], one.nearest)
        for i, one in enumerate(scored)
        for record in one.records
    ]
    return sorted(results, key=lambda result: natural_key(result.record.path))


def _group(
    scored: Sequence[Scored], regions: Sequence[list[Region]], describe: Describe
) -> list[list[Region]]:
    """The same regions with the number of their group, if they can be described."""
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
