"""Exact nearest neighbours by Euclidean distance, in bounded memory.

Squared distances come from matrix products (|q|^2 - 2 q.b + |b|^2), by faiss on the CPU and torch
elsewhere, on features centred on the bank, since the subtraction loses digits in proportion to the
norms. They only pick candidates: the distances that are returned are those of the differences
themselves.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, overload

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import SettingError

QUERY_TILE = 3136  # queries of a product
_BANK_TILE = 8192  # bank rows of a product
_MARGIN = 8  # candidates beyond k, so that rounding loses no neighbour
_GATHER = 1 << 19  # values gathered at a time for exact distances (2 MiB, which stay in cache)
_CANCELLED = 1e-3  # of a squared norm; less than that, float32 products do not tell apart
_PAIRS = 1 << 19  # of a query and a block, searched at a time (40 MiB)


@overload
def nearest(queries: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]: ...


@overload
def nearest(
    queries: NDArray[Any], bank: NDArray[Any], k: int
) -> tuple[NDArray[Any], NDArray[np.int64]]: ...


def nearest(
    queries: Tensor | NDArray[Any], bank: Tensor | NDArray[Any], k: int
) -> tuple[Tensor, Tensor] | tuple[NDArray[Any], NDArray[np.int64]]:
    """Find the k nearest rows of the bank for each query.

    queries [q, c], bank [m, c] -> distances [q, k] ascending, indices int64 [q, k]; arrays for
    arrays, tensors for tensors, on the queries' device; float32, or float64 if the input is.
    No array of size q x m is ever made.

    Raises SettingError if k is not between 1 and m, or the shapes do not fit.
    """
    _check_shapes(queries, bank)
    if not 1 <= k <= len(bank):
        raise SettingError(f"k={k} neighbours of a bank of {len(bank)}: choose 1 to {len(bank)}")
    q, b = to_float(queries), to_float(bank)
    b = b.to(q.device)
    centre = b.mean(0)
    q, b = q - centre, b - centre
    distances = q.new_empty(len(q), k)
    indices = torch.empty(len(q), k, dtype=torch.int64, device=q.device)
    find = _find_by_faiss if _fits_faiss(q) and _fits_faiss(b) else _find_by_torch
    for part in torch.split(torch.arange(len(q), device=q.device), QUERY_TILE):
        candidates = find(q[part], b, min(k + _MARGIN, len(b)))
        distances[part], indices[part] = _rank(q[part], b, candidates, k)
    if isinstance(queries, np.ndarray):
        return distances.numpy(), indices.numpy()
    return distances, indices


def nearest_inside(
    queries: Tensor, bank: Tensor, k: int, list_of_row: Tensor, outside: Tensor
) -> tuple[Tensor, Tensor]:
    """Find the k nearest rows of some lists for each query, exactly.

    queries float32 [q, c], bank float32 [m, c], centred; list_of_row int64 [m]; outside bool
    [q, l]: lists whose rows do not count. -> as `nearest`; where the lists hold fewer rows, the
    last are -1, at infinity.
    """
    found = [
        _rank_inside(queries[part], bank, k, list_of_row, outside[part])
        for part in torch.split(torch.arange(len(queries), device=queries.device), QUERY_TILE)
    ]
    distances, rows = (torch.cat(parts) for parts in zip(*found, strict=True))
    return distances, rows


def _rank_inside(
    queries: Tensor, bank: Tensor, k: int, list_of_row: Tensor, outside: Tensor
) -> tuple[Tensor, Tensor]:
    def hidden(rows: slice) -> Tensor:
        return outside[:, list_of_row[rows]]

    rows = _find_by_torch(queries, bank, min(k + _MARGIN, len(bank)), hidden)
    every = _exact_distances(queries, bank, rows)
    every.masked_fill_(outside.gather(1, list_of_row[rows]), torch.inf)
    distances, order = every.topk(k, dim=1, largest=False)
    return distances, rows.gather(1, order).masked_fill_(distances.isinf(), -1)


def to_float(values: Tensor | NDArray[Any]) -> Tensor:
    """Return any array of numbers as a tensor of float32, or of float64 if it is one."""
    tensor = torch.as_tensor(values)
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def use_torch_threads() -> None:
    """Have faiss use as many threads as torch does."""
    faiss.omp_set_num_threads(torch.get_num_threads())


def _check_shapes(queries: Tensor | NDArray[Any], bank: Tensor | NDArray[Any]) -> None:
    if queries.ndim != 2 or bank.ndim != 2 or queries.shape[1] != bank.shape[1]:
        raise SettingError(
            f"queries {tuple(queries.shape)} and bank {tuple(bank.shape)} must be [q, c] and [m, c]"
        )


def _fits_faiss(rows: Tensor) -> bool:
    return rows.device.type == "cpu" and rows.dtype == torch.float32


def _find_by_faiss(queries: Tensor, bank: Tensor, k: int) -> Tensor:
    """Return the k rows that products find nearest, int64 [q, k], in no order."""
    use_torch_threads()
    _, rows = faiss.knn(queries.numpy(), bank.numpy(), k)
    return torch.from_numpy(rows)


def _find_by_torch(
    queries: Tensor, bank: Tensor, k: int, hidden: Callable[[slice], Tensor] | None = None
) -> Tensor:
    """Return the k rows that products find nearest, int64 [q, k], in no order.

    hidden(rows) says which of them do not count for which query, bool [q, rows].
    """
    best = queries.new_empty(len(queries), 0)
    indices = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for start in range(0, len(bank), _BANK_TILE):
        rows = bank[start : start + _BANK_TILE]
        # |q|^2 is the same for all rows, so it does not change the order.
        partial = torch.addmm(rows.square().sum(1), queries, rows.T, alpha=-2)
        if hidden is not None:
            partial.masked_fill_(hidden(slice(start, start + len(rows))), torch.inf)
        values, found = partial.topk(min(k, len(rows)), dim=1, largest=False, sorted=False)
        best = torch.cat([best, values], 1)
        indices = torch.cat([indices, found + start], 1)
        if best.shape[1] > k:
            best, chosen = best.topk(k, dim=1, largest=False, sorted=False)
            indices = indices.gather(1, chosen)
    return indices


def _rank(queries: Tensor, bank: Tensor, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k nearest of rows int64 [q, j] of the bank, by exact distances, ascending."""
    distances, order = _exact_distances(queries, bank, rows).topk(k, dim=1, largest=False)
    return distances, rows.gather(1, order)


