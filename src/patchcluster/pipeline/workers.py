"""Who does the work of a scan: the threads of this process, its devices, or a cluster (cluster.py).

A work is a function of a job, and a job is a list of items. Its first half, `prepare`, takes one
item and can run in many threads at once; its second half, `finish`, takes all of a job and runs
once at a time on a device. Workers give the results as they come, in any order: what is written of
them is for who asked.
"""

import queue
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, Protocol, Self, TypeVar

import torch

Item = TypeVar("Item")
Ready = TypeVar("Ready")
Result = TypeVar("Result")
Taken = TypeVar("Taken", contravariant=True)
Given = TypeVar("Given", covariant=True)


class Work(Protocol[Taken, Ready, Given]):
    """What is done with each job; it can be pickled, with all that it needs.

    prefetch: items a thread that may be prepared before they are needed; 0: `prepare` takes none.
    """

    @property
    def prefetch(self) -> int: ...

    def prepare(self, item: Taken) -> Ready: ...

    def finish(self, ready: Sequence[Ready]) -> Given: ...

    def on(self, device: torch.device) -> Self:
        """The same on a device, apart from this one."""


class Workers(Protocol):
    """apart: whether they are on other machines, which may see other files."""

    @property
    def apart(self) -> bool: ...

    def map(
        self, work: Work[Item, Ready, Result], jobs: Iterable[tuple[int, Sequence[Item]]]
    ) -> Iterator[tuple[int, Result]]:
        """The results of numbered jobs, in any order. Few are asked for before they are needed."""


class Here:
    """Threads of this process, on one device."""

    apart = False

    def __init__(self, threads: int) -> None:
        self.threads = threads

    def map(
        self, work: Work[Item, Ready, Result], jobs: Iterable[tuple[int, Sequence[Item]]]
    ) -> Iterator[tuple[int, Result]]:
        return _run(work, jobs, self.threads)


class Devices:
    """Several devices of this machine, with a copy of the work on each and a share of the threads.

    The first one is that on which the work is.
    """

    apart = False

    def __init__(self, devices: Sequence[torch.device], threads: int) -> None:
        self.devices = devices
        self.threads = max(1, threads // len(devices))

    def map(
        self, work: Work[Item, Ready, Result], jobs: Iterable[tuple[int, Sequence[Item]]]
    ) -> Iterator[tuple[int, Result]]:
        usual = torch.get_num_threads()
        source = _Shared(jobs)
        results: queue.Queue[tuple[int, Result] | None] = queue.Queue(len(self.devices))

        def serve(which: int) -> None:
            torch.set_num_threads(self.threads)
            try:
                own = work.on(self.devices[which]) if which else work
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


def _run(
    work: Work[Item, Ready, Result], jobs: Iterable[tuple[int, Sequence[Item]]], threads: int
) -> Iterator[tuple[int, Result]]:
    """Finish job after job in this thread, while others prepare the items of the next ones."""
    if not work.prefetch:
        for number, items in jobs:
            yield number, work.finish([work.prepare(item) for item in items])
        return
    usual = torch.get_num_threads()
    with ThreadPoolExecutor(threads, "prepare", lambda: torch.set_num_threads(1)) as pool:
        waiting: deque[tuple[int, list[Future[Ready]]]] = deque()

        def finish() -> tuple[int, Result]:
            number, futures = waiting.popleft()
            return number, work.finish([future.result() for future in futures])

        try:
            for number, items in jobs:
                waiting.append((number, [pool.submit(work.prepare, item) for item in items]))
                while _count(waiting) - len(waiting[0][1]) >= work.prefetch * threads:
                    yield finish()
            while waiting:
                yield finish()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            torch.set_num_threads(usual)  # new threads would otherwise take the pool's


def _count(waiting: Iterable[tuple[int, Sequence[Item]]]) -> int:
    return sum(len(items) for _, items in waiting)
