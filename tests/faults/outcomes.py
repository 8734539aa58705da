"""Commands as a user gives them, many in one process, and what is wrong with how they end.

As a script it takes commands as JSON on standard input and gives their outcomes on standard output,
so that they can run in a process that has fewer rights, or another time of day.
"""

import contextlib
import ctypes
import json
import os
import re
import subprocess
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from patchcluster import cli

TESTS = Path(__file__).parents[1]
_DROP_FROM_BOUNDS = 24  # prctl's PR_CAPBSET_DROP
_OVERRIDES = (1, 2)  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH: permissions do not bind root


@dataclass(frozen=True)
class Outcome:
    """How a command ended: its exit code, and what it printed."""

    code: int
    output: str
    errors: str


def without_progress(printed: str) -> str:
    """What was printed but for the steps that were done before an error."""
    return re.sub(r"^\w+: \d+ done\n", "", printed, flags=re.MULTILINE)


def invoke(*args: object) -> Outcome:
    """Run a command in this process; an exception that it lets out is printed, as Python does."""
    result = CliRunner().invoke(cli.app, [str(arg) for arg in args])
    errors = without_progress(result.stderr)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        errors += "".join(traceback.format_exception(result.exception))
    return Outcome(result.exit_code, result.stdout, errors)


def invoke_as_user(commands: Sequence[Sequence[object]], cwd: Path) -> list[Outcome]:
    """Run commands in one process that file permissions bind, even if this one is root's."""
    texts = [[os.fspath(a) if isinstance(a, Path) else str(a) for a in c] for c in commands]
    done = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps(texts),
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, sys.path)])},
        capture_output=True,
        text=True,
        preexec_fn=_give_up_overrides if os.geteuid() == 0 else None,
    )
    assert done.returncode == 0, done.stderr
    return [Outcome(**one) for one in json.loads(done.stdout)]


def _give_up_overrides() -> None:
    library = ctypes.CDLL(None)
    for capability in _OVERRIDES:
        if library.prctl(_DROP_FROM_BOUNDS, capability, 0, 0, 0):
            os._exit(77)


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """A tmpfs at a folder, for a while. Skips the test if this process may not mount."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"no mount: {error}")
    if done.returncode:
        pytest.skip(f"this process may not mount: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # files may be open


def make_read_only(folder: Path) -> None:
    """Make what is mounted at a folder read-only."""
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)


def assert_one_line(outcome: Outcome, *words: str) -> None:
    """Assert that a command could not do it and said so in one line that has certain words."""
    assert outcome.code == 1, outcome
    assert outcome.output == ""
    assert outcome.errors.startswith("patchcluster: ")
    assert outcome.errors.count("\n") == 1, outcome.errors
    assert "unexpected" not in outcome.errors
    for word in words:
        assert word in outcome.errors


def assert_usage(outcome: Outcome, words: str) -> None:
    """Assert that a command was refused as wrong usage, with certain words."""
    assert outcome.code == 2, outcome
    assert outcome.output == ""
    assert "Traceback" not in outcome.errors
    assert words in " ".join(outcome.errors.replace("│", " ").split())


if __name__ == "__main__":
    outcomes = [asdict(invoke(*command)) for command in json.load(sys.stdin)]
    json.dump(outcomes, sys.stdout)
