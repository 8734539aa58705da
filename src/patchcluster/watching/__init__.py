"""New images scored against the bank of a run as they arrive in a folder.

arrivals.py   finds files that have arrived and settled
table.py      the results, by which a restart knows what was scored
"""

import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from ..errors import InputError, PatchclusterError, RunError, SettingError, UnreadableImage
from ..images.inputs import is_url, read_input, reason
from ..pipeline.scoring import Scorer
from ..runs import runfolder
from ..runs.run import Run, load_run
from .arrivals import NEW, Arrivals, Known, Stamp, read_stamp
from .table import Box, Row, open_table

__all__ = ["Box", "Row", "watch"]

_SHARE = 0.1  # largest share of the time spent on listing the folder
_RETRY = 30.0  # seconds until a file that could not be read is tried again
_PREFETCHED = 16  # images per thread, at most, that are scored before their rows are written


def _print_line(line: str) -> None:
    print(f"patchcluster: {line}", file=sys.stderr, flush=True)


def watch(
    run: Scorer | Run | str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    output: str | os.PathLike[str] | None = None,
    settle: float = 2.0,
    interval: float = 1.0,
    existing: bool = True,
    once: bool = False,
    device: str | None = None,
    weights: str | None = None,
    tell: Callable[[str], None] = _print_line,
) -> Iterator[Row]:
    """Score the images of a folder as they arrive and have settled, against the bank of a run.

    A row is in the table `output` (by default RUN-watch.csv, next to the run), and on disk, before
    it is given. What the table has is not scored again, whenever the watch was ended; a file whose
    bytes change is. The run is used as it is at the start, and is not changed.

    folder: one on this machine, searched by the rules of `scan`. settle: seconds that a file's size
    and time must not have changed for; interval: seconds between two listings of the folder.
    existing: whether files that are there at the start are scored. once: end when these are scored.
    device, weights: as in `Scorer`. tell: called with lines about what happens.

    Ends with `once`, or when the iterator is closed. Raises SettingError or InputError at once; at
    the first row RunError (also if another process writes the table) and WeightsError; RunError
    later if the table cannot be written.
    """
    for name, value, least in (("settle", settle, 0), ("interval", interval, 0.01)):
        if not (math.isfinite(value) and value >= least):
            raise SettingError(f"{name} {value:g}: give seconds, {least:g} or more")
    given = os.fspath(folder)
    if is_url(given) or (output is not None and is_url(os.fspath(output))):
        raise SettingError("a watch needs a folder and a table on this machine, not a URL")
    root = Path(os.path.abspath(given))
    if not root.is_dir():
        raise InputError(f"{given!r} is not a folder that is there: name the one to watch")
    known = run.run if isinstance(run, Scorer) else run if isinstance(run, Run) else load_run(run)
    path = _choose_table(known, output)
    if runfolder.is_run(root):
        raise InputError(f"{given!r} is a run: name a folder that images arrive in")

    def load() -> Scorer:
        return run if isinstance(run, Scorer) else Scorer(known, device=device, weights=weights)

    return _watch(load, Arrivals(root, settle, path, tell), interval, existing, once)


def _choose_table(run: Run, output: str | os.PathLike[str] | None) -> Path:
    """Return the path of the table. Raises RunError inside a run, which may be replaced."""
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
    load: Callable[[], Scorer], arrivals: Arrivals, interval: float, existing: bool, once: bool
) -> Iterator[Row]:
    path, tell = arrivals.table, arrivals.tell
    with open_table(path, tell) as table:  # before the model is loaded: refuses a second watch
        arrivals.known = table.known
        scorer = load()
        if not existing:
            arrivals.take_as_known()
        tell(f"watching {str(arrivals.folder)!r}, rows go to {str(path)!r}")
        warned = False
        with scorer.threads() as pool:
            for files in _look_repeatedly(arrivals, interval, once):
                for row in _score_new(pool, scorer, files, arrivals.known):
                    table.append(row)
                    if row.same_as and not warned:
                        tell(f"{row.path!r} is in the set itself: see the column same_as")
                        warned = True
                    yield row
        if arrivals.waiting:
            count = len(arrivals.waiting)
            tell(f"files that have not settled: {count}; the next start looks again")


def _look_repeatedly(
    arrivals: Arrivals, interval: float, once: bool
) -> Iterator[list[tuple[str, Stamp]]]:
    """List the folder repeatedly and yield the files that have settled; forever unless `once`."""
    first = time.monotonic()
    while True:
        start = time.monotonic()
        files = arrivals.look(start)
        took = time.monotonic() - start
        yield files
        if once and start - first >= arrivals.settle:
            return
        time.sleep(max(interval, took * (1 / _SHARE - 1)))


def _score_new(
    pool: ThreadPoolExecutor,
    scorer: Scorer,
    files: list[tuple[str, Stamp]],
    known: dict[str, Known],
) -> Iterator[Row]:
    """Yield the new rows of files, in their order."""

    def examine(file: tuple[str, Stamp]) -> tuple[Known, Row | None] | None:
        return _examine(scorer, *file, known.get(file[0], NEW))

    together = _PREFETCHED * scorer.parallel
    for start in range(0, len(files), together):
        batch = files[start : start + together]
        for (path, _), result in zip(batch, pool.map(examine, batch), strict=True):
            if result is not None:
                known[path], row = result
                if row is not None:
                    yield row


def _examine(
    scorer: Scorer, path: str, stamp: Stamp, before: Known
) -> tuple[Known, Row | None] | None:
    """Score a file unless its content is known.

    Return what is known of it now, and its new row, if any; None: it has changed meanwhile, and
    arrives again.
    """
    row = Row(
        path=path, file_size=stamp[0], modified=stamp[1], threshold=scorer.run.threshold.value
    )
    try:
        data = read_input(path)
    except UnreadableImage as error:
        if read_stamp(path) != stamp:
            return None
        known = Known(stamp, before.sha256, str(error), time.monotonic() + _RETRY)
        return known, None if known.error == before.error else replace(row, skipped=known.error)
    if read_stamp(path) != stamp:
        return None
    known = Known(stamp, sha256(data).hexdigest())
    if known.sha256 == before.sha256:
        return known, None
    row = replace(row, sha256=known.sha256)
    try:
        row = row.with_scores(scorer.score(data, path))
    except UnreadableImage as error:
        row = replace(row, skipped=str(error))
    except PatchclusterError:  # of the run, not of the image
        raise
    except Exception as error:  # a bug: the watch continues with the next image
        why = f"unexpected {type(error).__name__}: {reason(error)} (a bug: please report it)"
        row = replace(row, skipped=why)
    return known, row
