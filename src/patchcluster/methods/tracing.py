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

from ..neighbors import BlockBank

_ROUNDING = 1e-5  # of a squared distance, which other products may round otherwise


@dataclass(frozen=True)
class Trace:
    """Of n images, with r rows in all stages together, image after image, compared with b others.

    searched int16 [r, j], reach float32 [r], within int32 [r]: see `neighbors.Choice`; kth float32
    [r]: distance to the k-th image; typical float32 [n, b]: squared distance of images as wholes;
    left_out bool [n, b] and of_a_kind bool [n]: what followed from that.
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
        """With some of the rows."""
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
class Moved:
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
