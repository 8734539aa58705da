"""Exact nearest neighbours by Euclidean distance, in bounded memory, on any device.

Squared distances come from matrix products (|q|^2 - 2 q.b + |b|^2), on features centred on the
bank, since the subtraction loses digits in proportion to the norms. They only pick candidates: the
distances that are returned are those of the differences themselves.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .errors import SettingError

QUERY_TILE = 3136  # queries a product; with one image of the bank the tile stays in cache
_BANK_TILE = 8192  # bank rows a product in `nearest`
_MARGIN = 8  # candidates beyond k, so that rounding loses no neighbour
_GATHER = 1 << 24  # values gathered at a time for exact distances (64 MiB)


def nearest(
    queries: Tensor | NDArray[Any], bank: Tensor | NDArray[Any], k: int
) -> tuple[Tensor, Tensor] | tuple[NDArray[Any], NDArray[Any]]:
    """Find the k nearest rows of the bank for each query.

    queries [q, c], bank [m, c] -> distances [q, k] ascending, indices int64 [q, k]; arrays for
    arrays, tensors for tensors, on the queries' device; float32, or float64 if the input is.
    No array of size q x m is ever made.

    Raises SettingError if k is not between 1 and m, or the shapes do not fit.
    """
    if queries.ndim != 2 or bank.ndim != 2 or queries.shape[1] != bank.shape[1]:
        raise SettingError(
            f"queries {tuple(queries.shape)} and bank {tuple(bank.shape)} must be [q, c] and [m, c]"
        )
    if not 1 <= k <= len(bank):
        raise SettingError(f"k={k} neighbours of a bank of {len(bank)}: choose 1 to {len(bank)}")
    q, b = to_float(queries), to_float(bank)
    b = b.to(q.device)
    centre = b.mean(0)
    q, b = q - centre, b - centre
    parts = [_nearest_tile(q[i : i + QUERY_TILE], b, k) for i in range(0, len(q), QUERY_TILE)]
    distances = torch.cat([d for d, _ in parts]) if parts else q.new_empty(0, k)
    indices = torch.cat([i for _, i in parts]) if parts else q.new_empty(0, k).long()
    if isinstance(queries, np.ndarray):
        return distances.numpy(), indices.numpy()
    return distances, indices


def to_float(values: Tensor | NDArray[Any]) -> Tensor:
    """Any array of numbers -> the same as a tensor of float32, or of float64 if it is one."""
    tensor = torch.as_tensor(values)
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def _nearest_tile(queries: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`nearest` for one tile of centred queries."""
    keep = min(k + _MARGIN, len(bank))
    best = queries.new_full((len(queries), 0), 0)
    indices = torch.empty((len(queries), 0), dtype=torch.int64, device=queries.device)
    for start in range(0, len(bank), _BANK_TILE):
        rows = bank[start : start + _BANK_TILE]
        # |q|^2 is the same for all rows, so it does not change the order.
        partial = torch.addmm(rows.square().sum(1), queries, rows.T, alpha=-2)
        values, found = partial.topk(min(keep, len(rows)), dim=1, largest=False, sorted=False)
        best = torch.cat([best, values], 1)
        indices = torch.cat([indices, found + start], 1)
        if best.shape[1] > keep:
            best, chosen = best.topk(keep, dim=1, largest=False, sorted=False)
            indices = indices.gather(1, chosen)
    exact = _exact_distances(queries, bank, indices)
    distances, order = exact.topk(k, dim=1, largest=False)
    return distances, indices.gather(1, order)


def _exact_distances(queries: Tensor, bank: Tensor, indices: Tensor) -> Tensor:
    """Distances [q, j] of queries [q, c] to bank[indices [q, j]], by direct differences."""
    distances = torch.empty(indices.shape, dtype=queries.dtype, device=queries.device)
    step = max(1, _GATHER // max(1, indices.shape[1] * queries.shape[1]))
    for i in range(0, len(queries), step):
        differences = bank[indices[i : i + step]] - queries[i : i + step, None]
        torch.linalg.vector_norm(differences, dim=2, out=distances[i : i + step])
    return distances


class BlockBank:
    """A bank in blocks (one an image) that is asked for the nearest row of each block.

    rows [m, c] float32, in contiguous blocks given by offsets [n + 1]. The rows should be centred
    (mean about 0), as the subtraction of squared norms loses digits otherwise.
    """

    def __init__(self, rows: Tensor, offsets: Sequence[int]) -> None:
        self.rows = rows
        self.offsets = list(offsets)
        self.norms = rows.square().sum(1)

    def nearest_blocks(
        self, queries: Tensor, k: int, own: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Find, for each query, the k blocks whose nearest row is nearest, and that row.

        queries [q, c], own int64 [q]: a block to leave out for each query -> distances [q, k]
        ascending, rows int64 [q, k], of k different blocks.

        Raises SettingError if fewer than k blocks are left.
        """
        left = len(self.offsets) - 1 - int(own is not None)
        if not 1 <= k <= left:
            raise SettingError(f"k={k} images to compare with, but there are {left} others")
        parts = []
        for i in range(0, len(queries), QUERY_TILE):
            tile = queries[i : i + QUERY_TILE]
            minima = self._block_minima(tile)
            if own is not None:
                minima.scatter_(0, own[None, i : i + QUERY_TILE].to(tile.device), torch.inf)
            chosen = minima.topk(k, dim=0, largest=False).indices.T
            parts.append(self._refine(tile, chosen, k))
        return torch.cat([d for d, _ in parts]), torch.cat([r for _, r in parts])

    def _block_minima(self, queries: Tensor) -> Tensor:
        """Smallest |b|^2 - 2 q.b of each block [blocks, q]: a tile a block, reduced in cache."""
        minima = queries.new_empty(len(self.offsets) - 1, len(queries))
        across = queries.T.contiguous()
        for block, (start, stop) in enumerate(zip(self.offsets, self.offsets[1:], strict=False)):
            norms = self.norms[start:stop, None]
            tile = torch.addmm(norms, self.rows[start:stop], across, alpha=-2)
            minima[block] = tile.amin(0)
        return minima

    def _refine(self, queries: Tensor, chosen: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Nearest row in each of the chosen blocks [q, k] of each query, nearest first."""
        count, width = chosen.shape
        flat = chosen.reshape(-1)
        order = flat.argsort(stable=True)
        sizes = torch.bincount(flat, minlength=len(self.offsets) - 1).tolist()
        rows = torch.empty(count * width, dtype=torch.int64, device=queries.device)
        done = 0
        for block, size in enumerate(sizes):
            if size == 0:
                continue
            places = order[done : done + size]
            start, stop = self.offsets[block], self.offsets[block + 1]
            asked = queries[places // width]
            partial = torch.addmm(self.norms[start:stop], asked, self.rows[start:stop].T, alpha=-2)
            rows[places] = partial.argmin(1) + start
            done += size
        rows = rows.view(count, width)
        distances, best = _exact_distances(queries, self.rows, rows).topk(k, 1, largest=False)
        return distances, rows.gather(1, best)
