"""Greedy k-centre subsampling of a bank (section 5.3 of the paper; PatchCore's coreset)."""

import math
from collections.abc import Callable
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import SettingError
from .neighbors import nearest, to_float

Progress = Callable[[int, int], None]  # done, size
_BATCH = 512  # candidates whose mutual distances are known at a time
_BY_DIFFERENCES = "donot_use_mm_for_euclid_dist"  # so that equal rows are at no distance
_SMALLEST = torch.finfo(torch.float32).tiny
_RADIUS_STEPS = 4  # of the radius in `cover_in_order`, to a power of two


@overload
def greedy_coreset(
    features: Tensor, size: int, start: int = 0, progress: Progress | None = None
) -> Tensor: ...
@overload
def greedy_coreset(
    features: NDArray[Any], size: int, start: int = 0, progress: Progress | None = None
) -> NDArray[np.int64]: ...
def greedy_coreset(
    features: Tensor | NDArray[Any], size: int, start: int = 0, progress: Progress | None = None
) -> Tensor | NDArray[np.int64]:
    """Choose rows so that every row is near a chosen one: always the farthest from all chosen.

    features [m, c] -> indices int64 [size], in the order chosen, the first being `start`; an array
    for an array, a tensor for a tensor. The choice is that of the serial algorithm, made in
    batches: the rows that are farthest now are the only ones that can be chosen next, as long as
    the best of them is still farther than every row outside the batch was; only then all rows are
    updated, with one matrix product. `progress(done, size)` is called after each batch.

    Raises SettingError if size is not between 1 and m or start not between 0 and m - 1.
    """
    rows = to_float(features)
    count = len(rows)
    _check(rows, size, start)
    rows = rows - rows.mean(0)
    norms = rows.square().sum(1)
    # Squared distance of every row to the nearest chosen one; -1 for chosen rows.
    gaps = rows.new_full((count,), torch.inf)
    chosen = torch.tensor([start], device=rows.device)
    picked = [chosen]
    total = 1
    while True:
        _update(gaps, rows, norms, chosen)
        if progress is not None:
            progress(total, size)
        if total == size:
            indices = torch.cat(picked)
            return indices.numpy() if isinstance(features, np.ndarray) else indices
        chosen = _choose_batch(gaps, rows, norms, size - total)
        picked.append(chosen)
        total += len(chosen)


def _check(rows: Tensor, size: int, start: int = 0) -> None:
    """Raise SettingError if so many of the rows cannot be chosen."""
    if rows.ndim != 2 or not 1 <= size <= len(rows) or not 0 <= start < len(rows):
        raise SettingError(
            f"cannot choose {size} of features {tuple(rows.shape)} from row {start}: features must "
            "be [m, c], size 1 to m, start 0 to m - 1"
        )


def _update(gaps: Tensor, rows: Tensor, norms: Tensor, chosen: Tensor) -> None:
    """Lower the gaps of all rows to the newly chosen ones, in place, in tiles."""
    across = rows[chosen].T.contiguous()
    tile = max(1, (1 << 22) // len(chosen))
    for i in range(0, len(rows), tile):
        squared = torch.addmm(norms[chosen], rows[i : i + tile], across, alpha=-2).amin(1)
        squared = (squared + norms[i : i + tile]).clamp_min(0)
        torch.minimum(gaps[i : i + tile], squared, out=gaps[i : i + tile])
    gaps[chosen] = -1


def _choose_batch(gaps: Tensor, rows: Tensor, norms: Tensor, most: int) -> Tensor:
    """The next rows that the serial algorithm would choose; at least one, at most `most`."""
    size = min(_BATCH, int((gaps >= 0).sum()))
    top = gaps.topk(min(size + 1, len(gaps)))
    # Everything outside the batch is at most this far, now and later.
    outside = float(top.values[size]) if len(top.values) > size else -1.0
    batch = top.indices[:size].sort().values  # in row order, so that argmax takes the first
    inside = gaps[batch].clone()
    members = rows[batch]
    squared = norms[batch, None] + norms[batch] - 2 * members @ members.T
    chosen: list[int] = []
    while len(chosen) < min(most, size):
        best = int(inside.argmax())
        if chosen and float(inside[best]) <= outside:
            break
        chosen.append(best)
        inside = torch.minimum(inside, squared[best].clamp_min(0))
        inside[best] = -1
    return batch[torch.tensor(chosen, device=batch.device)]


def cover_in_order(rows: Tensor, size: int) -> Tensor:
    """Choose rows so that every row is near a chosen one, and a row more or less changes little.

    rows float [m, c], those first that should rather be chosen -> indices int64 [size], ascending.
    One row after the other is taken if it is farther than a radius from all that were: a net, whose
    rows are as far apart as those that they cover can be from them. The radius is the last of
    descending powers of 2^(1/4) before more than `size` are taken; the first of the other rows make
    up the number.

    Raises SettingError if size is not between 1 and m.
    """
    _check(rows, size)
    net = _find_net(rows, 0.0, size)
    if net is None:  # there are more different rows
        centres = rows[greedy_coreset(rows, size)]
        reach = max(float(nearest(part, centres, 1)[0].max()) for part in torch.split(rows, _BATCH))
        # Balls of the reach around the centres hold all rows, and none of them two that are twice
        # as far apart: so far apart there are no more rows than centres.
        step = math.ceil(_RADIUS_STEPS * math.log2(2 * max(reach, _SMALLEST)))
        finer = _find_net(rows, 2 ** (step / _RADIUS_STEPS), size)
        while finer is not None:
            net, step = finer, step - 1
            finer = _find_net(rows, 2 ** (step / _RADIUS_STEPS), size)
    taken: Tensor = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    taken[torch.tensor(net or [], dtype=torch.int64)] = True
    others = (~taken).nonzero()[:, 0]
    taken[others[: size - int(taken.sum())]] = True
    return taken.nonzero()[:, 0]


def _find_net(rows: Tensor, radius: float, most: int) -> list[int] | None:
    """Rows each farther than a radius from those before it; None: they are more than `most`."""
    net: list[int] = []
    for start in range(0, len(rows), _BATCH):
        part = rows[start : start + _BATCH]
        near = torch.zeros(len(part), dtype=torch.bool, device=rows.device)
        if net:
            distances: Any = nearest(part, rows[net], 1)[0]
            near = distances[:, 0] <= radius
        left = (~near).nonzero()[:, 0]
        close = torch.cdist(part[left], part[left], compute_mode=_BY_DIFFERENCES) <= radius
        covered = torch.zeros(len(left), dtype=torch.bool, device=rows.device)
        for i, row in enumerate((start + left).tolist()):
            if not covered[i]:
                net.append(row)
                covered |= close[i]
        if len(net) > most:
            return None
    return net
