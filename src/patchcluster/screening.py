"""Exact nearest neighbours by way of 8-bit products, where the processor has the instructions.

`kernels.c` rounds rows to 8 bits and multiplies them; what was rounded off is known, so that for
nearly every query it is proven which few rows can be its nearest. Distances are then taken from the
float32 rows. Queries that it cannot prove, because rounding hides which rows are nearest, are left
to the caller. The library is compiled when the package is built (`hatch_build.py`); without it, or
without AVX512-VNNI, `available` says no, and everything goes by float32 products.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

from . import kernels
from .kernels import call, share_out

MOST_CHANNELS = 1 << 16  # so that sums of 8-bit products fit 32 bits
MOST_ROWS = 1 << 31
_LANES = 16  # rows in a panel
_QUERIES = 192  # that a thread takes at a time
_PANELS = 512
_PARTS = 16  # of the blocks, that threads take one at a time
_SMALLEST = 1e-30  # scale of a row; `SMALLEST` of kernels.c

_Pointer, _Int = ctypes.c_void_p, ctypes.c_int64


class _Bank(ctypes.Structure):
    """`Bank` of kernels.c."""

    _fields_ = (
        *((name, _Pointer) for name in ("words", "halves", "scales", "norms", "left")),
        *((name, _Pointer) for name in ("initial", "first", "rows")),
        ("steps", _Int),
        ("channels", _Int),
    )


class _Queries(ctypes.Structure):
    """`Queries` of kernels.c."""

    _fields_ = tuple(
        (name, _Pointer) for name in ("words", "rows", "halves", "scales", "norms", "left")
    )


def available() -> bool:
    """Whether this processor and this installation have the 8-bit kernels."""
    return kernels.library() is not None and _is_supported()


@cache
def _is_supported() -> bool:
    library = kernels.library()
    assert library is not None
    library.steps_of.restype = _Int
    library.use_tiles(1)
    return bool(library.supported())


def use_tiles(wanted: bool) -> bool:
    """Have products go by AMX or not, for banks made later; returns whether they do."""
    library = kernels.library()
    return available() and library is not None and bool(library.use_tiles(int(wanted)))


def round_rows(rows: Tensor) -> Tensor:
    """Rows [m, c] as the kernels see them: whole multiples, -127 to 127, of a scale of each row."""
    scale = rows.abs().amax(1, keepdim=True) / 127
    inverse = torch.where(scale > _SMALLEST, 1 / scale, 0)
    return (rows * inverse).round_().mul_(scale)


@dataclass(frozen=True)
class Found:
    """Distances float32 and rows int64 of the same shape; where not `proven` they mean nothing."""

    distances: Tensor
    rows: Tensor
    proven: Tensor


class Bank:
    """A bank float32 [m, c] in blocks given by offsets [n + 1]; rows should be centred.

    It must be on the CPU, of at most MOST_ROWS rows and MOST_CHANNELS channels.
    """

    def __init__(self, rows: Tensor, offsets: Sequence[int]) -> None:
        self.rows = rows.contiguous()
        channels = rows.shape[1]
        blocks = [(torch.arange(start, stop, _LANES), stop) for start, stop in pairwise(offsets)]
        self.bounds = torch.tensor([0, *(len(first) for first, _ in blocks)]).cumsum(0)
        self.first = torch.cat([first for first, _ in blocks])
        counts = torch.cat([(stop - first).clamp(max=_LANES) for first, stop in blocks])
        panels, steps = len(self.first), _steps_of(channels)
        self.words = torch.zeros(panels, steps, _LANES, dtype=torch.int32)
        self.initial = torch.empty(panels, _LANES, dtype=torch.int32)
        numbers = [torch.empty(panels, _LANES) for _ in range(4)]
        self._numbers = numbers  # `_struct` points into them
        halves, scales, norms, left = map(Tensor.data_ptr, numbers)
        share_out(
            lambda begin, end: call(
                "pack_bank", self.rows, channels, steps, begin, end, self.first, counts,
                self.words, *numbers, self.initial,
            ),
            panels,
            _PANELS,
        )  # fmt: skip
        self._struct = _Bank(
            self.words.data_ptr(), halves, scales, norms, left, self.initial.data_ptr(),
            self.first.data_ptr(), self.rows.data_ptr(), steps, channels,
        )  # fmt: skip

    def nearest(self, queries: Tensor, k: int) -> Found:
        """The k nearest rows of each query [q, c], ascending, [q, k]; proven bool [q]; k <= m."""
        packed = _PackedQueries(queries, self._struct.steps)
        which = torch.arange(len(queries))
        found = _empty(len(queries), k)
        share_out(
            lambda begin, end: self._nearest(packed, which[begin:end], _part(found, begin, end)),
            len(queries),
            _QUERIES,
        )
        return found

    def nearest_in_blocks(self, queries: Tensor, which: Tensor, blocks: Tensor) -> Found:
        """The nearest row of block blocks[p] to query which[p], both int64 [p]; all are [p].

        All are proven but those of queries that are not numbers.
        """
        packed = _PackedQueries(queries, self._struct.steps)
        order = blocks.argsort(stable=True)  # each block is searched once, for all its queries
        count = len(self.bounds) - 1
        starts = torch.zeros(count + 1, dtype=torch.int64)
        torch.cumsum(torch.bincount(blocks, minlength=count), 0, out=starts[1:])
        distances, rows = torch.empty(len(which)), torch.empty(len(which), dtype=torch.int64)
        share_out(
            lambda begin, end: call(
                "nearest_in_blocks", self._struct, packed.struct, begin, end, self.bounds, starts,
                order, which.contiguous(), distances, rows,
            ),
            count,
            -(-count // _PARTS),
        )  # fmt: skip
        return Found(distances, rows, ~distances.isnan())

    def choose_blocks(
        self, queries: Tensor, left_out: Tensor, k: int, count: int, most: int, gap: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The blocks that seem nearest to queries [q, c]: numbers int64, squared distances [q, j].

        Of the blocks that are not in left_out bool [q, n] the j = `count` whose rounded rows are
        nearest, ascending; block 0 at infinity where fewer are left. And how many of them lie
        before the last gap (as in `BlockBank.nearest_blocks`; count must be `most` + k at least),
        int64 [q].
        """
        packed = _PackedQueries(queries, self._struct.steps)
        chosen = torch.empty(len(queries), count, dtype=torch.int64)
        squares = torch.empty(len(queries), count)
        before = torch.empty(len(queries), dtype=torch.int64)
        share_out(
            lambda begin, end: call(
                "choose_blocks", self._struct, packed.struct, begin, end, self.bounds,
                left_out.shape[1], left_out.contiguous(), k, most, float(gap) ** 2, count, chosen,
                squares, before,
            ),
            len(queries),
            _QUERIES,
        )  # fmt: skip
        return chosen, squares, before

    def block_squares(self, queries: Tensor, blocks: Tensor) -> Tensor:
        """The squared distances of queries [q, c] to the nearest row of blocks int64 [b], rounded,
        float32 [b, q]; the very numbers that `choose_blocks` chooses by."""
        packed = _PackedQueries(queries, self._struct.steps)
        squares, blocks = torch.empty(len(blocks), len(queries)), blocks.contiguous()
        share_out(
            lambda begin, end: call(
                "block_squares", self._struct, packed.struct, begin, end, len(queries), self.bounds,
                blocks, len(blocks), squares,
            ),
            len(queries),
            _QUERIES,
        )  # fmt: skip
        return squares

    def _nearest(self, queries: "_PackedQueries", which: Tensor, found: Found) -> None:
        count, k = found.rows.shape
        call(
            "nearest", self._struct, queries.struct, 0, len(self.first), which, count, k,
            found.distances, found.rows, found.proven,
        )  # fmt: skip


class _PackedQueries:
    """Queries float32 [q, c], rounded."""

    def __init__(self, queries: Tensor, steps: int) -> None:
        self.rows = queries.contiguous()
        count, channels = queries.shape
        self.words = torch.zeros(count, steps, dtype=torch.int32)
        self.numbers = [torch.empty(count) for _ in range(4)]
        share_out(
            lambda begin, end: call(
                "pack_queries", self.rows, channels, steps, begin, end, self.words, *self.numbers
            ),
            count,
            _PANELS * _LANES,
        )
        pointers = map(Tensor.data_ptr, (self.words, self.rows, *self.numbers))
        self.struct = _Queries(*pointers)


def _steps_of(channels: int) -> int:
    library = kernels.library()
    assert library is not None
    return int(library.steps_of(_Int(channels)))


def _empty(count: int, k: int) -> Found:
    rows = torch.empty(count, k, dtype=torch.int64)
    return Found(torch.empty(count, k), rows, torch.zeros(count, dtype=torch.bool))


def _part(found: Found, begin: int, end: int) -> Found:
    return Found(found.distances[begin:end], found.rows[begin:end], found.proven[begin:end])
