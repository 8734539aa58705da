"""Which device the network and the search run on."""

import torch

from .errors import SettingError


def choose_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda`, `cuda:1`, `mps` -> device. Raises SettingError if it is not there."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # as torch refuses one
        reason = str(error).splitlines()[0][:120]
        raise SettingError(
            f"device {name!r} cannot be used ({reason}): choose cpu or auto"
        ) from error
    return device
