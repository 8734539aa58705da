"""Limits as a user meets them: scans in processes of their own."""

import json
import subprocess
import sys

import pytest

from conftest import save_image, textured_image, write_set

pytestmark = pytest.mark.slow

# A process that starts one: the peak of a child is at least that of who started it.
MEASURE = """
import resource, subprocess, sys
done = subprocess.run([sys.executable, "-m", "patchcluster", "scan", *sys.argv[1:]])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
sys.exit(done.returncode)
"""


def measure(*args):
    """What a scan prints as JSON, and the largest memory of its process in bytes."""
    command = [sys.executable, "-c", MEASURE, *map(str, args), "--json", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    printed, peak = done.stdout.splitlines()
    return json.loads(printed), int(peak)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Predicted and measured, of few patches; many, in the bank or not; large pictures; tiles."""
    root = tmp_path_factory.mktemp("limits")
    write_set(root / "few", 3)
    write_set(root / "many", 48)
    write_set(root / "tiles", 4, size=1024)
    for i in range(2):
        save_image(root / "large" / f"{i}.jpg", textured_image(i, 6000, 4000))
    return [
        measure(root / name, "-o", root / f"{name}-run-{len(more)}", "--size", size, *more)
        for name, size, *more in (
            ("few", 64),
            ("many", 320),
            ("many", 320, "--bank-images", 12),
            ("large", 64),
            ("tiles", 448, "--tile"),
        )
    ]


def test_the_memory_of_the_process_is_as_predicted(scans):
    for value, peak in scans:
        assert peak <= value["memory"]["predicted"]
        assert peak == pytest.approx(value["memory"]["predicted"], rel=0.2)


def test_the_peak_in_run_json_is_that_of_the_process(scans):
    for value, peak in scans:
        assert value["memory"]["peak"] == pytest.approx(peak, rel=0.1)
