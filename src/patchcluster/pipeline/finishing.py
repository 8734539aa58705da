"""What a comparison found -> everything in the run folder but run.json and the report."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..images.inputs import natural_key
from ..runs import runfolder, tables
from ..runs.info import ImageRecord, RunInfo
from ..runs.threads import map_in_threads
from ..scores import maps
from ..scores.feedback import find_boundary, learn
from ..scores.finish import Finished, finish
from ..scores.levels import describe_levels
from ..scores.maps import Floats
from ..scores.thresholds import Flagging
from ..settings import Settings
from .comparing import Compared
from .image_set import ImageSet
from .results import Scored, find_results, flag


@dataclass(frozen=True)
class Finisher:
    """Writes the results of one run; what run.json says of them goes into `info`."""

    folder: Path
    info: RunInfo
    settings: Settings
    threads: int
    step: Callable[[int, int], None]

    def write(self, image_set: ImageSet, compared: list[Compared]) -> list[ImageRecord]:
        """Write what the module says; gives the images, in input order."""
        finest = max(compared, key=lambda result: result.size)
        scored = self._score(image_set, compared)
        threshold, flagged = flag(
            np.array([one.score for one in scored]),
            image_set.labels(self.info.labels),
            Flagging(**self.info.flagging),
        )
        self.info.threshold = dataclasses.asdict(threshold)
        results = find_results(
            scored,
            flagged,
            threshold.value,
            lambda one: self._finish(one.records[0], one.grid),
            finest.describe,
            self.threads,
            self.step,
        )
        ids = [copies[0].id for copies in image_set.records.values()]
        patches = [grid.size for grid in finest.grids]
        tables.write_scores(self.folder, results)
        tables.write_regions(self.folder, results)
        runfolder.write_neighbours(self.folder, results, finest.explanations, patches, ids)
        method = finest.method
        runfolder.write_bank(
            self.folder,
            {result.size: result.method.state() for result in compared},
            {"method": method.name, "parameters": method.parameters()},
        )
        return [result.record for result in results]

    def _score(self, image_set: ImageSet, compared: list[Compared]) -> list[Scored]:
        """Map, score and nearest image of every content; writes the maps."""
        grids = [_fuse(compared, image) for image in range(len(image_set.shas))]
        copies = list(image_set.records.values())
        finest = max(compared, key=lambda result: result.size)
        firsts = [records[0] for records in copies]
        scores, offsets = self._image_scores(firsts, grids, compared)
        labels = image_set.labels(self.info.labels)
        self.info.boundary = find_boundary(np.array(scores))
        if any(labels):
            grids = learn(grids, scores, finest.describe, labels)
            # What labels add raises the level of an image too: that is not taken off again.
            tops = (top for top, _ in self._measure_maps(firsts, grids))
            scores = [top - offset for top, offset in zip(tops, offsets, strict=True)]
        scored = []
        for i, (records, grid, score) in enumerate(zip(copies, grids, scores, strict=True)):
            shown = finest.explanations[i].image[int(np.nanargmax(grid))].tolist()
            nearest = copies[shown[0]][0].path if shown else ""
            scored.append(Scored(records, grid, tables.round_as_written(score), nearest))
        for _ in map_in_threads(self._write_maps, scored, self.threads):
            pass
        return scored

    def _write_maps(self, scored: Scored) -> None:
        for record in scored.records:
            runfolder.write_map(self.folder, record.id, scored.grid)

    def _image_scores(
        self, records: Sequence[ImageRecord], grids: Sequence[Floats], compared: list[Compared]
    ) -> tuple[list[float], list[float]]:
        """Image scores, and what the levels of the images took off them."""
        nothing = [0.0] * len(records)
        if compared[0].image_scores is not None:
            return compared[0].image_scores, nothing
        measured = self._measure_maps(records, grids)
        if self.settings.image_score != "contrast":
            return [top for top, _ in measured], nothing
        levels = describe_levels([level for _, level in measured])
        self.info.levels = dataclasses.asdict(levels)
        offsets = [levels.offset(level) for _, level in measured]
        return [top - o for (top, _), o in zip(measured, offsets, strict=True)], offsets

    def _measure_maps(
        self, records: Sequence[ImageRecord], grids: Sequence[Floats]
    ) -> list[tuple[float, float]]:
        """Score by its map alone, and level, of each image."""

        def measure(one: tuple[ImageRecord, Floats]) -> tuple[float, float]:
            finished = self._finish(*one)
            return finished.map_score, finished.level

        both = list(zip(records, grids, strict=True))
        return list(map_in_threads(measure, both, self.threads))

    def _finish(self, image: ImageRecord, grid: Floats) -> Finished:
        rule = self.settings.map_rule(self.info.levels)
        mask = runfolder.read_mask_of(self.folder, image)
        return finish(grid, image.width, image.height, rule, mask)


def _fuse(compared: Sequence[Compared], image: int) -> Floats:
    """Mean of an image's grids [h, w], rounded as it is stored, so that all figures agree."""
    return maps.round_as_stored(maps.fuse([result.grids[image] for result in compared]))


def name_near_duplicates(image_set: ImageSet, compared: Sequence[Compared]) -> list[list[str]]:
    """Paths of near-duplicates, by the finest network size; of copies the first, in input order."""
    firsts = [copies[0] for copies in image_set.records.values()]
    finest = max(compared, key=lambda result: result.size)
    groups = [[firsts[image] for image in group] for group in finest.near_duplicates]
    ordered = [sorted((image.path for image in group), key=natural_key) for group in groups]
    return sorted(ordered, key=lambda group: natural_key(group[0]))
