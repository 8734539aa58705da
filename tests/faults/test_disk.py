"""A disk that is full, and writes that the kernel refuses: one line says so; the same command ends
as if nothing had been, once there is room.
"""

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from faults.commands import IMAGES, RUN, VERBS, Workplace, check_same, read_output
from faults.outcomes import mounted
from faults.processes import Command
from faults.reviewing import Reviewing
from faults.watching import before, fill, refuse_one_write

pytestmark = pytest.mark.faults

# Each kind of write of each command: the first, or one in the middle.
WRITES = {
    "scan": [
        "open .lock 1",
        "open .run.json.part 1",
        "open thumbnails/.N.jpg.part 7",
        "mkdir .work/.features-N.safetensors.part 2",
        "mkdir .work/.fitted-N.safetensors.part 1",
        "mkdir .work/.comparison-N-N.safetensors.part 2",
        "open maps/.N.npy.part 5",
        "open .scores.csv.part 1",
        "open .regions.csv.part 1",
        "mkdir .neighbours.safetensors.part 1",
        "mkdir .bank.safetensors.part 1",
        "open .run.json.part 2",
        "open .report.html.part 1",
    ],
    "scan other settings": ["open .run.json.part 1"],
    "scan --labels": [
        "mkdir .work/.comparison-N-N.safetensors.part 2",
        "open .run.json.part 1",
        "open maps/.N.npy.part 5",
        "mkdir .bank.safetensors.part 1",
        "open .run.json.part 2",
        "open .report.html.part 1",
        "open .run.json.part 3",
    ],
    "report --flag-top": [
        "open .run.json.part 1",
        "open .scores.csv.part 1",
        "open .report.html.part 1",
        "open .run.json.part 2",
    ],
    "benchmark": [
        "open .benchmark.json.part 1",
        "mkdir .work/part/.N.safetensors.part 1",
        "open .results.csv.part 1",
        "open .report.md.part 1",
    ],
}
CASES = [(name, change) for name, changes in WRITES.items() for change in changes]
REFUSED = [
    case
    for case in CASES
    if case[0] in ("scan", "report --flag-top")
    and case[1] != "open .lock 1"  # no change follows it, which would end the refusal
]


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small file system of its own."""
    folder = tmp_path_factory.mktemp("disk")
    with mounted(folder, "size=64m"):
        yield folder


@pytest.fixture(scope="module")
def place_on_disk(disk):
    return Workplace(disk)


@pytest.mark.parametrize(("name", "change"), CASES)
def test_a_disk_that_is_full(disk, place_on_disk, name, change):
    folder = place_on_disk.prepare(name)
    full = partial(before, folder / VERBS[name].output, change, partial(fill, disk))
    said = place_on_disk.start(name, folder, full).fail()
    assert re.search(r"cannot write .*no space left on device.*\. Make room", said, re.I)
    (disk / "ballast").unlink()
    place_on_disk.check_survived(name, folder)


@pytest.mark.parametrize(("name", "change"), REFUSED)
def test_a_write_that_is_refused(workplace, name, change):
    folder = workplace.prepare(name)
    refused = partial(refuse_one_write, folder / VERBS[name].output, change)
    said = workplace.start(name, folder, refused).fail()
    assert re.search(r"cannot write .*file too large.*\. Make room", said, re.I)
    workplace.check_survived(name, folder)


def test_a_demo_on_a_full_disk(disk, place_on_disk):
    folder = place_on_disk.prepare("demo")
    fill(disk)
    said = place_on_disk.start("demo", folder).fail()
    assert "no space left on device. Make room" in said
    (disk / "ballast").unlink()
    place_on_disk.check_survived("demo", folder)


def test_a_review_that_starts_on_a_full_disk(disk, place_on_disk):
    folder = place_on_disk.copy("scan")
    fill(disk)
    said = Command(("review", RUN), folder).fail()
    assert "'run/labels.sqlite' (database or disk is full): make room" in said
    (disk / "ballast").unlink()
    check_same(read_output(folder / RUN), place_on_disk.undisturbed("scan").outputs[-1])


def test_a_review_on_a_disk_that_gets_full(disk, place_on_disk):
    folder, images = place_on_disk.copy("scan"), range(IMAGES)
    reviewing = Reviewing(folder)
    assert reviewing.label(images, "normal")[0] == 200
    fill(disk)
    status, answer = reviewing.label(images, "anomalous")
    assert status == 500
    assert "make room" in json.loads(answer)["error"]
    assert "no space left on device" in reviewing.do("rescore").lower()
    assert reviewing.labels() == dict.fromkeys(images, "normal")
    (disk / "ballast").unlink()
    assert reviewing.label([3, 4], "anomalous")[0] == 200
    expected = {**dict.fromkeys(images, "normal"), 3: "anomalous", 4: "anomalous"}
    assert reviewing.labels() == expected
    reviewing.command.kill()
    again = Reviewing(folder)
    assert again.labels() == expected
    assert again.do("rescore") == ""
    again.command.interrupt()
