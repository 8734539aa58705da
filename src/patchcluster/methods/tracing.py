"""What a comparison with a bank depends on, so that it holds for another bank that differs little.

A result of the default method depends on the blocks that are nearest by a first pass: on where they
have gaps, and on the exact distances of some, which are searched. Beside these a few spare ones are
kept: when blocks of the bank go and others come, these are put in their places among them, and only
those that are to be searched for the first time are. A row is searched anew where it is not certain
which are the nearest: if too many of them have gone, for one.
"""

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Self

import torch
from torch import Tensor

from .. import kernels
from ..neighbors import BlockBank, Candidates, last_gap, most_before_gap

SPARE = 6  # blocks kept beside those that a gap can be among
_ROUNDING = 1e-5  # of a squared distance, which other products may round otherwise
_PLACED = 1024  # rows that a thread takes at a time
_SMALL = (torch.uint8, torch.int16, torch.int32)  # types of numbers of blocks, and of their rows
_OF_IMAGES = ("typical", "left_out", "of_a_kind")  # what a trace has beside what is known of rows


@dataclass(frozen=True)
class Known:
    """What is known of the blocks that are nearest to q rows.

    blocks uint8, int16 or int32 [q, s] and squares float32 [q, s]: nearest by the first pass,
    ascending, and the squares of these distances, infinite where there is none; before int16 [q]:
    how many lie before the last gap; distances float32 [q, j] and rows int16 or int32 [q, j]:
    exactly, of the next j, with the place of the nearest row in its block, NaN where that was not
    searched; reach float32 [q]: all other blocks are at least so far by the first pass.
    """

    blocks: Tensor
    squares: Tensor
    before: Tensor
    distances: Tensor
    rows: Tensor
    reach: Tensor

    @classmethod
    def of_search(cls, found: Candidates, starts: Tensor, kept: int) -> Self:
        """Of a search; starts int64 [b + 1]: the row that each block begins with; kept: how many
        blocks are."""
        squares, count = found.squares[:, :kept], len(starts) - 1
        places = _places(found.before, found.distances, found.blocks)
        return cls(
            found.blocks[:, :kept].to(_small(count - 1)),
            squares,
            found.before.short(),
            found.distances,
            (found.rows - starts[found.blocks.gather(1, places)]).to(
                _small(int(starts.diff().max()))
            ),
            torch.full_like(squares[:, -1], torch.inf) if kept >= count else squares[:, -1],
        )

    @property
    def searched(self) -> Tensor:
        """The blocks that `distances` are of, int64 [q, j]."""
        return self.blocks.long().gather(1, _places(self.before, self.distances, self.blocks))

    @property
    def values(self) -> list[Tensor]:
        return list(vars(self).values())

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        return cls(*map(torch.cat, zip(*(part.values for part in parts), strict=True)))

    def select(self, rows: Tensor | slice) -> "Known":
        """Of some of the rows, int64 [r]."""
        return Known(*(values[rows] for values in self.values))

    def blank(self, rows: int, blocks: int | None = None, largest: int | None = None) -> "Known":
        """Zeros for so many rows; blocks and largest: of a bank, how many and the rows of the
        largest, None: as of this one."""
        values = [value.new_zeros(rows, *value.shape[1:]) for value in self.values]
        known = Known(*values)
        if blocks is None or largest is None:
            return known
        return replace(
            known, blocks=known.blocks.to(_small(blocks - 1)), rows=known.rows.to(_small(largest))
        )

    def is_sound(self, rows: int, bank: int) -> bool:
        """Whether it can be of so many rows and of a bank of so many blocks: a file may have been
        edited."""
        kept, searched = (rows, *self.blocks.shape[1:]), (rows, *self.distances.shape[1:])
        return (
            (self.blocks.shape, self.squares.shape) == (kept, kept)
            and (self.distances.shape, self.rows.shape) == (searched, searched)
            and (self.before.shape, self.reach.shape) == ((rows,), (rows,))
            and {self.blocks.dtype, self.rows.dtype} <= set(_SMALL)
            and self.before.dtype == torch.int16
            and {v.dtype for v in (self.squares, self.distances, self.reach)} == {torch.float32}
            and len(kept) == len(searched) == 2
            and (not rows or 0 <= int(self.blocks.min()) <= int(self.blocks.max()) < bank)
        )

    def put(self, rows: Tensor, part: "Known") -> None:
        """Replace some of the rows, int64 [r]."""
        for mine, theirs in zip(self.values, part.values, strict=True):
            mine[rows] = theirs.to(mine.dtype)


