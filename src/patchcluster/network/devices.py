"""Devices that the network and the search run on, and what to do when one runs out of memory."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from ..errors import SettingError

Item = TypeVar("Item")
Result = TypeVar("Result")


def choose_devices(names: str) -> list[torch.device]:
    """Parse `auto`, `cpu`, `cuda:0,cuda:1` or `mps` to devices, each once; auto: all GPUs.

    Raises SettingError if one is not there.
    """
    if names == "auto":
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if gpus > 1:
            return [torch.device("cuda", number) for number in range(gpus)]
        if gpus:
            return [torch.device("cuda")]
        return [torch.device("mps" if torch.backends.mps.is_available() else "cpu")]
    return list(dict.fromkeys(_check(name.strip()) for name in names.split(",")))


def choose_device(names: str) -> torch.device:
    """Return the first of `choose_devices`, where one device is enough."""
    return choose_devices(names)[0]


def _check(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # as torch refuses one
        reason = str(error).splitlines()[0][:120]
        raise SettingError(
            f"device {name!r} cannot be used ({reason}): choose cpu or auto"
        ) from error
    return device


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
