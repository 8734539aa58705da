"""Run folders without a scan: any number of images, with any names, in moments."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from patchcluster import __version__
from patchcluster.images.inputs import hash_file
from patchcluster.images.raster import encode
from patchcluster.runs import runfolder, storage, tables
from patchcluster.runs.info import ImageRecord, RunInfo, Skipped
from patchcluster.runs.run import Run
from patchcluster.runs.tables import Result
from patchcluster.scores.labels import Label
from patchcluster.scores.maps import Region
from patchcluster.scores.probability import describe_scores
from patchcluster.scores.thresholds import Flagging
from patchcluster.settings import resolve

GRID = 28
SIDE = 256
THRESHOLD = 1.0


def write_run(
    folder: Path,
    names: Sequence[str],
    defective: int = 2,
    skipped: Sequence[Skipped] = (),
    labels: Mapping[str, Label] | None = None,
    duplicates: Sequence[Sequence[int]] = (),
    hashed: bool = False,
) -> Run:
    """Write a run of which the first `defective` images score above the threshold.

    Image i scores 2 - i / n if it is defective, else 0.8 - 0.5 i / n: in the order of the names.
    The regions of defective images are in groups 1 and 2 by turns. duplicates: indices of images
    with one content, whose scores are that of the first. hashed: the images are there, and their
    hashes are those of their files.
    """
    rng = np.random.default_rng(0)
    count = len(names)
    first = {i: group[0] for group in duplicates for i in group}
    of_content = [first.get(i, i) for i in range(count)]
    scores = [2 - of / count if of < defective else 0.8 - 0.5 * of / count for of in of_content]
    of_set = describe_scores(np.array(scores), [0.6] * count)
    set_scores = {} if of_set is None else dataclasses.asdict(of_set)
    probabilities = RunInfo([], {}, "", set_scores=set_scores).probabilities(np.array(scores))
    results = []
    for i, name in enumerate(names):
        of = of_content[i]
        bad = of < defective
        grid = rng.uniform(0.1, 0.3, (GRID, GRID)).astype(np.float32)
        regions = []
        if bad:
            grid[10:14, 16:20] = 2
            regions = [Region(140, 84, 48, 48, 48 * 48, 1.9, 1 + of % 2)]
        storage.write_bytes(runfolder.thumbnail_path(folder, i), _draw(rng, bad), durable=False)
        runfolder.write_map(folder, i, grid)
        sha256 = hash_file(name) if hashed else f"{of:064x}"
        record = ImageRecord(i, name, sha256, 1000, SIDE, SIDE)
        results.append(Result(record, i, scores[i], probabilities[i], bad, regions, names[-1]))
    info = RunInfo(
        inputs=["photos"],
        settings=dataclasses.asdict(resolve()),
        version=__version__,
        state="complete",
        finished="2026-01-02T03:04:05+00:00",
        backbone={
            "name": "net",
            "weights": "pretrained",
            "sha256": "0" * 64,
            "channels": [8],
            "strides": [8],
        },
        threshold={"value": THRESHOLD, "meaning": "as the test says"},
        flagging=dataclasses.asdict(Flagging()),
        set_scores=set_scores,
        labels=dict(labels or {}),
        duplicates=[[names[i] for i in group] for group in duplicates],
    )
    tables.write_scores(folder, results)
    tables.write_regions(folder, results)
    # Each patch is nearest to those at the same place of the three images that follow.
    ids, places = torch.arange(len(names)), torch.arange(GRID**2)
    shape = (len(names), GRID**2, 3)
    others = (ids[:, None] + torch.arange(1, 4)) % len(names)
    compared = {
        "image": others[:, None].int().expand(shape),
        "patch": places[None, :, None].int().expand(shape),
        "distance": torch.tensor([0.1, 0.2, 0.3]).half().expand(shape),
    }
    flat = {name: values.reshape(-1, 3) for name, values in compared.items()}
    offsets = torch.arange(len(names) + 1) * GRID**2
    runfolder.write_neighbours(folder, {"ids": ids, "offsets": offsets, **flat})
    runfolder.write_info(folder, info, [result.record for result in results], skipped)
    return Run(folder)


def _draw(rng: np.random.Generator, bad: bool) -> bytes:
    coarse = rng.integers(90, 170, (16, 16, 3), np.uint8)
    pixels = np.kron(coarse, np.ones((SIDE // 16, SIDE // 16, 1), np.uint8))
    if bad:
        pixels[90:126, 148:184] = 20
    return encode(pixels, "JPEG", quality=85)
