"""Exact nearest neighbours by Euclidean distance, in bounded memory, on any device.

Squared distances come from matrix products (|q|^2 - 2 q.b + |b|^2), on features centred on the
bank, since the subtraction loses digits in proportion to the norms. They only pick candidates: the
distances that are returned are those of the differences themselves. Where the processor has the
instructions, products of 8 bits do the same (`screening`), and only queries that these cannot prove
go by products of float32.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import kernels, screening
from .errors import SettingError

QUERY_TILE = 3136  # queries a product; with one image of the bank the tile stays in cache
_BANK_TILE = 8192  # bank rows a product in `nearest`
_MARGIN = 8  # candidates beyond k, so that rounding loses no neighbour
_GATHER = 1 << 19  # values gathered at a time for exact distances (2 MiB, which stay in cache)
_SCREENED = 1 << 20  # distances from which on screening pays
GAP_SHARE = 8  # one in so many blocks may lie before a gap
_PROBE = 192  # queries; if screening proves fewer than half of the first ones, it is given up
_CANCELLED = 1e-3  # of a squared norm; less than that, float32 products do not tell apart
_PAIRS = 1 << 19  # of a query and a block, searched at a time where all blocks are (40 MiB)


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
    distances, indices = _search(q, b, k)
    if isinstance(queries, np.ndarray):
        return distances.numpy(), indices.numpy()
    return distances, indices


def _check_shapes(queries: Tensor | NDArray[Any], bank: Tensor | NDArray[Any]) -> None:
    if queries.ndim != 2 or bank.ndim != 2 or queries.shape[1] != bank.shape[1]:
        raise SettingError(
            f"queries {tuple(queries.shape)} and bank {tuple(bank.shape)} must be [q, c] and [m, c]"
        )


def to_float(values: Tensor | NDArray[Any]) -> Tensor:
    """Any array of numbers -> the same as a tensor of float32, or of float64 if it is one."""
    tensor = torch.as_tensor(values)
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def _search(queries: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`nearest` for centred tensors."""
    distances = queries.new_empty(len(queries), k)
    indices = torch.empty(len(queries), k, dtype=torch.int64, device=queries.device)
    todo = torch.arange(len(queries), device=queries.device)
    if 4 * k <= len(bank) and len(queries) * len(bank) >= _SCREENED and _may_screen(bank):
        screen = screening.Bank(bank, [0, len(bank)])
        unproven = []
        for part in (todo[:_PROBE], todo[_PROBE:]):
            found = screen.nearest(queries[part], k)
            distances[part], indices[part] = found.distances, found.rows
            unproven.append(part[~found.proven])
            if 2 * len(unproven[0]) > _PROBE:
                unproven = [todo]
                break
        todo = torch.cat(unproven)
    for part in torch.split(todo, QUERY_TILE):
        distances[part], indices[part] = _nearest_tile(queries[part], bank, k)
    return distances, indices


def _may_screen(rows: Tensor) -> bool:
    return (
        screening.available()
        and rows.device.type == "cpu"
        and rows.dtype == torch.float32
        and len(rows) <= screening.MOST_ROWS
        and rows.shape[1] <= screening.MOST_CHANNELS
    )


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
    return _rank(queries, bank, indices, k)


