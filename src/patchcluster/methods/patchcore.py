"""PatchCore (Roth et al., CVPR 2022) in the paper's blind settings."""

from .facts import FACTS
from .patchcluster import PatchCluster


class PatchCore(PatchCluster):
    """Score a patch by the distance to its nearest neighbour in the bank.

    Scored blindly, the first neighbour, which is the patch itself, is skipped (the paper, section
    5): with the whole bank this is PatchCluster with K = 1. The image score is the re-weighted
    maximum (equation 3 with b = 9), see `reweight`.

    Parameters: `ratio`, the share of all patches in the coreset (the paper: 1.0, 0.25, 0.10).
    """

    name = "patchcore"
    facts = FACTS[name]

    def __init__(self, ratio: float = 0.25) -> None:
        super().__init__(k=1, ratio=ratio)
