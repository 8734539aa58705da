"""Two processes on one run: the second is told so, and the first ends as if it were alone.

The first stops itself (SIGSTOP) right before it writes a file, and goes on when the second is done.
"""

from contextlib import contextmanager
from functools import partial

import pytest

from faults.commands import RUN, VERBS, check_same, read_output
from faults.processes import Command
from faults.reviewing import Reviewing
from faults.watching import before, stop

pytestmark = pytest.mark.faults

SCAN, LABELS = VERBS["scan"].arguments, VERBS["scan --labels"].arguments
IN_USE = "'run' is in use by another process: wait for it, or choose another -o"
WRITTEN = "'run' is being written by another process: wait for it"
REVIEW = ("review", RUN, "--no-browser")

# The first, what it is about to write; the second, and what that says.
PAIRS = [
    ("scan", "rename .work/features-N.safetensors 2", SCAN, IN_USE),
    ("scan", "rename .work/features-N.safetensors 2", (*SCAN, "--k", "1"), IN_USE),
    ("scan", "rename .work/features-N.safetensors 2", (*SCAN, "--overwrite"), IN_USE),
    ("scan", "rename scores.csv 1", ("report", RUN), IN_USE),
    ("scan", "rename scores.csv 1", REVIEW, IN_USE),
    ("scan", "rename scores.csv 1", ("score", RUN, "../images", "--quiet"), WRITTEN),
    ("scan", "rename run.json 1", LABELS, IN_USE),
    ("scan --labels", "rename bank.safetensors 1", LABELS, IN_USE),
    ("scan --labels", "rename bank.safetensors 1", ("report", RUN), IN_USE),
    ("scan --labels", "rename bank.safetensors 1", REVIEW, IN_USE),
    ("report --flag-top", "rename regions.csv 1", LABELS, IN_USE),
    ("report --flag-top", "rename regions.csv 1", ("report", RUN), IN_USE),
]


@contextmanager
def held(workplace, name, folder, change):
    """A command that waits before a change, and then ends as if it had been alone."""
    output = folder / VERBS[name].output
    first = workplace.start(name, folder, partial(before, output, change, stop))
    first.wait_until_stopped()
    yield
    first.go_on()
    first.finish()
    check_same(read_output(output), workplace.undisturbed(name).outputs[-1])


@pytest.mark.parametrize(
    ("name", "change", "second", "said"),
    PAIRS,
    ids=[f"{name}+{second[0]}" for name, _, second, _ in PAIRS],
)
def test_the_second_says_that_the_run_is_in_use(workplace, name, change, second, said):
    folder = workplace.prepare(name)
    with held(workplace, name, folder, change):
        assert Command(second, folder).fail() == f"patchcluster: {said}\n"


def test_two_reviews(workplace):
    folder = workplace.copy("scan")
    first = Reviewing(folder)
    first.ask("GET", "/api/run")
    printed = Command(REVIEW, folder).fail()
    assert "'run' is being reviewed by another process: " in printed
    first.work()
    first.command.interrupt()


def test_a_scan_while_a_review_scores_the_run(workplace):
    folder = workplace.copy("scan")
    first = Reviewing(folder, False, partial(before, folder / RUN, "rename scores.csv 1", stop))
    first.ask("POST", "/api/rescore")
    first.command.wait_until_stopped()
    printed = Command(LABELS, folder).fail()
    assert printed == f"patchcluster: {IN_USE}\n"
    first.command.go_on()
    assert first.wait_for_job() == ""
    first.command.interrupt()
    workplace.start("scan --labels", folder).finish()  # and now it can
    check_same(read_output(folder / RUN), workplace.undisturbed("scan --labels").outputs[-1])


def test_a_review_scores_a_run_while_it_is_scanned(workplace):
    folder = workplace.copy("scan")
    second = Reviewing(folder)
    second.ask("GET", "/api/run")
    with held(workplace, "scan --labels", folder, "rename scores.csv 1"):
        assert second.do("rescore") == IN_USE
        assert second.label([4], "normal")[0] == 200  # which does not change the run
    assert second.do("rescore") == ""
    second.command.interrupt()


def test_two_benchmarks(workplace):
    folder = workplace.prepare("benchmark")
    with held(workplace, "benchmark", folder, "rename cells/part/images.json 1"):
        said = workplace.start("benchmark", folder).fail()
        assert said.startswith("patchcluster: 'bench' is in use by another process: ")
