"""New images scored against the bank of a run as they arrive in a folder.

arrivals.py   which files have arrived and settled
table.py      what was found: the results, and the memory of what was scored
notices.py    who is told of flagged images
"""

import hashlib
import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from .. import runfolder
from ..errors import InputError, PatchclusterError, RunError, SettingError, UnreadableImage
from ..inputs import is_url, read_input, reason
from ..runs import Run, load_run
from ..scoring import Scorer
from .arrivals import RETRY, Arrival, Arrivals, Memory
from .notices import Command, Courier, Notice, Webhook, forget
from .table import Box, Row, Table, open_table

__all__ = ["Box", "Row", "watch"]

_SHARE = 0.1  # of the time, at most, that goes into looking at the folder
_NOTICES = (Command.name, Webhook.name)

T = TypeVar("T")
R = TypeVar("R")


def _print_line(line: str) -> None:
    print(f"patchcluster: {line}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class _Options:
    settle: float
    interval: float
    existing: bool
    once: bool


def watch(
    run: Scorer | Run | str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    output: str | os.PathLike[str] | None = None,
    settle: float = 2.0,
    interval: float = 1.0,
    existing: bool = True,
    once: bool = False,
    on_flagged: str | None = None,
    webhook: str | None = None,
    timeout: float = 30.0,
    device: str | None = None,
    weights: str | None = None,
    tell: Callable[[str], None] = _print_line,
) -> Iterator[Row]:
    """Score the images of a folder as they arrive and have settled, against the bank of a run.

    A row is in the table `output` (by default RUN-watch.csv beside the run), and on disk, before it
    is given. What the table has is not scored again, whenever the watch was ended; a file whose
    bytes change is. The run is used as it is at the start, and is not changed.

    folder: one on this machine, searched by the rules of `scan`. settle: seconds that a file's size
    and time must not have changed for; interval: seconds between two looks at the folder. existing:
    whether files that are there at the start are scored. once: end when what is there at the start
    is scored. on_flagged: a command for each flagged image, see `notices.Command`; webhook: an
    address that each is posted to; timeout: seconds that either may take. device, weights: as in
    `Scorer`. tell: is given a line on what happens.

    Ends with `once`, or when the iterator is closed. Raises SettingError or InputError at once; at
    the first row RunError (also if another process writes the table) and WeightsError; RunError
    later if the table cannot be written.
    """
    for name, value in (("settle", settle), ("interval", interval), ("timeout", timeout)):
        least = 0 if name == "settle" else 0.01
        if not (math.isfinite(value) and value >= least):
            raise SettingError(f"{name} {value:g}: give seconds, {least:g} or more")
    given = os.fspath(folder)
    if is_url(given) or (output is not None and is_url(os.fspath(output))):
        raise SettingError("a watch needs a folder and a table on this machine, not a URL")
    root = Path(os.path.abspath(given))
    if not root.is_dir():
        raise InputError(f"{given!r} is not a folder that is there: name the one to watch")
    notices: list[Notice] = []
    if on_flagged is not None:
        notices.append(Command(on_flagged, timeout))
    if webhook is not None:
        notices.append(Webhook(webhook, timeout))
    known = run.run if isinstance(run, Scorer) else run if isinstance(run, Run) else load_run(run)
    path = _choose_table(known, output)
    if runfolder.is_run(root):
        raise InputError(f"{given!r} is a run: name a folder that images arrive in")

    def load() -> Scorer:
        return run if isinstance(run, Scorer) else Scorer(known, device=device, weights=weights)

    options = _Options(settle, interval, existing, once)
    return _watch(load, root, path, options, notices, tell)


def _choose_table(run: Run, output: str | os.PathLike[str] | None) -> Path:
    """Where the table is. Raises RunError if that is inside a run, which may be replaced."""
    if output is not None:
        path = Path(os.path.abspath(output))
    else:
        folder = Path(os.path.abspath(run.folder))
        path = folder.with_name(f"{folder.name}-watch.csv")
    if path.is_dir():
        raise RunError(f"{str(path)!r} is a folder: name a CSV file with -o")
    if any(runfolder.is_run(parent) for parent in path.parents):
        raise RunError(f"{str(path)!r} lies in a run, which may be replaced: choose another -o")
    return path


def _watch(
    load: Callable[[], Scorer],
    root: Path,
    path: Path,
    options: _Options,
    notices: list[Notice],
    tell: Callable[[str], None],
) -> Iterator[Row]:
    with ExitStack() as stack:
        table = stack.enter_context(open_table(path, tell))  # first: a second watch is refused soon
        memory = _remember(table)
        arrivals = Arrivals(root, options.settle, memory, runfolder.is_run, [path], tell)
        for name in _NOTICES:
            if name not in [notice.name for notice in notices]:
                forget(path, name)
        couriers = [Courier(table, notice, tell) for notice in notices]
        for courier in couriers:
            stack.callback(courier.stop)
        examiner = _Examiner(load(), memory)
        if not options.existing:
            arrivals.take_as_known()
        pool = stack.enter_context(examiner.scorer.threads())
        tell(f"watching {str(root)!r}, rows go to {str(path)!r}")
        warned = False
        for arrived in _look_again_and_again(arrivals, options):
            for found in _in_order(pool, examiner.examine, arrived, 2 * examiner.scorer.parallel):
                row = _note(found, memory)
                if row is None:
                    continue
                table.append(row)
                for courier in couriers:
                    courier.wake()
                if row.same_as and not warned:
                    warned = True
                    tell(
                        f"{row.path!r} is in the set itself, and may look more ordinary than it is"
                    )
                yield row
        if arrivals.waiting:
            tell(f"files that have not settled: {arrivals.waiting}; the next start looks again")
        for courier in couriers:
            courier.finish()


def _remember(table: Table) -> Memory:
    """What a table knows of files; those that could not be read are tried again."""
    memory = Memory()
    for cells, _ in table.read():
        try:
            stamp = (int(cells["file_size"]), int(cells["modified"]), 0)
            if cells["sha256"]:
                memory.note(cells["path"], stamp, cells["sha256"])
            else:
                memory.note_unread(cells["path"], stamp, cells["skipped"])
        except (KeyError, ValueError):  # edited: the file comes again
            continue
    return memory


def _look_again_and_again(arrivals: Arrivals, options: _Options) -> Iterator[list[Arrival]]:
    """What has settled at each look; without end, but for `once`."""
    first = time.monotonic()
    while True:
        start = time.monotonic()
        arrived = arrivals.look(start)
        took = time.monotonic() - start
        yield arrived
        if options.once and start - first >= options.settle:
            return
        time.sleep(max(options.interval, took * (1 / _SHARE - 1)))


@dataclass(frozen=True)
class _Found:
    """What was found of a file that has settled; `row` None: what is known already."""

    arrival: Arrival
    sha256: str  # "": it could not be read
    row: Row | None
    unread: str = ""  # why not


class _Examiner:
    """Reads and scores files; from several threads."""

    def __init__(self, scorer: Scorer, memory: Memory) -> None:
        self.scorer = scorer
        self._memory = memory
        self._threshold = scorer.run.threshold.value

    def examine(self, arrival: Arrival) -> _Found | None:
        """Score a file; None: it is another one by now, or gone."""
        try:
            data = read_input(arrival.path)
        except UnreadableImage as error:
            return self._give_up(arrival, "", str(error)) if arrival.is_still_so() else None
        if not arrival.is_still_so():
            return None
        sha256 = hashlib.sha256(data).hexdigest()
        if self._memory.has_content(arrival.path, sha256):
            return _Found(arrival, sha256, None)
        modified = arrival.stamp[1]
        try:
            image = self.scorer.score(data, arrival.path)
        except UnreadableImage as error:
            return self._give_up(arrival, sha256, str(error))
        except PatchclusterError:  # of the run, not of the image
            raise
        except Exception as error:  # the next image may be another matter
            words = f"unexpected {type(error).__name__}: {reason(error)} (a bug: please report it)"
            return self._give_up(arrival, sha256, words)
        return _Found(arrival, sha256, Row.of_image(image, modified, self._threshold))

    def _give_up(self, arrival: Arrival, sha256: str, why: str) -> _Found:
        size, modified, _ = arrival.stamp
        row = Row.of_unreadable(arrival.path, why, sha256, size, modified, self._threshold)
        if sha256:
            return _Found(arrival, sha256, row)
        known = self._memory.has_failed(arrival.path, why)
        return _Found(arrival, "", None if known else row, why)


def _note(found: _Found | None, memory: Memory) -> Row | None:
    """Remember what was found; gives the row that is new."""
    if found is None:
        return None
    path, stamp = found.arrival.path, found.arrival.stamp
    if found.sha256:
        memory.note(path, stamp, found.sha256)
    else:
        memory.note_unread(path, stamp, found.unread, time.monotonic() + RETRY)
    return found.row


def _in_order(
    pool: ThreadPoolExecutor, work: Callable[[T], R], items: Iterable[T], ahead: int
) -> Iterator[R]:
    """The results of some work in the order of its items, of which so many are taken up at most."""
    jobs: deque[Future[R]] = deque()
    for item in items:
        jobs.append(pool.submit(work, item))
        if len(jobs) >= ahead:
            yield jobs.popleft().result()
    while jobs:
        yield jobs.popleft().result()
