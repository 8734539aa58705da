"""The command in processes of its own, which a test may kill.

A start takes seconds, nearly all of them imports. So most commands run in a process that is forked
from one that has imported everything and built nothing; `anew` starts one as a user does.
"""

import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

from faults.outcomes import without_progress

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    [
        "patchcluster.cli",
        "patchcluster.pipeline.scanning",
        "patchcluster.benchmark",
        "patchcluster.demo",
        "patchcluster.pipeline.evaluation",
        "patchcluster.review.app",
        "patchcluster.review.session",
        "timm",
        "uvicorn",
        "pytest",
    ]
)
LONGEST = 300  # seconds, of any command here
_started: list["Command"] = []


@functools.cache
def _logs() -> tempfile.TemporaryDirectory[str]:
    """Where commands print to, never on a full disk; forked processes, which may be killed before
    they could remove it, have none of their own."""
    return tempfile.TemporaryDirectory(prefix="patchcluster-faults-")


class Command:
    """`patchcluster ARGUMENTS`, running in a folder."""

    def __init__(
        self,
        arguments: Sequence[str],
        folder: Path,
        anew: bool = False,
        first: Callable[[], None] | None = None,
    ) -> None:
        """Start it. first: is called in a forked process before the command."""
        descriptor, name = tempfile.mkstemp(dir=_logs().name)
        self._log = Path(name)
        self._started = time.monotonic()
        self._process: subprocess.Popen[bytes] | BaseProcess
        if anew:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "patchcluster", *arguments],
                cwd=folder,
                stdout=descriptor,
                stderr=descriptor,
            )
        else:
            self._process = _FORKS.Process(target=_run, args=(arguments, folder, name, first))
            self._process.start()
        os.close(descriptor)
        _started.append(self)

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def printed(self) -> str:
        """Standard output and error so far."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def wait(self) -> int:
        """Wait for its end; gives the exit code, or minus the signal that ended it."""
        if isinstance(self._process, subprocess.Popen):
            return self._process.wait(LONGEST)
        self._process.join(LONGEST)
        assert self._process.exitcode is not None, self.printed
        return self._process.exitcode

    def finish(self) -> float:
        """Wait for its end, which must be a success; gives the seconds that it took."""
        code = self.wait()
        assert code == 0, self.printed
        return time.monotonic() - self._started

    def fail(self) -> str:
        """Wait for its end, which must be one line and exit code 1; gives the line."""
        code, printed = self.wait(), without_progress(self.printed)
        assert code == 1, printed
        assert printed.count("\n") == 1, printed
        assert printed.startswith("patchcluster: "), printed
        return printed

    def kill(self, after: float = 0.0) -> bool:
        """Kill it so many seconds after its start; False: it had ended by then."""
        time.sleep(max(0.0, self._started + after - time.monotonic()))
        self._process.kill()
        return self.wait() == -signal.SIGKILL

    def interrupt(self) -> None:
        """End it as Ctrl-C does, which must be a success."""
        os.kill(self.pid, signal.SIGINT)
        self.finish()

    def has_ended(self) -> bool:
        if isinstance(self._process, subprocess.Popen):
            return self._process.poll() is not None
        return self._process.exitcode is not None

    def wait_until_stopped(self) -> None:
        """Wait until it has stopped itself (`watching.stop`)."""
        while Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            assert not self.has_ended(), self.printed
            time.sleep(0.005)

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)


def end_all() -> None:
    """Kill what a test has left running."""
    while _started:
        _started.pop().kill()


def _run(
    arguments: Sequence[str], folder: Path, log: str, first: Callable[[], None] | None
) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.chdir(folder)
    sys.argv = ["patchcluster", *arguments]
    from patchcluster.cli import main

    if first is not None:
        first()
    main()
