"""The methods by name, and what is asked of them before they are loaded: torch takes a second."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

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
