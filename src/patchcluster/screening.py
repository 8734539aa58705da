"""Exact nearest neighbours by way of 8-bit products, where the processor has the instructions.

`kernels.c` rounds rows to 8 bits and multiplies them; what was rounded off is known, so that for
nearly every query it is proven which few rows can be its nearest. Distances are then taken from the
float32 rows. Queries that it cannot prove, because rounding hides which rows are nearest, are left
to the caller. The library is compiled when the package is built (`hatch_build.py`); without it, or
without AVX512-VNNI, `available` says no, and everything goes by float32 products.
"""

import ctypes
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

LIBRARY = Path(__file__).with_name("_kernels.so")
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


@cache
def _library() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(str(LIBRARY))
    except OSError:  # it was not compiled
        return None
    if not library.supported():
        return None
    library.steps_of.restype = _Int
    library.use_tiles(1)
    return library


def available() -> bool:
    """Whether this processor and this installation have the 8-bit kernels."""
    return _library() is not None


def use_tiles(wanted: bool) -> bool:
    """Have products go by AMX or not, for banks made later; returns whether they do."""
    library = _library()
    return library is not None and bool(library.use_tiles(int(wanted)))


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
        _share_out(
            lambda begin, end: _call(
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
        _share_out(
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
        _share_out(
            lambda begin, end: _call(
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
        _share_out(
            lambda begin, end: _call(
                "choose_blocks", self._struct, packed.struct, begin, end, self.bounds,
                left_out.shape[1], left_out.contiguous(), k, most, float(gap) ** 2, count, chosen,
                squares, before,
            ),
            len(queries),
            _QUERIES,
        )  # fmt: skip
        return chosen, squares, before

    def block_minima(self, queries: Tensor) -> Tensor:
        """For queries [q, c] the least value of each block, float32 [n, q].

        That is about half the squared distance to its nearest row, less half the query's squared
        norm, which does not change the order of the blocks.
        """
        packed = _PackedQueries(queries, self._struct.steps)
        minima = torch.empty(len(self.bounds) - 1, len(queries))
        _share_out(
            lambda begin, end: _call(
                "block_minima", self._struct, packed.struct, begin, end, len(queries), self.bounds,
                len(minima), minima,
            ),
            len(queries),
            _QUERIES,
        )  # fmt: skip
        return minima

    def _nearest(self, queries: "_PackedQueries", which: Tensor, found: Found) -> None:
        count, k = found.rows.shape
        _call(
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
        _share_out(
            lambda begin, end: _call(
                "pack_queries", self.rows, channels, steps, begin, end, self.words, *self.numbers
            ),
            count,
            _PANELS * _LANES,
        )
        pointers = map(Tensor.data_ptr, (self.words, self.rows, *self.numbers))
        self.struct = _Queries(*pointers)


def _steps_of(channels: int) -> int:
    library = _library()
    assert library is not None
    return int(library.steps_of(_Int(channels)))


def _empty(count: int, k: int) -> Found:
    rows = torch.empty(count, k, dtype=torch.int64)
    return Found(torch.empty(count, k), rows, torch.zeros(count, dtype=torch.bool))


def _part(found: Found, begin: int, end: int) -> Found:
    return Found(found.distances[begin:end], found.rows[begin:end], found.proven[begin:end])


def _call(name: str, *arguments: Tensor | ctypes.Structure | int | float) -> None:
    """Call a function of the library, which takes pointers, 64-bit numbers and float32."""
    passed = [
        _Pointer(a.data_ptr()) if isinstance(a, Tensor)
        else ctypes.byref(a) if isinstance(a, ctypes.Structure)
        else ctypes.c_float(a) if isinstance(a, float)
        else _Int(a)
        for a in arguments
    ]  # fmt: skip
    if getattr(_library(), name)(*passed):
        raise MemoryError(f"no memory for the buffers of {name}")


def _share_out(work: Callable[[int, int], None], count: int, step: int) -> None:
    """Call work(begin, end) for 0 to count in steps, in as many threads as torch uses.

    The library lets go of Python's lock while it works.
    """
    begins = range(0, count, step)
    if len(begins) <= 1:
        for begin in begins:
            work(begin, count)
        return
    with ThreadPoolExecutor(torch.get_num_threads(), "search") as pool:
        for _ in pool.map(lambda begin: work(begin, min(begin + step, count)), begins):
            pass
