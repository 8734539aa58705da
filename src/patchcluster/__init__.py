"""Find the anomalous images in a folder nobody has labelled, and where the anomaly is.

    import patchcluster
    run = patchcluster.scan("photos/")
    for i in run.ranking[:10]:
        print(run.paths[i], run.scores[i])

The names below load on first use, so that importing the package takes no time.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .datasets import read_dataset
    from .errors import PatchclusterError
    from .exporting import export
    from .pipeline.evaluation import Evaluation, evaluate
    from .pipeline.scanning import scan
    from .pipeline.scoring import ScoredImage, Scorer, Scores, score
    from .pipeline.updating import update
    from .runs.run import Run, load_run
    from .watching import watch

# PyTorch's threads wait for each other at every operation. By default they do so in a loop that
# takes a whole core from whatever else runs: with other programs a scan took twice as long. It is
# read when PyTorch is loaded; what the user has set stays.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
__all__ = [
    "Evaluation",
    "PatchclusterError",
    "Run",
    "ScoredImage",
    "Scorer",
    "Scores",
    "evaluate",
    "export",
    "load_run",
    "read_dataset",
    "scan",
    "score",
    "update",
    "watch",
]

_HOMES = {
    "Evaluation": "pipeline.evaluation",
    "PatchclusterError": "errors",
    "Run": "runs.run",
    "ScoredImage": "pipeline.scoring",
    "Scorer": "pipeline.scoring",
    "Scores": "pipeline.scoring",
    "evaluate": "pipeline.evaluation",
    "export": "exporting",
    "load_run": "runs.run",
    "read_dataset": "datasets",
    "scan": "pipeline.scanning",
    "score": "pipeline.scoring",
    "update": "pipeline.updating",
    "watch": "watching",
}


if not TYPE_CHECKING:  # or a type checker would take any name, a mistyped one too

    def __getattr__(name: str) -> object:
        if name in _HOMES:
            return getattr(import_module(f".{_HOMES[name]}", __name__), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
