"""SIGKILL while a folder is watched: whole rows stay, none is missing or there twice, and each
flagged image is told at least once, in the order of the rows.
"""

import itertools
import os
import signal
from functools import partial

import numpy as np
import pytest

from conftest import write_set
from faults.commands import RUN, TINY
from faults.processes import Command
from faults.watching import before, die
from patchcluster.watching.table import open_table

pytestmark = pytest.mark.faults

COUNT = 6
TABLE = "table.csv"
TELL = ("--on-flagged", """sh -c 'echo "$PATCHCLUSTER_PATH" >> told.txt'""")
WATCH = (
    "watch", RUN, "incoming", "-o", TABLE, "--settle", "0.1", "--interval", "0.05", "--device",
    "cpu", *TINY[2:], *TELL,
)  # fmt: skip
RANDOM = 6


@pytest.fixture
def folder(workplace):
    """A folder with a run that flags everything, and one of images that have arrived."""
    folder = workplace.copy("scan")
    Command(("report", RUN, "--flag-top", "12"), folder).finish()
    write_set(folder / "incoming", COUNT, blots=COUNT)
    return folder


def die_in_a_row(number, share):
    """Kill this process when it has written a share of the row of that number."""
    write, rows = os.write, itertools.count()

    def write_some(descriptor, data):
        if data.startswith(b"/") and next(rows) == number:
            write(descriptor, data[: int(share * len(data))])
            os.kill(os.getpid(), signal.SIGKILL)
        return write(descriptor, data)

    os.write = write_some


def read_paths(folder, flagged=False):
    with open_table(folder / TABLE, pytest.fail) as table:
        rows = [cells for cells, _ in table.read() if cells]
    return [row["path"] for row in rows if row["flagged"] == "true" or not flagged]


def check_survived(folder):
    Command((*WATCH, "--once"), folder).finish()
    paths = read_paths(folder)
    assert sorted(paths) == sorted(str(path) for path in (folder / "incoming").iterdir())
    flagged = read_paths(folder, flagged=True)
    assert len(flagged) > 1
    told = (folder / "told.txt").read_text().splitlines()
    assert list(dict.fromkeys(told)) == flagged
    assert len(told) <= len(flagged) + 1  # one may have been told when that was not noted yet


@pytest.mark.parametrize("share", [0.0, 0.1, 0.9, 1.0])
def test_killed_in_a_row(folder, share):
    command = Command(WATCH, folder, first=partial(die_in_a_row, 2, share))
    assert command.wait() == -signal.SIGKILL
    check_survived(folder)


@pytest.mark.parametrize(
    "change",
    [
        f"open {TABLE} 1",
        f"open ..{TABLE}.command.part 1",
        f"rename .{TABLE}.command 1",
        f"open ..{TABLE}.command.part 2",
        f"rename .{TABLE}.command 3",
    ],
)
def test_killed_before_a_change(folder, change):
    command = Command(WATCH, folder, first=partial(before, folder, change, die))
    assert command.wait() == -signal.SIGKILL
    check_survived(folder)


@pytest.fixture(scope="module")
def seconds(workplace):
    """How long a watch that nothing disturbs takes for as many images."""
    folder = workplace.copy("scan")
    write_set(folder / "incoming", COUNT, blots=COUNT)
    return Command((*WATCH, "--once"), folder).finish()


@pytest.mark.parametrize("number", range(RANDOM))
def test_killed_at_random(folder, seconds, number):
    instant = (number + np.random.default_rng([22, number]).random()) / RANDOM * seconds
    assert Command(WATCH, folder).kill(after=instant)
    check_survived(folder)
