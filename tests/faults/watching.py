"""What a process is about to change in a folder, so that something can go wrong right then.

Python tells an audit hook of each file that is opened, named, linked or removed, before that is
done.
"""

import os
import re
import resource
import signal
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def watch(folder: Path, heed: Callable[[str], None]) -> None:
    """From now on, call with each change that this process is about to make in a folder.

    A change is named by what is done, to which file, and the how manieth time: `rename run.json 2`.
    Numbers in names of files are left out, so that files of a kind have one name.
    """
    root, times = f"{os.path.realpath(folder)}/", Counter[str]()

    def look(event: str, args: tuple[Any, ...]) -> None:
        path = _changed(event, args)
        if path.startswith(root):
            kind = re.sub(r"\d+", "N", path.removeprefix(root))
            change = f"{event.removeprefix('os.')} {kind}"
            times[change] += 1
            heed(f"{change} {times[change]}")

    sys.addaudithook(look)


def _changed(event: str, args: tuple[Any, ...]) -> str:
    """The path that an event is about, if something is changed by it."""
    if event == "open":
        path, _, flags = args
        return os.path.abspath(path) if isinstance(path, str) and flags & _WRITES else ""
    if event in ("os.rename", "os.link", "os.symlink"):
        return os.path.abspath(args[1])
    if event in ("os.mkdir", "os.remove", "os.rmdir"):
        folder = "" if args[-1] == -1 else os.readlink(f"/proc/self/fd/{args[-1]}")
        return os.path.abspath(os.path.join(folder, args[0]))
    return ""


def before(folder: Path, change: str, do: Callable[[], None]) -> None:
    """Do something right before a change."""
    watch(folder, lambda found: do() if found == change else None)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stop() -> None:
    """Wait for a SIGCONT."""
    os.kill(os.getpid(), signal.SIGSTOP)


def fill(disk: Path) -> None:
    """Leave no room on a disk, by a file named ballast."""
    with open(disk / "ballast", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError:
            pass  # it is full but for a part of that
        try:
            while True:
                file.write(bytes(512))
        except OSError:
            return


def refuse_one_write(folder: Path, change: str) -> None:
    """Let the kernel refuse all writes from a change on to the next one."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]

    def heed(found: str) -> None:
        most = 0 if found == change else hard
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))

    watch(folder, heed)


def in_order(*steps: Callable[[], None]) -> Callable[[], None]:
    """Several steps as one, which can be sent to another process."""
    return partial(_do_all, steps)


def _do_all(steps: tuple[Callable[[], None], ...]) -> None:
    for step in steps:
        step()
