"""A finished run with another threshold; and what its bank holds, without its images."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import RunError
from ..images.roi import Packing
from ..methods import Method
from ..methods.grids import Grids
from ..network.backbones import Backbone, load_backbone
from ..network.patches import block_side, grid_stride
from ..report import write_report
from ..runs import runfolder, storage, tables
from ..runs.info import ImageRecord
from ..runs.run import Run, hold_run
from ..scores.thresholds import Flagging
from ..settings import resolve
from .extract import input_shapes
from .image_set import ImageSet
from .patch_files import Loaded, describe_whole, find_packing, load_batches
from .results import Scored, find_results, flag


def reflag(folder: Path, how: Flagging, step: Callable[[int, int], None] = lambda *_: None) -> Run:
    """Flag the images of a finished run again: scores.csv, regions.csv, run.json and report.html.

    Scores, maps and labels stay as they are. Raises RunError if it is no finished run, or in use.
    """
    with hold_run(folder):
        return flag_again(folder, how, step)


def flag_again(folder: Path, how: Flagging, step: Callable[[int, int], None]) -> Run:
    """`reflag`, for who holds the run's lock."""
    run = Run(folder, half_changed=True)
    if run.info.state == "rescoring":
        raise RunError(run.say_unfinished())
    image_set = ImageSet.of(run.images)
    scored = []
    for copies in image_set.records.values():
        i = run.index(copies[0].path)
        scored.append(
            Scored(list(copies), run.grid(copies[0].path), float(run.scores[i]), run.nearest[i])
        )
    labels = image_set.labels(run.info.labels)
    threshold, flagged = flag(np.array([one.score for one in scored]), labels, how)
    method, finest = load_method(run), max(run.info.settings["size"])
    patches = None
    if method.bounded and runfolder.kept_paths(folder):
        patches = load_patches(run, image_set, finest)[0]

    def describe(content: int) -> Tensor | None:
        one = scored[content]
        shape = (one.grid.shape[0], one.grid.shape[1])
        packing = find_packing(folder, one.records[0], shape, _block_side(run))
        return describe_whole(method, patches, content, packing)

    results = find_results(
        scored,
        flagged,
        threshold.value,
        lambda one: run.finished(one.records[0].path),
        describe,
        torch.get_num_threads(),
        step,
    )
    info = run.info
    info.flagging, info.threshold = dataclasses.asdict(how), dataclasses.asdict(threshold)
    info.state = "flagging"  # until all files belong together
    runfolder.write_info(folder, info, run.images, run.skipped)
    tables.write_scores(folder, results)
    tables.write_regions(folder, results)
    write_report(Run(folder, half_changed=True))
    info.state = "complete"
    runfolder.write_info(folder, info, run.images, run.skipped)
    return Run(folder)


def load_method(run: Run, size: int | None = None, device: torch.device | str = "cpu") -> Method:
    """The method of one of a run's network sizes, the largest by default, as it was fitted.

    Raises RunError if the bank is missing or damaged.
    """
    settings = resolve(**run.info.settings)
    state = _read_state(run, max(settings.size) if size is None else size)
    backbone = run.info.backbone
    method = settings.make_method(backbone["channels"], backbone["strides"])
    state = {name: tensor.to(device) for name, tensor in state.items()}
    try:
        return type(method).from_state(state, **method.parameters())
    except (LookupError, TypeError, ValueError, RuntimeError) as error:  # tensors of another kind
        raise _damaged(run, f"not of {method.name}: {error!r}") from error


def load_network(
    run: Run, weights: str | None = None, device: torch.device | str = "cpu"
) -> Backbone:
    """The network that a run was scanned with; weights: where their file lies now.

    Raises WeightsError, or RunError if the weights are others.
    """
    settings = resolve(**run.info.settings)
    strides = settings.strides
    backbone = load_backbone(settings.backbone, weights or settings.weights, device, strides)
    if backbone.weights_hash != run.info.backbone["sha256"]:
        raise RunError(
            f"the weights of {backbone.name} are not those that {str(run.folder)!r} was scanned "
            "with: name their file with --weights, or scan again"
        )
    return backbone


def load_patches(run: Run, image_set: ImageSet, size: int) -> Loaded:
    """Patches and packings of each content of a run: of files that it keeps, or of its bank.

    Raises RunError if neither has all.
    """
    if not runfolder.kept_paths(run.folder) and not runfolder.batch_paths(run.folder):
        in_bank = load_bank(run, image_set, size)
        if in_bank is not None:
            return in_bank
    return load_batches(run.folder, image_set, _block_side(run), size)


def load_bank(run: Run, image_set: ImageSet, size: int) -> Loaded | None:
    """The same of the bank of a run; None if that does not have all patches."""
    method = load_method(run, size)
    if not method.whole:
        return None
    packings = [_packing(run, copies[0], size) for copies in image_set.records.values()]
    counts = torch.bincount(method.bank_image_).tolist()
    rows = zip(torch.split(method.bank_, counts), method.state()["shapes"].tolist(), strict=True)
    return Grids.of([part.view(*shape, -1) for part, shape in rows]), packings


def _packing(run: Run, image: ImageRecord, size: int) -> Packing | None:
    settings, strides = resolve(**run.info.settings), run.info.backbone["strides"]
    shapes = input_shapes(image.width, image.height, settings, strides)
    height, width = shapes[settings.size.index(size)]
    stride = grid_stride(strides, settings.layout)
    return find_packing(run.folder, image, (height // stride, width // stride), _block_side(run))


def _block_side(run: Run) -> int:
    return block_side(run.info.backbone["strides"], resolve(**run.info.settings).layout)


def _read_state(run: Run, size: int) -> dict[str, Tensor]:
    """The learned values of the method of one network size. Raises RunError."""
    tensors, _ = storage.read_tensors(run.folder / runfolder.BANK_FILE)
    prefix = f"{size}."
    state = {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
    count, places = state.get("image_count"), state.get("bank_image")
    if count is None or count.numel() != 1:
        raise _damaged(run, f"no image_count of size {size}")
    if places is not None and len(places):  # a method without rows of images has none
        rows = {len(state[name]) for name in ("bank", "bank_patch") if name in state}
        if rows != {len(places)} or not bool(((places >= 0) & (places < count)).all()):
            raise _damaged(run, "its rows do not belong together")
    return state


def _damaged(run: Run, why: str) -> RunError:
    file = run.folder / runfolder.BANK_FILE
    return RunError(f"{str(file)!r} is damaged ({why}): scan again")
