"""Retry with smaller batches after a GPU ran out of memory."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from ..errors import SettingError

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_halves(
    work: Callable[[Sequence[Item]], Result], items: Sequence[Item], what: str
) -> list[Result]:
    """Return the results of work(items), or of halves of them in order if memory runs out.

    The work of an item must not depend on the others. Raises SettingError, which names `what` was
    done, if there is not enough memory for one item.
    """
    try:
        return [work(items)]
    except torch.cuda.OutOfMemoryError as error:
        if len(items) == 1:
            reason = str(error).splitlines()[0][:120]
            raise SettingError(
                f"the memory of the GPU is too small for the {what} of one image ({reason}): "
                "choose a smaller --size, or --device cpu"
            ) from error
    torch.cuda.empty_cache()  # here, where what the error held on to is free
    middle = len(items) // 2
    return in_halves(work, items[:middle], what) + in_halves(work, items[middle:], what)
