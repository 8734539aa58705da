"""Patches -> score grids: the methods by name. A new one is a file here and its line in CLASSES.

What is asked of methods before they are loaded stands here too: torch takes a second.

base.py           what every method has in common
neighbour_method.py  what those have that score by the nearest rows of a bank
grids.py          patches of images: in memory, or read when they are asked for
stages.py         methods that compare stage by stage: the stages, normalised, and the bank of one
ranked_images.py  the images nearest to each patch
patchcluster_plus.py  the default
patchcluster.py, patchcore_lof.py, spade.py, padim.py, reverse_distillation.py
                  those of the paper
musc.py           MuSc
"""

from collections import UserDict
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

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


PAPER_SETTINGS: dict[str, Any] = {"size": (224,), "frame": 224, "image_score": "max"}


@dataclass(frozen=True)
class Facts:
    """What is asked of a method before it is loaded.

    options: names of `Settings` that its constructor takes. settings: of a scan, as it was measured
    with the method; they override the defaults of `Settings`. image_scores: rules that need more
    than the map. takes_parts: whether it can compare blocks of a grid side by side.
    """

    options: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    image_scores: tuple[str, ...] = ()
    takes_parts: bool = True


_REWEIGHTED = PAPER_SETTINGS | {"image_score": "reweighted"}
_GLOBAL = PAPER_SETTINGS | {"image_score": "global"}

# Name -> file, class and facts.
CLASSES = {
    "patchcluster-plus": (
        "patchcluster_plus",
        "PatchClusterPlus",
        Facts(("k", "bank_images", "local_weight", "saturation", "stage_weights")),
    ),
    "patchcluster": (
        "patchcluster",
        "PatchCluster",
        Facts(("k", "ratio"), _REWEIGHTED, ("reweighted",)),
    ),
    "patchcore": ("patchcluster", "PatchCore", Facts(("ratio",), _REWEIGHTED, ("reweighted",))),
    "patchcore-lof": ("patchcore_lof", "PatchCoreLOF", Facts(("k",), PAPER_SETTINGS)),
    "spade": ("spade", "Spade", Facts((), _GLOBAL, ("global",))),
    "spade-cluster": ("spade", "SpadeCluster", Facts(("k",), _GLOBAL, ("global",))),
    "padim": ("padim", "PaDiM", Facts(("seed",), PAPER_SETTINGS, takes_parts=False)),
    "reverse-distillation": (
        "reverse_distillation",
        "ReverseDistillation",
        Facts(("seed",), PAPER_SETTINGS, takes_parts=False),
    ),
    "musc": ("musc", "MuSc", Facts((), PAPER_SETTINGS, ("rescored",), takes_parts=False)),
}
FACTS = {name: facts for name, (_, _, facts) in CLASSES.items()}


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
    "PAPER_SETTINGS",
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
