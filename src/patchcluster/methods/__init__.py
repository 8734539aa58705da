"""The methods by name. A new one is a file in this folder and a line here."""

from .base import Comparison, Method, NeighbourMethod
from .musc import MuSc
from .padim import PaDiM
from .patchcluster import PatchCluster
from .patchcluster_plus import PatchClusterPlus
from .patchcore import PatchCore
from .patchcore_lof import PatchCoreLOF
from .reverse_distillation import ReverseDistillation
from .spade import Spade, SpadeCluster

METHODS: dict[str, type[Method]] = {
    "patchcluster-plus": PatchClusterPlus,
    "patchcluster": PatchCluster,
    "patchcore": PatchCore,
    "patchcore-lof": PatchCoreLOF,
    "spade": Spade,
    "spade-cluster": SpadeCluster,
    "padim": PaDiM,
    "reverse-distillation": ReverseDistillation,
    "musc": MuSc,
}

__all__ = [
    "METHODS",
    "Comparison",
    "Method",
    "MuSc",
    "NeighbourMethod",
    "PaDiM",
    "PatchCluster",
    "PatchClusterPlus",
    "PatchCore",
    "PatchCoreLOF",
    "ReverseDistillation",
    "Spade",
    "SpadeCluster",
]
