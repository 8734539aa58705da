"""Files that are hard to read, in one folder with ordinary ones."""

import json
import re
import subprocess
import sys

import pytest

import patchcluster
from conftest import write_set
from faults.decoding import make_cases

pytestmark = pytest.mark.faults

CASES = make_cases()


@pytest.fixture(scope="module")
def scanned(tmp_path_factory):
    """One scan of all cases beside 8 ordinary images: its run, and what the command printed."""
    root = tmp_path_factory.mktemp("decoding")
    write_set(root / "images")
    for case in CASES:
        (root / "images" / case.name).write_bytes(case.data)
    command = [sys.executable, "-m", "patchcluster", "scan", "images", "-o", "run", "--size", "64"]
    done = subprocess.run([*command, "--json"], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return patchcluster.load_run(root / "run"), json.loads(done.stdout)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_file_is_scored_or_skipped_with_the_reason(scanned, case):
    run, _ = scanned
    skipped = {skip.path.removeprefix("images/"): skip.reason for skip in run.skipped}
    if case.reason:
        assert case.name in skipped
        assert re.search(case.reason, skipped[case.name])
        assert "\n" not in skipped[case.name]
        assert f"images/{case.name}" not in run.paths
        return
    assert case.name not in skipped, skipped[case.name]
    image = run.images[run.index(f"images/{case.name}")]
    assert (image.width, image.height) == case.size
    assert run.map(image.path).shape == case.size[::-1]
    assert run.scores[run.index(image.path)] >= 0


def test_every_file_is_accounted_for(scanned):
    run, printed = scanned
    assert len(run) + len(run.skipped) == len(CASES) + 8
    assert printed["images"] == len(run)
