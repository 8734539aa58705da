"""Devices that the network and the search run on."""

import torch

from ..errors import SettingError


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
