"""SIGKILL at any instant: the run can be read, the next start goes on, the scores are the same."""

import http.client
import threading
import time
from contextlib import suppress
from functools import partial

import numpy as np
import pytest

from faults.commands import RUN, VERBS, check_readable, check_same, read_output
from faults.reviewing import LABELS, Reviewing
from faults.watching import before, die

pytestmark = pytest.mark.faults

# Kills at random instants. Another verb is one line here and one in commands.VERBS.
KILLS = {
    "scan": 12,
    "scan other settings": 4,
    "scan --labels": 6,
    "scan --expect": 3,
    "scan --labels --flag-top": 3,
    "report --flag-top": 3,
    "update": 4,
    "bounded update": 4,
    "demo": 2,
    "benchmark": 2,
    "real scan": 4,
    "real scan --labels": 2,
    "real scan --expect": 2,
}

# Kills right before a change, see `watching.watch`: one of each kind, and of each time where a file
# is written several times.
DEADLY = {
    "scan": [
        "open .lock 1",
        "mkdir .work 1",
        "open .run.json.part 1",
        "rename run.json 1",
        "rename thumbnails/N.jpg 7",
        "rename .work/features-N.safetensors 2",
        "rename .work/fitted-N.safetensors 1",
        "rename .work/comparison-N-N.safetensors 2",
        "rename maps/N.npy 5",
        "rename scores.csv 1",
        "rename regions.csv 1",
        "rename neighbours.safetensors 1",
        "rename bank.safetensors 1",
        "rename run.json 2",
        "open .report.html.part 1",
        "rename report.html 1",
        "remove .work/features-N.safetensors 2",
        "rmdir .work 1",
    ],
    "scan other settings": [
        "remove report.html 1",
        "rename run.json 1",
        "remove scores.csv 1",
        "remove maps/N.npy 5",
        "rmdir maps 1",
        "remove thumbnails/N.jpg 5",
        "rmdir thumbnails 1",
        "rename thumbnails/N.jpg 3",
        "rename run.json 2",
    ],
    "scan --labels": [
        "rename .work/comparison-N-N.safetensors 2",
        "rename run.json 1",
        "rename maps/N.npy 5",
        "rename scores.csv 1",
        "rename neighbours.safetensors 1",
        "rename bank.safetensors 1",
        "rename run.json 2",
        "rename report.html 1",
        "rename run.json 3",
        "rmdir .work 1",
    ],
    "report --flag-top": [
        "rename run.json 1",
        "rename scores.csv 1",
        "rename regions.csv 1",
        "rename report.html 1",
        "rename run.json 2",
    ],
    "bounded scan": ["rename patches/N.safetensors 2"],
    "update": [
        "rename .work/features-N.safetensors 3",
        "rename .work/comparison-N-N.safetensors 2",
        "rename run.json 1",
        "rename bank.safetensors 1",
        "remove maps/N.npy 1",
        "remove thumbnails/N.jpg 1",
        "rename run.json 2",
        "rename report.html 1",
        "rename run.json 3",
        "rmdir .work 1",
    ],
    "bounded update": [
        "rename run.json 1",
        "rename bank.safetensors 1",
        "rename patches/N.safetensors 1",
        "remove maps/N.npy 1",
        "rename run.json 2",
        "rename report.html 1",
    ],
    "benchmark": [
        "open .benchmark.json.part 1",
        "rename benchmark.json 1",
        "rename .work/part/N.safetensors 3",
        "rename cells/part/images.json 1",
    ],
}


@pytest.mark.parametrize(
    ("name", "number"), [(name, i) for name, count in KILLS.items() for i in range(count)]
)
def test_killed_at_random(workplace, name, number):
    # One instant in each part of the command's life, so that they are spread over all of it.
    rng = np.random.default_rng([20, *name.encode(), number])
    instant = (number + rng.random()) / KILLS[name] * workplace.undisturbed(name).seconds
    for share in (1, 0.8, 0.6, 0.4, 0.2):  # it may be faster than it was
        folder = workplace.prepare(name)
        if workplace.start(name, folder).kill(after=share * instant):
            break
    else:
        pytest.fail("the command ends too soon to be killed")
    workplace.check_survived(name, folder)


def test_killed_again_and_again(workplace):
    known, folder = workplace.undisturbed("scan"), workplace.prepare("scan")
    for share in (0.5, 0.7, 0.6, 0.8, 0.9):
        workplace.start("scan", folder).kill(after=share * known.seconds)
        check_readable(folder, known.outputs)
    workplace.check_survived("scan", folder)


@pytest.mark.parametrize(
    ("name", "change"), [(name, change) for name, changes in DEADLY.items() for change in changes]
)
def test_killed_before_a_change(workplace, name, change):
    folder = workplace.prepare(name)
    deadly = partial(before, folder / VERBS[name].output, change, die)
    assert workplace.start(name, folder, deadly).wait() == -9
    workplace.check_survived(name, folder)


# --- reviews ------------------------------------------------------------------------------------

# As installed or not: how many kills at random instants.
REVIEWS = {"forked": 6, "real": 2}


@pytest.fixture(scope="module")
def reviewed(workplace):
    """A review that nothing disturbs: seconds of its life by how it is started; outputs."""
    seconds = {}
    for kind in REVIEWS:
        outputs = [workplace.undisturbed("scan").outputs[-1]]
        folder = workplace.copy("scan")
        start = time.monotonic()
        reviewing = Reviewing(folder, kind == "real")
        reviewing.work(partial(note_output, folder / RUN, outputs))
        seconds[kind] = time.monotonic() - start
        reviewing.command.interrupt()
        outputs.append(read_output(folder / RUN))
    return seconds, outputs


def note_output(run, outputs):
    outputs.append(read_output(run))


@pytest.mark.parametrize(
    ("kind", "number"), [(kind, i) for kind, count in REVIEWS.items() for i in range(count)]
)
def test_a_review_killed_at_random(workplace, reviewed, kind, number):
    seconds, outputs = reviewed
    rng = np.random.default_rng([21, *kind.encode(), number])
    folder = workplace.copy("scan")
    reviewing = Reviewing(folder, kind == "real")
    page = threading.Thread(target=work_until_killed, args=(reviewing,))
    page.start()
    assert reviewing.command.kill(after=(number + rng.random()) / REVIEWS[kind] * seconds[kind])
    page.join()
    check_readable(folder, outputs)
    again = Reviewing(folder)
    labels = again.labels()
    assert reviewing.confirmed.items() <= labels.items() <= LABELS.items()
    assert len(labels) - len(reviewing.confirmed) in (0, 1)  # saved, but that was not said yet
    check_readable(folder, outputs)  # the start has finished what was interrupted
    again.work()
    again.command.interrupt()
    check_same(read_output(folder / RUN), outputs[-1])


def work_until_killed(reviewing):
    with suppress(OSError, http.client.HTTPException):
        reviewing.work()
