"""A function of many items, in the threads of this process."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_AT_A_TIME = 16  # items that a thread takes at once, where there are many


def map_in_threads(
    work: Callable[[Item], Result], items: Sequence[Item], threads: int
) -> Iterator[Result]:
    """Yield what a function returns for each item, in their order, from so many threads.

    A thread takes a few items at a time: handing over a single one takes as long as a map does.
    """
    few = max(1, min(_AT_A_TIME, len(items) // (_AT_A_TIME * threads)))
    lots = [items[i : i + few] for i in range(0, len(items), few)]
    with ThreadPoolExecutor(threads, "map") as pool:
        for results in pool.map(lambda lot: [work(item) for item in lot], lots):
            yield from results
