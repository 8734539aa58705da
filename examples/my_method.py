"""A method in one file: the distance of a patch to its k-th nearest neighbour.

    python examples/my_method.py photos/

scans a folder with it and prints the most anomalous images. docs/contributing.md goes through it.
"""

import sys

import patchcluster
from patchcluster.methods import METHODS, PAPER_SETTINGS, Comparison, Facts, NeighbourMethod
from patchcluster.methods.base import NEIGHBOURS_KEPT
from patchcluster.methods.neighbour_method import check_k


class KthNearest(NeighbourMethod):
    """Score a patch by the distance to its k-th nearest neighbour among all patches of the set.

    The outliers of Ramaswamy et al. (SIGMOD 2000). Scored blindly, a patch's first neighbour is
    skipped: it is the patch itself.

    Parameters: `k`, the number of neighbours.
    """

    name = "kth-nearest"
    layout = "fine"  # one vector a patch, on the grid of stride 8
    facts = Facts(("k",), PAPER_SETTINGS)  # options of a scan that it takes, and defaults

    def __init__(self, k: int = 10) -> None:
        self.k = k

    def neighbour_count(self, blind: bool) -> int:
        left = len(self.bank_) - int(blind)
        return max(check_k(self.k, left), min(NEIGHBOURS_KEPT, left))

    def summarise(self, found: Comparison) -> Comparison:
        return Comparison(
            found.distances[:, self.k - 1 : self.k],  # what `to_scores` takes for the score
            found.neighbours[:, :NEIGHBOURS_KEPT],  # what explains it
            found.distances[:, :NEIGHBOURS_KEPT],
        )


def main() -> None:
    METHODS[KthNearest.name] = KthNearest
    run = patchcluster.scan(sys.argv[1], method=KthNearest.name)
    for i in run.ranking[:10]:
        print(f"{run.scores[i]:8.4f}  {run.paths[i]}")


if __name__ == "__main__":
    main()
