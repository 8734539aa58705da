"""Patches -> score grids: the methods by name. A new one is a file here and its line in facts.py.

facts.py          the methods by name, and what is asked of them before they are loaded
base.py           what every method has in common
neighbour_method.py  what those have that score by the nearest rows of a bank
grids.py          patches of images: in memory, or read when they are asked for
whole_bank.py     methods whose bank has all patches of images
stages.py         the stages of patches, normalised, and the bank of one
ranked_images.py  the images nearest to each patch
patchcluster_plus.py  the default
patchcluster.py, patchcore_lof.py, spade.py, padim.py, reverse_distillation.py
                  those of the paper
musc.py           MuSc
"""

from collections import UserDict
from collections.abc import MutableMapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .facts import CLASSES, FACTS, Facts

if TYPE_CHECKING:
    from .base import Comparison, Method
    from .musc import MuSc
    from .neighbour_method import NeighbourMethod
    from .padim import PaDiM
    from .patchcluster import PatchCluster, PatchCore
    from .patchcluster_plus import PatchClusterPlus
    from .patchcore_lof import PatchCoreLOF
    from .reverse_distillation import ReverseDistillation
    from .spade import Spade, SpadeCluster


class _Methods(UserDict[str, Any]):
    """Classes by name; those that are given as file and class are loaded when asked for."""

    def __getitem__(self, name: str) -> Any:
        found = self.data[name]
        return _load(*found[:2]) if isinstance(found, tuple) else found


def facts_of(name: str) -> Facts:
    """Return the facts of a method; one of this package is not loaded for that."""
    return FACTS[name] if name in FACTS else METHODS[name].facts


def _load(file: str, name: str) -> Any:
    return getattr(import_module(f".{file}", __name__), name)


METHODS: MutableMapping[str, "type[Method]"] = _Methods(CLASSES)

__all__ = [
    "METHODS",
    "Comparison",
    "Facts",
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
    "facts_of",
]


if not TYPE_CHECKING:  # or a type checker would take any name, a mistyped one too
    _BASES = (("base", "Comparison"), ("base", "Method"), ("neighbour_method", "NeighbourMethod"))

    def __getattr__(name: str) -> object:
        for file, class_name in (*_BASES, *(row[:2] for row in CLASSES.values())):
            if name == class_name:
                return _load(file, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