def _places(before: Tensor, searched: Tensor, blocks: Tensor) -> Tensor:
    """Where those that are searched [q, j] are among the blocks [q, s], int64 [q, j]."""
    first = before.long().clamp(max=blocks.shape[1] - searched.shape[1])
    return first[:, None] + torch.arange(searched.shape[1], device=before.device)


def _small(largest: int) -> torch.dtype:
    return next(t for t in _SMALL if largest <= torch.iinfo(t).max)


class _Known(ctypes.Structure):
    """`Known` of placing.c."""

    _fields_ = (
        *((field.name, ctypes.c_void_p) for field in fields(Known)),
        *((name, ctypes.c_int64) for name in ("block_bytes", "row_bytes", "kept", "searched")),
    )

    @classmethod
    def of(cls, known: Known) -> Self:
        """Of tensors that must outlive it."""
        sizes = known.blocks.itemsize, known.rows.itemsize
        widths = known.blocks.shape[1], known.distances.shape[1]
        return cls(*(value.data_ptr() for value in known.values), *sizes, *widths)


@dataclass(frozen=True)
class Trace:
    """Of n images, compared with b others.

    known: of the rows of each stage, image after image; typical float32 [n, b]: squared distance of
    images as wholes; left_out bool [n, b] and of_a_kind bool [n]: what followed from that.
    """

    known: Sequence[Known]
    typical: Tensor
    left_out: Tensor
    of_a_kind: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """All of it, by name."""
        whole = {name: getattr(self, name) for name in _OF_IMAGES}
        for stage, known in enumerate(self.known):
            whole |= {f"{stage}.{name}": value for name, value in vars(known).items()}
        return whole

    @classmethod
    def of_tensors(cls, tensors: dict[str, Tensor]) -> Self:
        """What `tensors` gave."""
        names = [field.name for field in fields(Known)]
        stages = (len(tensors) - len(_OF_IMAGES)) // len(names)
        known = [Known(*(tensors[f"{stage}.{n}"] for n in names)) for stage in range(stages)]
        return cls(known, *(tensors[name] for name in _OF_IMAGES))

    @classmethod
    def join(cls, traces: Sequence[Self]) -> Self:
        """The traces of several lots of images as one."""
        whole = [torch.cat([getattr(trace, name) for trace in traces]) for name in _OF_IMAGES]
        return cls(
            [Known.join(of_stage) for of_stage in zip(*(t.known for t in traces), strict=True)],
            *whole,
        )

    def is_sound(self, images: int, rows: Sequence[int], bank: int) -> bool:
        """Whether it can be of so many images with so many rows of each stage."""
        return (
            len(self.known) == len(rows)
            and all(k.is_sound(n, bank) for k, n in zip(self.known, rows, strict=True))
            and (self.typical.shape, self.left_out.shape) == ((images, bank), (images, bank))
            and self.of_a_kind.shape == (images,)
        )

    def part(self, images: slice, rows: Sequence[slice]) -> "Trace":
        """Of some of the images, which have these rows of each stage."""
        return Trace(
            [known.select(these) for known, these in zip(self.known, rows, strict=True)],
            *(getattr(self, name)[images] for name in _OF_IMAGES),
        )

    def blank(self, rows: Sequence[int]) -> "Trace":
        """Zeros for an image that has so many rows of each stage."""
        return Trace(
            [known.blank(count) for known, count in zip(self.known, rows, strict=True)],
            *(torch.zeros_like(getattr(self, name)[:1]) for name in _OF_IMAGES),
        )


