"""A task over batches, with results on disk under a key, and the workers that do it.

Which items belong to a batch depends on the set alone, so that a scan that resumes does the same
operations in the same shapes. A finished batch is one file, with the key that it was made under;
a rerun takes up the files whose key agrees. Nothing else writes batches to the work folder.

A task has two halves: `prepare` takes one item and can run in many threads at once; `finish` takes
all items of a batch and runs once at a time on a device. Threads of this process, its devices or a
Ray cluster (ray_workers.py) do it, and give the results as they come, in any order.
"""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor

from ..runs import storage

Item = TypeVar("Item")
Ready = TypeVar("Ready")
Result = TypeVar("Result")
Taken = TypeVar("Taken", contravariant=True)
Given = TypeVar("Given", covariant=True)

Note = dict[str, Any]


class Task(Protocol[Taken, Ready, Given]):
    """A function of a batch; it can be pickled, with all that it needs.

    prefetch: items a thread that may be prepared before they are needed; 0: preparing is instant.
    """

    @property
    def prefetch(self) -> int: ...

    def prepare(self, item: Taken) -> Ready: ...

    def finish(self, ready: Sequence[Ready]) -> Given: ...

    def on(self, device: torch.device) -> Self:
        """Copy the task to a device."""


class Workers(Protocol):
    """Who does the tasks. remote: on other machines, which may see other files."""

    @property
    def remote(self) -> bool: ...

    def map(
        self, task: Task[Item, Ready, Result], batches: Iterable[tuple[int, Sequence[Item]]]
    ) -> Iterator[tuple[int, Result]]:
        """Yield the results of numbered batches, in any order; batches are taken as needed."""


@dataclass(frozen=True)
class Batch(Generic[Item]):
    """Some images, and the file that their result goes to.

    key: all that the result depends on, as JSON has it. items: reads what workers are given, when
    its turn comes.
    """

    path: Path
    key: Any
    images: int
    items: Callable[[], Sequence[Item]]


def run_stage(
    batches: Sequence[Batch[Item]],
    task: Task[Item, Ready, Result],
    workers: Workers,
    keep: Callable[[int, Result], tuple[Mapping[str, Tensor], Note]],
    done: Callable[[int, int], None],
) -> list[Note]:
    """Do what is missing of a list of batches, and return the notes of all.

    keep(n, result) gives the tensors and the note of batch n as they are kept; done(images, of).
    """
    notes = [_read_note(batch) for batch in batches]
    total = sum(batch.images for batch in batches)
    finished = sum(b.images for b, note in zip(batches, notes, strict=True) if note is not None)
    done(finished, total)
    missing = ((n, batches[n].items()) for n, note in enumerate(notes) if note is None)
    for n, result in workers.map(task, missing):
        tensors, note = keep(n, result)
        storage.write_tensors(batches[n].path, tensors, {**note, "key": batches[n].key})
        notes[n] = note
        finished += batches[n].images
        done(finished, total)
    return [note for note in notes if note is not None]


def _read_note(batch: Batch[Any]) -> Note | None:
    """Read the note of a finished batch; None: it is not there, or of another key."""
    note = storage.read_note(batch.path)
    return note if isinstance(note, dict) and note.get("key") == batch.key else None


class LocalWorkers:
    """Threads of this process, on one device."""

    remote = False

    def __init__(self, threads: int) -> None:
        self.threads = threads

    def map(
        self, task: Task[Item, Ready, Result], batches: Iterable[tuple[int, Sequence[Item]]]
    ) -> Iterator[tuple[int, Result]]:
        return _run(task, batches, self.threads)


class DeviceWorkers:
    """Several devices of this machine, each with a copy of the task and a share of the threads.

    The task is on the first of them.
    """

    remote = False

    def __init__(self, devices: Sequence[torch.device], threads: int) -> None:
        self.devices = devices
        self.threads = max(1, threads // len(devices))

    def map(
        self, task: Task[Item, Ready, Result], batches: Iterable[tuple[int, Sequence[Item]]]
    ) -> Iterator[tuple[int, Result]]:
        usual = torch.get_num_threads()
        source = _Shared(batches)
        results: queue.Queue[tuple[int, Result] | None] = queue.Queue(len(self.devices))

        def serve(which: int) -> None:
            torch.set_num_threads(self.threads)
            try:
                own = task.on(self.devices[which]) if which else task
                for result in _run(own, source, self.threads):
                    results.put(result)
            except BaseException:
                source.close()  # or the others would do all the rest before it is seen
                raise
            finally:
                results.put(None)

        with ThreadPoolExecutor(len(self.devices), "device") as pool:
            serving = [pool.submit(serve, which) for which in range(len(self.devices))]
            left = len(serving)
            try:
                while left:
                    result = results.get()
                    if result is None:
                        left -= 1
                    else:
                        yield result
            finally:
                source.close()
                while left:  # until none of them waits to put a result
                    left -= results.get() is None
                torch.set_num_threads(usual)
            for one in serving:
                one.result()


class _Shared(Iterator[Item], Generic[Item]):
    """An iterator that several threads take from."""

    def __init__(self, items: Iterable[Item]) -> None:
        self._items = iter(items)
        self._lock = threading.Lock()
        self._closed = False

    def __next__(self) -> Item:
        with self._lock:
            if self._closed:
                raise StopIteration
            return next(self._items)

    def close(self) -> None:
        """Give nothing more."""
        self._closed = True


@contextmanager
def thread_pool(count: int, each: int = 1) -> Iterator[ThreadPoolExecutor]:
    """Start threads in which torch has `each` threads; at the end what waits is not done."""
    usual = torch.get_num_threads()
    pool = ThreadPoolExecutor(count, "patchcluster", lambda: torch.set_num_threads(each))
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(usual)  # new threads would otherwise take the pool's


def _run(
    task: Task[Item, Ready, Result], batches: Iterable[tuple[int, Sequence[Item]]], threads: int
) -> Iterator[tuple[int, Result]]:
    """Finish batch after batch in this thread, while others prepare the items of the next ones."""
    if not task.prefetch:
        for number, items in batches:
            yield number, task.finish([task.prepare(item) for item in items])
        return
    with thread_pool(threads) as pool:
        waiting: deque[tuple[int, list[Future[Ready]]]] = deque()

        def finish() -> tuple[int, Result]:
            number, futures = waiting.popleft()
            return number, task.finish([future.result() for future in futures])

        for number, items in batches:
            waiting.append((number, [pool.submit(task.prepare, item) for item in items]))
            while sum(len(f) for _, f in waiting) - len(waiting[0][1]) >= task.prefetch * threads:
                yield finish()
        while waiting:
            yield finish()
