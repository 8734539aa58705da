"""A function of many items, in the threads of this process."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_AT_A_TIME = 16  # items that a thread takes at once, where there are many


def count_threads() -> int:
    """Return how many threads may work at a time: as OpenMP is told, else one a core."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    return int(told) if told.isdecimal() and int(told) else os.cpu_count() or 1


def map_in_threads(work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """Yield what a function returns for each item, in their order, from several threads.

    A thread takes a few items at a time: handing over a single one takes as long as a map does.
    """
    threads = count_threads()
    few = max(1, min(_AT_A_TIME, len(items) // (_AT_A_TIME * threads)))
    lots = [items[i : i + few] for i in range(0, len(items), few)]
    with ThreadPoolExecutor(threads, "map") as pool:
        for results in pool.map(lambda lot: [work(item) for item in lot], lots):
            yield from results
