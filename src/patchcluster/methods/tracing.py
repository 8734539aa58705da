"""What a comparison with a bank depends on, so that it holds for another bank that differs little.

A result of the default method depends on the blocks that were searched for it, and on no other
block that stays farther by the first pass. So of a comparison with an earlier bank a row holds as
long as none of the blocks that were searched for it has gone, none that was added is as near as the
last of them, and no gap can have opened among those that were not searched.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from ..neighbors import BlockBank, Choice

_SHORT = 1 << 15  # blocks whose numbers fit 16 bits
_ROUNDING = 1e-5  # of a squared distance, which other products may round otherwise


@dataclass(frozen=True)
class Trace:
    """Of n images, with r rows in all stages together, image after image, compared with b others.

    searched int16 or int32 [r, j], reach float32 [r], within int32 [r]: see `neighbors.Choice`; kth
    float32 [r]: distance to the k-th image; typical float32 [n, b]: squared distance of images as
    wholes; left_out bool [n, b] and of_a_kind bool [n]: what followed from that.
    """

    searched: Tensor
    reach: Tensor
    within: Tensor
    kth: Tensor
    typical: Tensor
    left_out: Tensor
    of_a_kind: Tensor

    @classmethod
    def join(cls, traces: Sequence[Self]) -> Self:
        """The traces of several lots of images as one."""
        parts = [[getattr(t, field.name) for t in traces] for field in fields(cls)]
        return cls(*map(torch.cat, parts))

    def of_rows(self, rows: Tensor) -> "Trace":
        """With some of the rows, int64 [q]."""
        return Trace(
            self.searched[rows], self.reach[rows], self.within[rows], self.kth[rows],
            self.typical, self.left_out, self.of_a_kind,
        )  # fmt: skip

    def part(self, images: slice, rows: slice) -> "Trace":
        """Of some of the images, which have these rows."""
        return Trace(
            self.searched[rows], self.reach[rows], self.within[rows], self.kth[rows],
            self.typical[images], self.left_out[images], self.of_a_kind[images],
        )  # fmt: skip


@dataclass(frozen=True)
class BankChange:
    """A bank whose images are partly those of an earlier one.

    columns int64 [b]: where each image of the earlier one is in this, -1: nowhere; added int64 [a]:
    images that only this one has; banks: these alone, one a stage; rows int64 [m]: the row of this
    bank for each row of the earlier one, -1: none.
    """

    columns: Tensor
    added: Tensor
    banks: Sequence[BlockBank]
    rows: Tensor

    @property
    def gone(self) -> int:
        """How many images only the earlier bank has."""
        return int((self.columns < 0).sum())

    def bring(self, earlier: Tensor, size: int) -> Tensor:
        """What is said of images of the earlier bank [n, b'] -> of this one's [n, size], else 0."""
        there = self.columns >= 0
        brought = earlier.new_zeros(len(earlier), size)
        brought[:, self.columns[there]] = earlier[:, there]
        return brought

    def holds(
        self, trace: Trace, rows: Tensor, stage: int, left_out: Tensor, within: int
    ) -> Tensor:
        """Which results for rows [q, c] of a stage are as they would be with this bank, bool [q].

        trace: of these rows; left_out bool [q, b]: as now; within: blocks so near that no gap can
        be among the first.
        """
        good: Tensor = (self.columns[trace.searched.long()] >= 0).all(1)
        good &= trace.within - self.gone >= within
        if len(self.added):
            squares = self.banks[stage].block_squares(rows).T
            nearer = squares <= trace.reach[:, None] * (1 + _ROUNDING)
            good &= ~(nearer & ~left_out[:, self.added]).any(1)
        return good


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
    float32 [q]: distance to the k-th image; searched int16 or int32 [q, i], reach float32 [q] and
    within int32 [q]: see `neighbors.Choice`.
    """

    neighbours: Tensor
    distances: Tensor
    kth: Tensor
    searched: Tensor
    reach: Tensor
    within: Tensor

    @classmethod
    def of_search(
        cls, distances: Tensor, found: Tensor, choice: Choice, k: int, explained: int, blocks: int
    ) -> Self:
        """What a search gave; explained: how many of the nearest are to explain a row; blocks: how
        many there are."""
        searched = choice.blocks.to(torch.int16 if blocks < _SHORT else torch.int32)
        shown = slice(0, explained)
        return cls(
            found[:, shown], distances[:, shown], distances[:, k - 1], searched, choice.reach,
            choice.within,
        )  # fmt: skip

    @classmethod
    def of_earlier(
        cls, known: Trace, explained: tuple[Tensor, Tensor] | None, change: BankChange
    ) -> Self:
        """What was found with an earlier bank; explained: neighbours and their distances, of the
        stage that has them."""
        none = torch.empty(len(known.kth), 0)
        return cls(
            none.long() if explained is None else change.rows[explained[0]],
            none if explained is None else explained[1],
            known.kth.clone(),
            change.columns[known.searched.long()].to(known.searched.dtype),
            known.reach.clone(),
            known.within - change.gone,
        )

    @property
    def values(self) -> list[Tensor]:
        return list(vars(self).values())

    @classmethod
    def join(cls, parts: Sequence[Self], places: Sequence[Tensor]) -> Self:
        """What was found for rows at different places of all, int64, as one."""
        back = torch.cat(list(places)).argsort()
        every = zip(*(part.values for part in parts), strict=True)
        return cls(*(torch.cat(values)[back] for values in every))

    def put(self, rows: Tensor, new: Self) -> None:
        """Take what is new of some rows, int64."""
        for old, values in zip(self.values, new.values, strict=True):
            old[rows] = values


def by_image(stages: Sequence[Tensor], counts: Sequence[Sequence[int]]) -> Tensor:
    """Rows of stages, each of all images -> rows of images, each of all stages."""
    parts = [torch.split(rows, list(each)) for rows, each in zip(stages, counts, strict=True)]
    return torch.cat([part for image in zip(*parts, strict=True) for part in image])


def of_stage(stage: int, counts: Sequence[Sequence[int]]) -> Tensor:
    """Where the rows of a stage are among those that `by_image` gives."""
    return (
        by_image([torch.full((sum(c),), i) for i, c in enumerate(counts)], counts)
        .eq(stage)
        .nonzero()[:, 0]
    )
