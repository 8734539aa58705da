"""The methods by name. A new one is a file in this folder and a line here."""

from .base import Comparison, Method
from .padim import PaDiM
from .patchcluster import PatchCluster
from .patchcluster_plus import PatchClusterPlus
from .patchcore import PatchCore
from .patchcore_lof import PatchCoreLOF
from .spade import Spade, SpadeCluster

METHODS: dict[str, type[Method]] = {
    "patchcluster-plus": PatchClusterPlus,
    "patchcluster": PatchCluster,
    "patchcore": PatchCore,
    "patchcore-lof": PatchCoreLOF,
    "spade": Spade,
    "spade-cluster": SpadeCluster,
    "padim": PaDiM,
}

__all__ = [
    "METHODS",
    "Comparison",
    "Method",
    "PaDiM",
    "PatchCluster",
    "PatchClusterPlus",
    "PatchCore",
    "PatchCoreLOF",
    "Spade",
    "SpadeCluster",
]
