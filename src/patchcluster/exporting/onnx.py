"""The feature network of a run as one ONNX file, for programs without PyTorch.

It takes the pixels of an image and returns the patches that methods compare. onnx and onnxruntime
are imported where they are used: `pip install 'patchcluster[onnx]'` installs them.
"""

import importlib
import json
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import RunError, SettingError
from ..images.decode import Pixels
from ..network.backbones import Backbone
from ..network.patches import Layout, dealt_channels, grid_stride, patch_grid, pool_neighbourhood
from ..pipeline.extraction import extract
from ..pipeline.loading import load_network
from ..runs.run import Run
from ..runs.storage import write_bytes
from ..settings import Settings, resolve

TOLERANCE = 1e-3  # largest difference between the patches of onnxruntime and torch
_OPSET = 18
_TRACED, _OTHER = (96, 160), (160, 64)  # sizes of the images of the check; the first is traced


def export_network(run: Run, output: Path, weights: str | None = None) -> Path:
    """Write the network of a run as `export_backbone` does and return the path.

    weights: where the file of its weights lies now. Raises RunError, WeightsError, SettingError.
    """
    return export_backbone(load_network(run, weights), resolve(**run.info.settings), output)


def export_backbone(backbone: Backbone, settings: Settings, output: Path) -> Path:
    """Write the network of a scan with these settings as one ONNX file and return its path.

    Input `images` uint8 [1, height, width, 3], 0 to 255, sides multiples of 32. Output `patches`
    float32 [h, w, c], as `extract` returns them without tiles, but not rounded to float16.
    The metadata of the file hold `patchcluster`, a JSON object: backbone, weights_sha256, layout,
    strides, method, size.

    Raises SettingError if the network cannot be exported, or the patches of onnxruntime differ from
    those of `extract` by more than 1e-3 of their size; RunError if the file cannot be written, or
    onnx is not installed.
    """
    _check_installed()
    # The exporter restores the mode of this module in all of it: the backbone must not train.
    network = _PatchNetwork(backbone.cpu(), settings.layout).eval()
    data = _describe(_trace(network), backbone, settings)
    _check_parity(data, backbone, settings)
    write_bytes(output, data)
    return output


class _PatchNetwork(nn.Module):
    """Images -> patches, in operations that ONNX has.

    `patch_grid` derives the ratios of grids from their shapes, which would become part of the
    graph; here they follow from the strides. `_check_parity` verifies that the patches are equal.
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
    """Bring a stage [1, c, h, w] to the `middle` grid, of stride `grid`: see `patch_grid`."""
    pooled = pool_neighbourhood(stage)
    if stride <= grid:
        return pooled if stride == grid else F.avg_pool2d(pooled, grid // stride)
    ratio = stride // grid
    missing = dealt_channels(channels, ratio) * ratio**2 - channels
    return F.pixel_shuffle(F.pad(pooled, (0, 0, 0, 0, 0, missing)), ratio)


def _trace(network: nn.Module) -> bytes:
    """Return a network as the bytes of an ONNX file.

    Traced: torch.export with dynamic sides takes minutes for the padding of EfficientNet, which is
    the same for all multiples of 32.
    """
    example = torch.zeros(1, *_TRACED, 3, dtype=torch.uint8)
    axes = {"images": {1: "height", 2: "width"}, "patches": {0: "h", 1: "w"}}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # tracing is deprecated, and some shapes become constants
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
        except Exception as error:  # torch has many classes for what ONNX cannot express
            reason = " ".join(str(error).split())[:160]
            raise SettingError(
                f"this network cannot be written as ONNX ({reason}): choose another backbone"
            ) from error
        return path.read_bytes()


def _describe(data: bytes, backbone: Backbone, settings: Settings) -> bytes:
    """Add the metadata to the file."""
    import onnx

    model = onnx.load_from_string(data)
    about = {
        "backbone": backbone.name,
        "weights_sha256": backbone.weights_hash,
        "layout": settings.layout,
        "strides": backbone.strides,
        "method": settings.method,
        "size": settings.size,
    }
    onnx.helper.set_model_props(model, {"patchcluster": json.dumps(about)})
    onnx.checker.check_model(model)
    written: bytes = model.SerializeToString()
    return written


def _check_parity(data: bytes, backbone: Backbone, settings: Settings) -> None:
    """Raise SettingError if onnxruntime gives other patches of random images than a scan."""
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    untiled = replace(settings, tile=False)  # tiles are stitched before there are patches
    for shape in (_TRACED, _OTHER):
        image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
        (expected,) = extract([image], backbone, untiled, max(shape))
        gap = _measure_gap(session, image, expected.float().numpy())
        if not gap <= TOLERANCE:
            raise SettingError(
                f"onnxruntime gives other patches of {backbone.name} than torch, by {gap:.1g} of "
                "their size: choose another backbone"
            )


def _measure_gap(session: Any, image: Pixels, expected: NDArray[np.float32]) -> float:
    """Return the largest difference of the patches [h, w, c] of an image from those expected.

    Relative to the root mean square plus the value itself, which was rounded to float16. Infinite
    if the shape differs or the network fails.
    """
    try:
        found = session.run(["patches"], {"images": image[None]})[0]
    except Exception:  # sizes became constants of the graph
        return np.inf
    if found.shape != expected.shape:
        return np.inf
    size = np.sqrt(np.square(expected).mean()) + np.abs(expected)
    return float((np.abs(found - expected) / size).max())


def _check_installed() -> None:
    try:
        importlib.import_module("onnx")
        importlib.import_module("onnxruntime")
    except ImportError as error:
        raise RunError(
            f"{error.name} is not installed, which ONNX files need: run pip install "
            "'patchcluster[onnx]'"
        ) from error