def _rank(queries: Tensor, bank: Tensor, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest of rows [q, j] of the bank, by exact distances, ascending."""
    distances, order = _exact_distances(queries, bank, rows).topk(k, dim=1, largest=False)
    return distances, rows.gather(1, order)


def _exact_distances(queries: Tensor, bank: Tensor, indices: Tensor) -> Tensor:
    """Distances [q, j] of queries [q, c] to bank[indices [q, j]], by direct differences."""
    distances = torch.empty(indices.shape, dtype=queries.dtype, device=queries.device)
    width, channels = indices.shape[1], queries.shape[1]
    step = max(1, _GATHER // max(1, width * channels))
    for i in range(0, len(queries), step):
        rows = bank.index_select(0, indices[i : i + step].reshape(-1)).view(-1, width, channels)
        rows -= queries[i : i + step, None]
        torch.linalg.vector_norm(rows, dim=2, out=distances[i : i + step])
    return distances


@overload
def nearest_per_block(queries: Tensor, bank: Tensor, offsets: Sequence[int]) -> Tensor: ...


@overload
def nearest_per_block(
    queries: NDArray[Any], bank: NDArray[Any], offsets: Sequence[int]
) -> NDArray[Any]: ...


def nearest_per_block(
    queries: Tensor | NDArray[Any], bank: Tensor | NDArray[Any], offsets: Sequence[int]
) -> Tensor | NDArray[Any]:
    """Find the distance of each query to the nearest row of every block of the bank.

    queries [q, c], bank [m, c]; block b is rows offsets[b] to offsets[b + 1], offsets [n + 1]
    -> distances [q, n]; kind, device and dtype as in `nearest`. Exact; beside the result, memory
    is bounded. `Blocks.nearest_of_each` does the same for a bank that is kept.

    Raises SettingError if the shapes do not fit, or a block has no row.
    """
    _check_shapes(queries, bank)
    bounds = [int(offset) for offset in offsets]
    ends = (bounds[:1], bounds[-1:]) == ([0], [len(bank)])
    if not ends or any(start >= stop for start, stop in pairwise(bounds)):
        raise SettingError(
            f"offsets of blocks must ascend from 0 to {len(bank)}, the number of rows; "
            "no block may be empty"
        )
    q, b = to_float(queries), to_float(bank)
    b = b.to(q.device)
    centre = b.mean(0)
    blocks = Blocks(b - centre, bounds)
    parts = [blocks.nearest_of_each(part)[0] for part in torch.split(q - centre, blocks.tile)]
    distances = torch.cat(parts)
    return distances.numpy() if isinstance(queries, np.ndarray) else distances


class Blocks:
    """Rows in contiguous blocks (one an image), each of which can be searched by itself.

    rows [m, c] float, in blocks given by offsets [n + 1], none empty. The rows should be centred
    (mean about 0), as the subtraction of squared norms loses digits otherwise.
    """

    def __init__(self, rows: Tensor, offsets: Sequence[int]) -> None:
        self.rows = rows
        self.offsets = list(offsets)
        self.screen = screening.Bank(rows, self.offsets) if _may_screen(rows) else None

    @property
    def tile(self) -> int:
        """How many queries `nearest_of_each` should be asked for at a time."""
        return max(1, min(QUERY_TILE, _PAIRS // (len(self.offsets) - 1)))

    def block(self, number: int) -> Tensor:
        """The rows of one block."""
        return self.rows[self.offsets[number] : self.offsets[number + 1]]

    def nearest_of_each(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Find the nearest row of every block for queries [q, c].

        -> distances [q, n], rows int64 [q, n].
        """
        every = torch.arange(len(self.offsets) - 1, device=queries.device)
        return self._search(queries, every.expand(len(queries), -1))

    def _search(self, queries: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Distance to, and number of, the nearest row of each chosen block int64 [q, j]."""
        which = torch.arange(len(chosen), device=chosen.device).repeat_interleave(chosen.shape[1])
        distances, rows = self.nearest_in_blocks(queries, which, chosen.reshape(-1))
        return distances.view(chosen.shape), rows.view(chosen.shape)

    def nearest_in_blocks(
        self, queries: Tensor, which: Tensor, blocks: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Find the nearest row of block blocks[p] for query which[p] of [q, c], both int64 [p].

        -> distances [p], rows int64 [p].
        """
        if self.screen is None:
            rows = self._nearest_rows(queries, which, blocks)
            distances = self._exact(queries, which, rows)
            cancelled = distances.square() < _CANCELLED * queries.square().sum(1)[which]
            left = (cancelled & (distances > 0)).nonzero()[:, 0]
        else:
            found = self.screen.nearest_in_blocks(queries, which, blocks)
            distances, rows = found.distances, found.rows
            left = (~found.proven).nonzero()[:, 0]
        if len(left):
            rows[left] = self._nearest_rows(queries.double(), which[left], blocks[left])
            distances[left] = self._exact(queries, which[left], rows[left])
        return distances, rows

    def _exact(self, queries: Tensor, which: Tensor, rows: Tensor) -> Tensor:
        """Distances [p] of query which[p] to row rows[p]."""
        step = max(1, _GATHER // queries.shape[1])
        parts = [
            _exact_distances(queries[which[i : i + step]], self.rows, rows[i : i + step, None])
            for i in range(0, len(which), step)
        ]
        return torch.cat(parts)[:, 0] if parts else queries.new_empty(0)

    def _nearest_rows(self, queries: Tensor, which: Tensor, blocks: Tensor) -> Tensor:
        """The row of block blocks[p] that is nearest to query which[p], int64 [p]."""
        order = blocks.argsort(stable=True)  # each block is searched once, for all its queries
        sizes = torch.bincount(blocks, minlength=len(self.offsets) - 1).tolist()
        found = torch.empty_like(blocks)
        for block, places in enumerate(torch.split(order, sizes)):
            if len(places):
                rows = self.block(block).to(queries.dtype)
                norms = rows.square().sum(1)
                tile = torch.addmm(norms, queries[which[places]], rows.T, alpha=-2)
                found[places] = tile.argmin(1) + self.offsets[block]
        return found


@dataclass(frozen=True)
class Candidates:
    """By what a query's result can be told when a bank changes a little.

    blocks int64 [q, s] and squares [q, s]: those nearest by the sample, ascending, and the squares
    of these distances; before int64 [q]: how many of them lie before the last gap; distances [q, j]
    and rows int64 [q, j]: exactly, of the next j, which were searched.
    """

    blocks: Tensor
    squares: Tensor
    before: Tensor
    distances: Tensor
    rows: Tensor


class BlockBank(Blocks):
    """Blocks that are asked for the nearest row of the nearest ones.

    A first pass over a sample of the rows, rounded to 8 bits, picks candidate blocks for each
    query; the candidates are then searched row by row, exactly. With neighbouring patches as alike
    as those of images are, this comes close to searching every row of every block at little more
    than the cost of the sample. The rounding is part of the method: where the processor has no
    8-bit products, the same numbers are multiplied as float32, so that all machines choose alike.

    sample int64 [s], ascending, with a row of every block.
    """

    def __init__(self, rows: Tensor, offsets: Sequence[int], sample: Tensor) -> None:
        super().__init__(rows, offsets)
        sampled = rows if len(sample) == len(rows) else rows[sample]
        bounds = torch.tensor(self.offsets, device=sample.device)
        self.sample_offsets: list[int] = torch.searchsorted(sample, bounds).tolist()
        self.sample_screen = self.screen
        if self.screen is not None and sampled is not rows:
            self.sample_screen = screening.Bank(sampled, self.sample_offsets)
        if self.screen is None:
            self.sample_halves = sampled.square().sum(1) / 2
            self.sample_rows = screening.round_rows(sampled)

    def nearest_blocks(
        self,
        queries: Tensor,
        k: int,
        candidates: int,
        left_out: Tensor | None = None,
        gap: float = math.inf,
        kept: int = 0,
    ) -> tuple[Tensor, Tensor, Candidates]:
        """Find, for each query, the k blocks whose nearest row is nearest, and that row.

        queries [q, c]; candidates: blocks that are searched row by row (at least k); left_out
        bool [q, blocks]: blocks not to be compared with. Of the blocks that are left in order of
        distance, those before the last gap are left out too: where the next is `gap` times as far,
        at least k and at most an eighth of all blocks lie before it, and k lie behind it.
        -> distances [q, k] ascending, rows int64 [q, k], of k different blocks; and by what these
        were chosen, at least so many `kept` blocks.

        Raises SettingError if fewer than k blocks are left for a query.
        """
        blocks = len(self.offsets) - 1
        left = blocks if left_out is None else int((~left_out).sum(1).min())
        if not 1 <= k <= left:
            raise SettingError(f"k={k} images to compare with, but there are {left} others")
        count = min(max(k, candidates), blocks)  # whatever other queries leave out
        most = most_before_gap(blocks, k, gap)
        some = min(max(most + count, kept), blocks)
        numbers, squares, before = self._choose(queries, k, some, most, left_out, gap)
        # Where so many lie before the gap that fewer are left, the last are nearest of all.
        places = before.clamp(max=some - count)[:, None] + torch.arange(count, device=before.device)
        distances, rows = self._search(queries, numbers.gather(1, places))
        unfit = squares.gather(1, places).isinf() | (places < before[:, None])
        distances.masked_fill_(unfit, torch.inf)
        nearest_, nearest_rows = self.rank(distances, rows, k, gap)
        return nearest_, nearest_rows, Candidates(numbers, squares, before, distances, rows)

    def rank(
        self,
        distances: Tensor,
        rows: Tensor,
        k: int,
        gap: float,
        of_a_kind: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The k nearest of the searched blocks, behind a gap, from their distances [q, j].

        of_a_kind bool [q]: for which there is no gap.
        """
        # The sample of a block may lack the row that its gap is seen by.
        most = most_before_gap(len(self.offsets) - 1, k, gap)
        if of_a_kind is None:
            of_a_kind = torch.zeros(len(distances), dtype=torch.bool, device=distances.device)
        if distances.device.type == "cpu" and kernels.library() is not None:
            return _rank_fast(distances, rows, k, most, gap, of_a_kind)
        distances, best = distances.sort(dim=1, stable=True)
        start = last_gap(distances.T, k, most, gap).masked_fill(of_a_kind, 0)
        places = start[:, None] + torch.arange(k, device=start.device)
        return distances.gather(1, places), rows.gather(1, best.gather(1, places))

    def _choose(
        self,
        queries: Tensor,
        k: int,
        count: int,
        most: int,
        left_out: Tensor | None,
        gap: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The blocks that are nearest by the sample, int64 [q, count], and the squares of their
        distances [q, count], ascending; infinite for blocks that are left out, where not enough
        others are. And how many of them lie before the last gap, int64 [q]."""
        if self.sample_screen is not None:
            if left_out is None:
                blocks = len(self.offsets) - 1
                left_out = torch.zeros(len(queries), blocks, dtype=torch.bool)
            return self.sample_screen.choose_blocks(queries, left_out, k, count, most, gap)
        parts = []
        for i in range(0, len(queries), QUERY_TILE):
            squares = self.block_squares(queries[i : i + QUERY_TILE])
            if left_out is not None:
                squares.masked_fill_(left_out[i : i + QUERY_TILE].T, torch.inf)
            # Of blocks at one distance the first are taken, as the kernel does.
            values, numbers = squares.sort(dim=0, stable=True)
            before = last_gap(values, k, most, gap**2)
            parts.append((numbers[:count].T, values[:count].T, before))
        numbers, values, before = (torch.cat(part) for part in zip(*parts, strict=True))
        return numbers, values, before

    def block_squares(self, queries: Tensor, blocks: Tensor | None = None) -> Tensor:
        """Squared distances of queries [q, c] to the nearest sampled row of blocks int64 [b], both
        rounded, [b, q]; None: of all."""
        if blocks is None:
            blocks = torch.arange(len(self.offsets) - 1)
        if self.sample_screen is not None:
            return self.sample_screen.block_squares(queries, blocks)
        minima = queries.new_empty(len(blocks), len(queries))
        across = screening.round_rows(queries).T.contiguous()
        for i, block in enumerate(blocks.tolist()):
            part = slice(*self.sample_offsets[block : block + 2])
            halves, rows = self.sample_halves[part, None], self.sample_rows[part]
            minima[i] = torch.addmm(halves, rows, across, alpha=-1).amin(0)  # while in cache
        return minima.mul_(2).add_(queries.square().sum(1)).clamp_(min=0)


def _rank_fast(
    distances: Tensor, rows: Tensor, k: int, most: int, gap: float, of_a_kind: Tensor
) -> tuple[Tensor, Tensor]:
    """`BlockBank.rank`; most: how many may lie before a gap."""
    distances, rows = distances.contiguous(), rows.contiguous()
    nearest, nearest_rows = distances.new_empty(len(rows), k), rows.new_empty(len(rows), k)
    kernels.share_out(
        lambda begin, end: kernels.call(
            "rank_blocks", distances, rows, begin, end, rows.shape[1], k, most, float(gap),
            of_a_kind, nearest, nearest_rows,
        ),
        len(rows),
        QUERY_TILE,
    )  # fmt: skip
    return nearest, nearest_rows


def most_before_gap(blocks: int, k: int, gap: float) -> int:
    """How many blocks may lie before a gap; 0: there are no gaps."""
    most = blocks // GAP_SHARE
    return most if most >= k and gap < math.inf else 0


def last_gap(values: Tensor, k: int, most: int, gap: float) -> Tensor:
    """How many of ascending values [j, q] lie before the last gap, int64 [q]; 0 if there is none.

    A gap: the next value is more than `gap` times as large. At least k and at most `most` values
    lie before it, and k finite ones behind it.
    """
    ranks = torch.arange(1, len(values), device=values.device)[:, None]
    finite = values.isfinite().sum(0)
    gaps = (values[1:] > gap * values[:-1]) & (ranks >= k) & (ranks <= most) & (ranks + k <= finite)
    return torch.where(gaps, ranks, 0).amax(0) if len(ranks) else finite * 0
