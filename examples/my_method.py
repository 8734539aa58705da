"""A method in one file: the distance of a patch to its k-th nearest neighbour.

    python examples/my_method.py photos/

scans a folder with it and prints the most anomalous images. docs/contributing.md goes through it.
"""

import sys
from collections.abc import Hashable, Sequence
from typing import Self

import torch
from torch import Tensor

import patchcluster
from patchcluster.methods import METHODS, Comparison, NeighbourMethod
from patchcluster.methods.base import (
    NEIGHBOURS_KEPT,
    Patches,
    Progress,
    as_tensors,
    check_k,
    flatten,
    place_rows,
)
from patchcluster.methods.patchcluster import search_bank
from patchcluster.neighbors import to_float
from patchcluster.settings import METHOD_SETTINGS


class KthNearest(NeighbourMethod):
    """Score a patch by the distance to its k-th nearest neighbour among all patches of the set.

    The outliers of Ramaswamy et al. (SIGMOD 2000). Scored blindly, a patch's first neighbour is
    skipped: it is the patch itself.

    Parameters: `k`, the number of neighbours.
    """

    name = "kth-nearest"
    layout = "fine"  # one vector a patch, on the grid of stride 8

    def __init__(self, k: int = 10) -> None:
        self.k = k

    def fit(
        self,
        patches: Patches,
        keys: Sequence[int] | None = None,  # noqa: ARG002 (nothing is random)
        progress: Progress | None = None,  # noqa: ARG002 (takes no time)
    ) -> Self:
        grids = as_tensors(patches)
        self.bank_ = torch.cat([to_float(flatten(grid)) for grid in grids])
        self.bank_image_, self.bank_patch_ = place_rows(grids)
        self.image_count_ = len(grids)
        self.neighbour_count(blind=len(grids) > 1)  # whether the set is large enough
        return self

    def bank_key(self) -> Hashable:
        return ("patches", 1.0)  # all patches, as PatchCore-LoF: one search can serve both

    def neighbour_count(self, blind: bool) -> int:
        left = len(self.bank_) - int(blind)
        return max(check_k(self.k, left), min(NEIGHBOURS_KEPT, left))

    def search(self, grids: Sequence[Tensor], own: Sequence[int] | None, k: int) -> Comparison:
        return search_bank(self.bank_, grids, own is not None, k)

    def summarise(self, found: Comparison) -> Comparison:
        return Comparison(
            found.distances[:, self.k - 1 : self.k],  # what `grade` takes for the score
            found.neighbours[:, :NEIGHBOURS_KEPT],  # what explains it
            found.distances[:, :NEIGHBOURS_KEPT],
        )


def main() -> None:
    METHODS[KthNearest.name] = KthNearest
    METHOD_SETTINGS[KthNearest.name] = {"size": (224,), "frame": 224, "image_score": "max"}
    run = patchcluster.scan(sys.argv[1], method=KthNearest.name)
    for i in run.ranking[:10]:
        print(f"{run.scores[i]:8.4f}  {run.paths[i]}")


if __name__ == "__main__":
    main()
