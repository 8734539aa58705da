"""The feature network of a run as one ONNX file, for programs without PyTorch.

It takes pixels as an image has them and gives the patches that methods compare. onnx and
onnxruntime are imported where they are used: `pip install 'patchcluster[onnx]'` brings them.
"""

import importlib
import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import RunError, SettingError
from ..network.backbones import Backbone
from ..network.patches import Layout, dealt_channels, grid_stride, patch_grid, pool_neighbourhood
from ..pipeline.reflagging import load_network
from ..runs.run import Run
from ..runs.storage import write_bytes
from ..settings import resolve

TOLERANCE = 1e-3  # of the patches' root mean square, that onnxruntime may give otherwise
_OPSET = 18
_TRACED, _OTHER = (96, 160), (160, 64)  # inputs that parity is checked with; the first is traced


def export_network(run: Run, output: Path, weights: str | None = None) -> Path:
    """Write the network of a run, as `export_backbone` does; gives the path.

    weights: where the file of its weights lies now. Raises RunError, WeightsError, SettingError.
    """
    settings = resolve(**run.info.settings)
    backbone = load_network(run, weights)
    note = {"method": settings.method, "size": list(settings.size)}
    return export_backbone(backbone, settings.layout, output, note)


def export_backbone(
    backbone: Backbone, layout: Layout, output: Path, note: dict[str, Any] | None = None
) -> Path:
    """Write a network as one ONNX file, if onnxruntime gives the same by it; gives the path.

    Input `images` uint8 [1, height, width, 3], 0 to 255, sides multiples of 32. Output `patches`
    float32 [h, w, c]: the grid of `patch_grid` in a layout. The metadata of the file hold
    `patchcluster`, a JSON object: backbone, weights_sha256, layout, strides, and what `note` says.

    Raises SettingError if the network cannot be exported, or what it gives differs by more than
    1e-3 of its root mean square; RunError if the file cannot be written, or onnx is not installed.
    """
    _check_installed()
    network = _PatchNetwork(backbone.cpu(), layout).eval()  # or an export leaves it in training
    data = _describe(_trace(network), backbone, layout, note or {})
    _check_parity(data, backbone, layout)
    write_bytes(output, data)
    return output


class _PatchNetwork(nn.Module):
    """Images -> patches, in operations that ONNX has.

    `patch_grid` takes ratios of grids from their shapes, which would become part of the graph; here
    they are those of the strides. `_check_parity` holds it to give the same.
    """

    def __init__(self, backbone: Backbone, layout: Layout) -> None:
        super().__init__()
        self.backbone, self.layout = backbone, layout

    def forward(self, images: Tensor) -> Tensor:
        stages = self.backbone.compute_stages(images)
        if self.layout != "middle":
            return patch_grid(stages, self.layout)[0]
        grid = grid_stride(self.backbone.strides, self.layout)
        pairs = zip(stages, self.backbone.channels, self.backbone.strides, strict=True)
        return torch.cat([_to_middle(*pair, grid) for pair in pairs], 1)[0].permute(1, 2, 0)


def _to_middle(stage: Tensor, channels: int, stride: int, grid: int) -> Tensor:
    """A stage [1, c, h, w] on the `middle` grid of some stride: see `patch_grid`."""
    pooled = pool_neighbourhood(stage)
    if stride <= grid:
        return pooled if stride == grid else F.avg_pool2d(pooled, grid // stride)
    ratio = stride // grid
    missing = dealt_channels(channels, ratio) * ratio**2 - channels
    return F.pixel_shuffle(F.pad(pooled, (0, 0, 0, 0, 0, missing)), ratio)


def _trace(network: nn.Module) -> bytes:
    """The ONNX file of a network.

    By tracing: torch.export, with sides left open, takes minutes over the paddings of EfficientNet,
    which are the same for all multiples of 32.
    """
    example = torch.zeros(1, *_TRACED, 3, dtype=torch.uint8)
    axes = {"images": {1: "height", 2: "width"}, "patches": {0: "h", 1: "w"}}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # that tracing is the older way, and takes shapes as fixed
        path = Path(folder) / "network.onnx"
        try:
            torch.onnx.export(
                network,
                (example,),
                str(path),
                dynamo=False,
                input_names=["images"],
                output_names=["patches"],
                dynamic_axes=axes,
                opset_version=_OPSET,
            )
        except Exception as error:  # torch raises of many kinds what a network has that ONNX lacks
            reason = " ".join(str(error).split())[:160]
            raise SettingError(
                f"this network cannot be written as ONNX ({reason}): choose another backbone"
            ) from error
        return path.read_bytes()


def _describe(data: bytes, backbone: Backbone, layout: Layout, note: dict[str, Any]) -> bytes:
    """The file with its metadata."""
    import onnx

    model = onnx.load_from_string(data)
    about = {
        "backbone": backbone.name,
        "weights_sha256": backbone.weights_hash,
        "layout": layout,
        "strides": backbone.strides,
    }
    onnx.helper.set_model_props(model, {"patchcluster": json.dumps(about | note)})
    onnx.checker.check_model(model)
    written: bytes = model.SerializeToString()
    return written


def _check_parity(data: bytes, backbone: Backbone, layout: Layout) -> None:
    """Raise SettingError if onnxruntime gives other patches of random images than torch does."""
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    for size in (_TRACED, _OTHER):
        image = np.random.default_rng(0).integers(0, 256, (1, *size, 3), np.uint8)
        expected = patch_grid(backbone(torch.from_numpy(image)), layout)[0].numpy()
        gap = _measure_gap(session, image, expected)
        if not gap <= TOLERANCE:
            raise SettingError(
                f"onnxruntime gives other patches of {backbone.name} than torch, by {gap:.1g} of "
                "their size: choose another backbone"
            )


def _measure_gap(session: Any, image: Any, expected: Any) -> float:
    """The largest difference, as a share of the root mean square; infinite if it cannot be run."""
    try:
        found = session.run(["patches"], {"images": image})[0]
    except Exception:  # a graph in which sizes are fixed that should not be
        return np.inf
    if found.shape != expected.shape:
        return np.inf
    return float(np.abs(found - expected).max() / np.sqrt(np.square(expected).mean()))


def _check_installed() -> None:
    try:
        importlib.import_module("onnx")
        importlib.import_module("onnxruntime")
    except ImportError as error:
        raise RunError(
            f"{error.name} is not installed, which ONNX files need: run pip install "
            "'patchcluster[onnx]'"
        ) from error
