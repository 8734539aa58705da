"""Methods that score a patch by its distances to the nearest rows of a bank."""

from abc import abstractmethod
from collections.abc import Hashable, Sequence
from typing import Self

import torch
from torch import Tensor

from ..errors import SettingError
from ..search.neighbors import nearest, to_float
from .base import NEIGHBOURS_KEPT, Comparison, Given, Method
from .grids import Grids, flatten


class NeighbourMethod(Method):
    """A method that scores a patch by its distances to the nearest rows of a bank.

    The bank has all patches of all images, unless a method builds another.

    `compare` is a search, which takes nearly all the time, and a summary of what it found. Methods
    of equal `bank_key` that were fitted on one set have equal banks: what the method with the
    largest `neighbour_count` finds, the others can summarise.
    """

    least_images = 1

    def _fit(self, grids: Grids, given: Given) -> None:  # noqa: ARG002 (nothing is random)
        self._hold(grids)
        self.bank_ = to_float(self.bank_)
        self.neighbour_count(blind=len(grids) > 1)  # whether the set is large enough

    def bank_key(self) -> Hashable:
        return ("patches", self.layout, self.ratio)

    def reuse(self, fitted: Method, patches: int) -> Self | None:
        del patches
        if fitted.bank_key() != self.bank_key():
            return None
        return self.from_state(fitted.state(), **self.parameters())

    @abstractmethod
    def neighbour_count(self, blind: bool) -> int: ...

    def search(self, grids: Sequence[Tensor], own: Sequence[int] | None, k: int) -> Comparison:
        """Find the k nearest rows of the bank for all patches; parameters as in `compare`.

        Distances, ascending, and neighbours are [p, k]. Of images of the fitted set the first
        neighbour, which is the patch itself, is skipped.
        """
        rows, skip = torch.cat([flatten(grid) for grid in grids]), int(own is not None)
        distances, indices = map(torch.as_tensor, nearest(rows, self.bank_, skip + k))
        return Comparison(distances[:, skip:], indices[:, skip:], distances[:, skip:])

    @abstractmethod
    def summarise(self, found: Comparison) -> Comparison:
        """Reduce a search for at least `neighbour_count` neighbours to what `to_scores` needs."""

    def compare(
        self,
        grids: Sequence[Tensor],
        own: Sequence[int] | None = None,
        blocks: Sequence[Tensor] | None = None,  # noqa: ARG002 (patches are compared one by one)
    ) -> Comparison:
        return self.summarise(self.search(grids, own, self.neighbour_count(own is not None)))

    def compare_for(
        self, methods: Sequence[Method], grids: Sequence[Tensor], own: Sequence[int] | None
    ) -> list[Comparison]:
        sharing = [method for method in methods if isinstance(method, NeighbourMethod)]
        most = max(method.neighbour_count(own is not None) for method in sharing)
        found = self.search(grids, own, most)
        return [method.summarise(found) for method in sharing]


def mean_of_nearest(found: Comparison, k: int) -> Comparison:
    """A search with the mean distance to the k nearest as the one distance (equation 2)."""
    return Comparison(
        found.distances[:, :k].mean(1, keepdim=True),
        found.neighbours[:, :NEIGHBOURS_KEPT],
        found.distances[:, :NEIGHBOURS_KEPT],
    )


def check_k(k: int, left: int) -> int:
    """k, if a bank with so many rows left can serve it. Raises SettingError."""
    if not 1 <= k <= left:
        raise SettingError(
            f"k={k} neighbours, but the bank offers {left}: choose a smaller k or more images"
        )
    return k