@dataclass(frozen=True)
class BankChange:
    """A bank whose images are partly those of an earlier one.

    columns int64 [b]: where each image of the earlier one is in this, -1: nowhere; added int64 [a]:
    images that only this one has; banks: this one, by stage.
    """

    columns: Tensor
    added: Tensor
    banks: Sequence[BlockBank]

    def bring(self, earlier: Tensor, size: int) -> Tensor:
        """What is said of images of the earlier bank [n, b'] -> of this one's [n, size], else 0."""
        there = self.columns >= 0
        brought = earlier.new_zeros(len(earlier), size)
        brought[:, self.columns[there]] = earlier[:, there]
        return brought

    def place(
        self,
        stage: int,
        known: Known,
        rows: Tensor,
        alike: "Alike",
        k: int,
        gap: float,
    ) -> tuple[Known, Tensor]:
        """What is known of rows [q, c] of a stage with this bank; and of which that is enough.

        alike: of the rows; k and gap: as in `BlockBank.nearest_blocks`, but rows that are of a kind
        have no gap. The distances that are not known are NaN. Where it is not enough, bool [q],
        what is given means nothing.
        """
        bank = self.banks[stage]
        squares = bank.block_squares(rows, self.added)
        squares.masked_fill_(alike.left_out[:, self.added].T, torch.inf)
        largest = max(stop - start for start, stop in pairwise(bank.offsets))
        to = known.blank(len(rows), len(self.columns), largest)
        good = torch.zeros(len(rows), dtype=torch.bool)
        if kernels.library() is not None:
            self._place_fast(known, to, good, squares, alike.of_a_kind, k, gap)
            return to, good
        for which, a_gap in ((~alike.of_a_kind, gap), (alike.of_a_kind, math.inf)):
            at = which.nonzero()[:, 0]
            part, enough = self._place(known.select(at), squares[:, at].T, k, a_gap)
            to.put(at, part)
            good[at] = enough
        return to, good

    def _place_fast(
        self,
        known: Known,
        to: Known,
        good: Tensor,
        squares: Tensor,
        of_a_kind: Tensor,
        k: int,
        gap: float,
    ) -> None:
        """`place`, with what it gives."""
        most = most_before_gap(len(self.columns), k, gap)
        known = Known(*(values.contiguous() for values in known.values))
        both = [_Known.of(known), _Known.of(to)]
        kernels.share_out(
            lambda begin, end: kernels.call(
                "place_blocks", *both, begin, end, len(of_a_kind), self.columns, squares,
                self.added, len(self.added), of_a_kind, k, most, float(gap**2), _ROUNDING, good,
            ),
            len(of_a_kind),
            _PLACED,
        )  # fmt: skip

    def _place(self, known: Known, fresh: Tensor, k: int, gap: float) -> tuple[Known, Tensor]:
        """`place` for rows of one kind; fresh [q, a]: squared distances to what was added."""
        kept, searched = known.blocks.shape[1], known.distances.shape[1]
        blocks, squares, distances, near = self._unite(known, fresh)
        squares, order = squares.sort(dim=1, stable=True)
        most = most_before_gap(len(self.columns), k, gap)
        before = last_gap(squares[:, : most + k].T, k, most, gap**2)
        good = (known.before + searched <= kept) & (before + searched <= kept)
        places = _places(before, known.distances, known.blocks)
        last = places[:, -1:].maximum(torch.tensor(most + k - 1))  # of those that decide
        after = (last + 1).clamp(max=squares.shape[1] - 1)
        beyond = squares.gather(1, after)[:, 0].minimum(known.reach)
        certain = squares.gather(1, last)[:, 0] * (1 + _ROUNDING) < beyond
        good &= certain | known.reach.isinf()  # then all blocks are known
        if most:
            steps = squares[:, k : most + 1] / squares[:, k - 1 : most]
            good &= ((steps / gap**2 - 1).abs() > 2 * _ROUNDING).all(1)
        first, none = order.gather(1, places), squares.gather(1, places).isinf()
        placed = blocks.gather(1, order[:, :kept])
        return Known(
            placed.masked_fill(squares[:, :kept].isinf(), 0),
            squares[:, :kept],
            before.short(),
            distances.gather(1, first).masked_fill(none, torch.inf),
            near.gather(1, first),
            known.reach.minimum(squares[:, kept]) if squares.shape[1] > kept else known.reach,
        ), good

    def _unite(self, known: Known, fresh: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The blocks that are known of rows and those that were added, [q, s + a], in no order.

        Numbers of blocks in this bank; squares of distances by the first pass, infinite for blocks
        that have gone; exact distances, NaN where they are not known; places of nearest rows.
        """
        blocks = self.columns[known.blocks.long()]
        squares = known.squares.masked_fill(blocks < 0, torch.inf)
        places = _places(known.before, known.distances, known.blocks)
        distances = torch.full_like(squares, torch.nan).scatter_(1, places, known.distances)
        near = torch.zeros_like(blocks, dtype=known.rows.dtype).scatter_(1, places, known.rows)
        return (
            torch.cat([blocks, self.added.expand(len(fresh), -1)], 1),
            torch.cat([squares, fresh], 1),
            torch.cat([distances, torch.full_like(fresh, torch.nan)], 1),
            torch.cat([near, torch.zeros_like(fresh, dtype=near.dtype)], 1),
        )


@dataclass(frozen=True)
class Alike:
    """What is said of images by their likeness as a whole to those of the bank.

    left_out bool [images, bank's images]: those that each is not compared with, itself and its
    near-duplicates; near_duplicates: as in `Comparison`; of_a_kind bool [images]: more others than
    near-duplicates can be are far more alike to it than the rest.
    """

    left_out: Tensor
    near_duplicates: Tensor
    of_a_kind: Tensor

    def of_rows(self, parts: Sequence[Tensor]) -> "Alike":
        """What is said of the rows of images [q_i, c], image after image."""
        counts = torch.tensor([len(part) for part in parts], device=self.left_out.device)
        return Alike(
            self.left_out.repeat_interleave(counts, 0),
            self.near_duplicates,
            self.of_a_kind.repeat_interleave(counts),
        )

    def select(self, rows: Tensor) -> "Alike":
        """The same of some rows, or images, int64 [q]."""
        return Alike(self.left_out[rows], self.near_duplicates, self.of_a_kind[rows])


@dataclass(frozen=True)
class Found:
    """What was found for q rows of a stage.

    neighbours int64 [q, j] and distances float32 [q, j]: nearest rows of different images; kth
    float32 [q]: distance to the k-th image; known: by what this was decided.
    """

    neighbours: Tensor
    distances: Tensor
    kth: Tensor
    known: Known

    @classmethod
    def of_nearest(
        cls, distances: Tensor, rows: Tensor, known: Known, k: int, explained: int
    ) -> Self:
        """Of the nearest rows [q, i]; explained: how many of them are to explain a row."""
        return cls(rows[:, :explained], distances[:, :explained], distances[:, k - 1], known)

    @classmethod
    def join(cls, parts: Sequence[Self], places: Sequence[Tensor]) -> Self:
        """What was found for rows at different places of all, int64, as one."""
        if len(parts) == 1:
            return parts[0]
        back = torch.cat(list(places)).argsort()
        known = Known.join([part.known for part in parts]).select(back)
        names = ("neighbours", "distances", "kth")
        values = {name: torch.cat([getattr(p, name) for p in parts])[back] for name in names}
        return cls(**values, known=known)

    def put(self, rows: Tensor, part: "Found") -> None:
        """Replace what was found for some of the rows, int64 [r]."""
        for name in ("neighbours", "distances", "kth"):
            getattr(self, name)[rows] = getattr(part, name)
        self.known.put(rows, part.known)
