"""The methods by name. A new one is one file and one line: shown on a copy of the package."""

import csv
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import patchcluster
from conftest import write_set
from patchcluster import methods
from patchcluster.methods import METHODS

PACKAGE = Path(patchcluster.__file__).parent
EXAMPLE = Path(__file__).parents[2] / "examples" / "my_method.py"


MEDIAN_SCORE = """
import torch

from . import FACTS
from .kth_nearest import KthNearest


class MedianScore(KthNearest):
    \"\"\"The k-th nearest, by the median.\"\"\"

    name = "median-score"
    facts = FACTS[name]

    def score_images(self, grids, scores, own=None):
        return torch.stack([score.median() for score in scores])
"""


# Says what is loaded with a method, and runs commands: in one process, which loads torch once.
COMMANDS = """
import sys
from patchcluster.methods import METHODS
METHODS["patchcore"]
print(*(name for name in sys.modules if name.startswith("patchcluster.methods.")))
from patchcluster.cli import app
for line in sys.argv[1:]:
    app(line.split(), standalone_mode=False)
"""


def test_a_new_method_is_one_file_and_its_name_in_one_other(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "src" / "patchcluster")
    methods = tmp_path / "src" / "patchcluster" / "methods"
    text = EXAMPLE.read_text()
    imports = text[text.index("from patchcluster.methods.base") :].partition("\n\n\n")[0]
    kind = text[text.index("class KthNearest") : text.index("def main")]
    own = re.search(r"    facts = (Facts\(.*\))", kind)[1]
    (methods / "kth_nearest.py").write_text(
        "from patchcluster.methods.base import Comparison\n"
        f"from patchcluster.methods.neighbour_method import NeighbourMethod\n{imports}\n\n"
        f"from . import FACTS\n\n\n{kind.replace(own, 'FACTS[name]')}"
    )
    registry = (methods / "__init__.py").read_text()
    line = f'    "kth-nearest": ("kth_nearest", "KthNearest", {own}),\n'
    changed = registry.replace('    "musc": ', f'{line}    "musc": ')
    assert len(changed) == len(registry) + len(line)
    # Another one inherits its constructor, and has an image score of its own.
    (methods / "median_score.py").write_text(MEDIAN_SCORE)
    facts = 'Facts(("k",), image_scores=("median",))'
    line = f'    "median-score": ("median_score", "MedianScore", {facts}),\n'
    (methods / "__init__.py").write_text(changed.replace('    "musc": ', f'{line}    "musc": '))

    write_set(tmp_path / "photos")
    own = "--method median-score --image-score median"
    commands = [f"scan photos -o run --size 64 {own}", "report run --flag-top 1", "methods"]
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, *commands],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "src")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    loaded = {name.rpartition(".")[2] for name in done.stdout.splitlines()[0].split()}
    assert loaded == {"base", "grids", "neighbour_method", "patchcluster"}
    assert "median-score\n    The k-th nearest, by the median.\n    k=" in done.stdout
    assert "\nkth-nearest\n" in done.stdout
    with open(tmp_path / "run" / "scores.csv", newline="") as file:
        scores = [float(row["score"]) for row in csv.DictReader(file)]
    assert len(scores) == 8
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > scores[-1] > 0


def test_methods_are_classes_by_their_names():
    assert {name: method.name for name, method in METHODS.items()} == {n: n for n in METHODS}
    with pytest.raises(AttributeError, match="has no attribute 'PatchClutser'"):
        methods.PatchClutser  # noqa: B018
