"""SIGKILL while a folder is watched: whole rows stay, none is missing or there twice, and what is
printed is on disk.
"""

import csv
import itertools
import json
import os
import signal
from functools import partial

import numpy as np
import pytest

from conftest import write_set
from faults.commands import RUN, TINY
from faults.processes import Command
from faults.watching import before, die

pytestmark = pytest.mark.faults

COUNT = 6
TABLE = "table.csv"
WATCH = (
    "watch", RUN, "incoming", "-o", TABLE, "--settle", "0.1", "--interval", "0.05", "--device",
    "cpu", *TINY[2:],
)  # fmt: skip
RANDOM = 6


@pytest.fixture
def folder(workplace):
    """A folder with a run, and one of images that have arrived."""
    folder = workplace.copy("scan")
    write_set(folder / "incoming", COUNT, blots=COUNT)
    return folder


def die_in_a_row(number, share):
    """Kill this process when it has written a share of the row of that number; 0: the header."""
    write, rows = os.write, itertools.count()

    def write_some(descriptor, data):
        if data.startswith((b"path,", b"/")) and next(rows) == number:
            write(descriptor, data[: int(share * len(data))])
            os.kill(os.getpid(), signal.SIGKILL)
        return write(descriptor, data)

    os.write = write_some


def printed_paths(command):
    return [
        json.loads(line)["path"]
        for line in command.printed.splitlines()
        if line.startswith("{") and line.endswith("}")
    ]


def check_survived(folder, killed):
    again = Command((*WATCH, "--once"), folder)
    again.finish()
    with open(folder / TABLE, newline="") as file:
        paths = [row["path"] for row in csv.DictReader(file, strict=True)]
    assert sorted(paths) == sorted(str(path) for path in (folder / "incoming").iterdir())
    before, after = printed_paths(killed), printed_paths(again)
    assert paths[: len(before)] == before
    assert paths[len(paths) - len(after) :] == after
    assert len(paths) - len(before) - len(after) in (0, 1)  # killed between disk and print


@pytest.mark.parametrize("share", [0.0, 0.1, 0.9, 1.0])
@pytest.mark.parametrize("number", [0, 3])
def test_killed_in_a_row(folder, number, share):
    command = Command(WATCH, folder, first=partial(die_in_a_row, number, share))
    assert command.wait() == -signal.SIGKILL
    check_survived(folder, command)


def test_killed_before_there_is_a_table(folder):
    command = Command(WATCH, folder, first=partial(before, folder, f"open {TABLE} 1", die))
    assert command.wait() == -signal.SIGKILL
    check_survived(folder, command)


@pytest.fixture(scope="module")
def seconds(workplace):
    """How long a watch that nothing disturbs takes for as many images."""
    folder = workplace.copy("scan")
    write_set(folder / "incoming", COUNT, blots=COUNT)
    return Command((*WATCH, "--once"), folder).finish()


@pytest.mark.parametrize("number", range(RANDOM))
def test_killed_at_random(folder, seconds, number):
    instant = (number + np.random.default_rng([22, number]).random()) / RANDOM * seconds
    command = Command(WATCH, folder)
    assert command.kill(after=instant)
    check_survived(folder, command)