def _exact_distances(queries: Tensor, bank: Tensor, indices: Tensor) -> Tensor:
    """Return distances [q, j] of queries [q, c] to bank[indices [q, j]], by direct differences."""
    distances = torch.empty(indices.shape, dtype=queries.dtype, device=queries.device)
    width, channels = indices.shape[1], queries.shape[1]
    step = max(1, _GATHER // max(1, width * channels))
    for i in range(0, len(queries), step):
        rows = bank.index_select(0, indices[i : i + step].reshape(-1)).view(-1, width, channels)
        rows -= queries[i : i + step, None]
        torch.linalg.vector_norm(rows, dim=2, out=distances[i : i + step])
    return distances


class Blocks:
    """A bank in contiguous blocks of rows (one an image), each searched for its nearest row.

    rows [m, c] float, in blocks given by offsets [n + 1], none empty. The rows should be centred
    (mean about 0), as the subtraction of squared norms loses digits otherwise.
    """

    def __init__(self, rows: Tensor, offsets: Sequence[int]) -> None:
        self.rows = rows
        self.bounds = list(pairwise(offsets))

    @property
    def tile(self) -> int:
        """Return how many queries to pass to `nearest_of_each` at a time."""
        return max(1, min(QUERY_TILE, _PAIRS // len(self.bounds)))

    def nearest_of_each(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Find the nearest row of every block for queries [q, c]; exact.

        -> distances [q, n], rows int64 [q, n].
        """
        found = [self._nearest_row(queries, start, stop) for start, stop in self.bounds]
        rows = torch.stack(found, 1)
        distances = _exact_distances(queries, self.rows, rows)
        # Products in float32 do not tell rows apart that are this near.
        close = distances.square() < _CANCELLED * queries.square().sum(1, keepdim=True)
        close &= distances > 0
        for block in close.any(0).nonzero()[:, 0].tolist():
            which = close[:, block].nonzero()[:, 0]
            nearer = self._nearest_row(queries[which].double(), *self.bounds[block])
            rows[which, block] = nearer
            exact = _exact_distances(queries[which], self.rows, nearer[:, None])
            distances[which, block] = exact[:, 0]
        return distances, rows

    def _nearest_row(self, queries: Tensor, start: int, stop: int) -> Tensor:
        """Return the number of the row, from start to stop, nearest to each query, int64 [q]."""
        rows = self.rows[start:stop].to(queries.dtype)
        return torch.addmm(rows.square().sum(1), queries, rows.T, alpha=-2).argmin(1) + start
