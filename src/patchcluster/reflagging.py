"""A finished run with another threshold; and what its bank holds, without its images."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import runfolder, storage
from .comparing import ImageSet
from .methods import Method
from .report import write_report
from .results import Flagging, Scored, find_results, flag
from .runs import Run
from .settings import resolve


def reflag(folder: Path, how: Flagging, step: Callable[[int, int], None] = lambda *_: None) -> Run:
    """Flag the images of a finished run again: scores.csv, regions.csv, run.json and report.html.

    Scores, maps and labels stay as they are. Raises RunError if it is no finished run.
    """
    run = Run(folder, half_flagged=True)
    image_set = ImageSet.of(run.images)
    scored = []
    for copies in image_set.records.values():
        i = run.index(copies[0].path)
        scored.append(
            Scored(list(copies), run.grid(copies[0].path), float(run.scores[i]), run.nearest[i])
        )
    labels = image_set.labels(run.info.labels)
    threshold, flagged = flag(np.array([one.score for one in scored]), labels, how)
    frame, method = run.info.settings["frame"], load_method(run)
    results = find_results(
        scored, flagged, threshold.value, frame, method, torch.get_num_threads(), step
    )
    info = run.info
    info.flagging, info.threshold = dataclasses.asdict(how), dataclasses.asdict(threshold)
    info.state = "flagging"  # until all files belong together
    runfolder.write_info(folder, info, run.images, run.skipped)
    runfolder.write_scores(folder, results)
    runfolder.write_regions(folder, results)
    info.state = "complete"
    runfolder.write_info(folder, info, run.images, run.skipped)
    flagged_run = Run(folder)
    write_report(flagged_run)
    return flagged_run


def load_method(run: Run) -> Method:
    """The method of a run's largest network size, as it was fitted.

    Raises RunError if the bank is missing or damaged.
    """
    settings = resolve(**run.info.settings)
    size = max(settings.size)
    backbone = run.info.backbone
    return settings.make_method(backbone["channels"], backbone["strides"]).restore(
        _read_state(run, size)
    )


def load_patches(run: Run, size: int) -> list[Tensor]:
    """Patches float16 [h, w, c] of each content of a run, if the bank holds all of them."""
    state = _read_state(run, size)
    counts = torch.bincount(state["bank_image"]).tolist()
    rows = torch.split(state["bank"], counts)
    return [
        part.view(*shape, -1) for part, shape in zip(rows, state["shapes"].tolist(), strict=True)
    ]


def _read_state(run: Run, size: int) -> dict[str, Tensor]:
    tensors, _ = storage.read_tensors(run.folder / runfolder.BANK_FILE)
    prefix = f"{size}."
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
