"""Patches -> score grids: the methods by name. A new one is a file in this folder and a line here.

base.py           what every method has in common
neighbour_method.py  what those have that score by the nearest rows of a bank
grids.py          patches of images: in memory, or read when they are asked for
whole_bank.py     methods whose bank has all patches of images
stages.py         the stages of patches, normalised, and the bank of one
ranked_images.py  the images nearest to each patch
patchcluster_plus.py  the default
patchcluster.py, patchcore.py, patchcore_lof.py, spade.py, padim.py, reverse_distillation.py
                  those of the paper
musc.py           MuSc
"""

from .base import Comparison, Method
from .musc import MuSc
from .neighbour_method import NeighbourMethod
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
