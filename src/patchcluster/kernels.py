"""The library that kernels.c and placing.c are compiled to when the package is built.

Not every machine can compile it (`hatch_build.py`): whoever calls it has another way.
"""

import ctypes
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

LIBRARY = Path(__file__).with_name("_kernels.so")


@cache
def library() -> ctypes.CDLL | None:
    """The library; None: it was not compiled."""
    try:
        return ctypes.CDLL(str(LIBRARY))
    except OSError:
        return None


def call(name: str, *arguments: Tensor | ctypes.Structure | int | float) -> None:
    """Call a function of the library, which takes pointers, 64-bit numbers and float32.

    Raises MemoryError if it says that it found none.
    """
    passed = [
        ctypes.c_void_p(a.data_ptr()) if isinstance(a, Tensor)
        else ctypes.byref(a) if isinstance(a, ctypes.Structure)
        else ctypes.c_float(a) if isinstance(a, float)
        else ctypes.c_int64(a)
        for a in arguments
    ]  # fmt: skip
    if getattr(library(), name)(*passed):
        raise MemoryError(f"no memory for the buffers of {name}")


def share_out(work: Callable[[int, int], None], count: int, step: int) -> None:
    """Call work(begin, end) for 0 to count in steps, in as many threads as torch uses.

    The library lets go of Python's lock while it works.
    """
    begins, threads = range(0, count, step), torch.get_num_threads()
    if len(begins) <= 1 or threads == 1:
        if count:
            work(0, count)
        return
    pool = _own_threads(threads)
    for _ in pool.map(lambda begin: work(begin, min(begin + step, count)), begins):
        pass


def _own_threads(count: int) -> ThreadPoolExecutor:
    """Threads of the calling thread, that wait for work: to start them takes longer than many a
    piece of it. They end with it."""
    owner = os.getpid(), count  # threads do not come along into a fork
    if getattr(_local, "owner", None) != owner:
        _local.pool, _local.owner = ThreadPoolExecutor(count, "search"), owner
    pool: ThreadPoolExecutor = _local.pool
    return pool


_local = threading.local()
