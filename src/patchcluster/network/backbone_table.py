"""The backbones that are tested with patchcluster: a new one is a row here, and no other code.

`patchcluster backbones` lists them, docs/backbones.md says which to choose. Tests hold the rows to
what timm builds: to build a network takes seconds.
"""

import re
from dataclasses import dataclass

_FREE = "commercial use is allowed"
_DINOV3 = (
    "commercial use is allowed, with conditions: some uses are forbidden, and the weights and what "
    "is derived from them are passed on under the same licence only. Read it first"
)
COST_SIZE = 448  # of the images, in pixels, that `gmacs` are of: the default size


@dataclass(frozen=True)
class Row:
    """A backbone. `name`: timm's, with the tag of the weights. `licence` of the weights, as their
    authors say, by its SPDX name where it has one; `terms`: what that means. `gmacs`: billions of
    multiply-adds for the stages of the default method, of an image of COST_SIZE. `channels` and
    `strides` of these stages; `parameters`: their number, with the classifier. `hub`: where the hub
    has the weights, if not at timm/NAME.
    """

    name: str
    does: str
    licence: str
    terms: str
    gmacs: float
    parameters: int
    channels: tuple[int, ...]
    strides: tuple[int, ...] = (8, 16, 32)
    hub: str = ""


ROWS = (
    Row(
        "tf_efficientnet_lite0.in1k",
        "The default: the quickest here, for a CPU. Its weights come along.",
        "Apache-2.0", _FREE, 1.5,
        4_652_008, (40, 112, 320),
    ),
    Row(
        "tf_efficientnet_lite2.in1k",
        "The same family, a little larger. Its weights come along.",
        "Apache-2.0", _FREE, 2.2,
        6_092_072, (48, 120, 352),
    ),
    Row(
        "resnet18.tv_in1k",
        "Small and plain; many published figures of fast methods are of it.",
        "BSD-3-Clause", _FREE, 7.3,
        11_689_512, (128, 256, 512),
    ),
    Row(
        "wide_resnet50_2.tv_in1k",
        "The paper's, and PatchCore's: to compare with published figures.",
        "BSD-3-Clause", _FREE, 45.6,
        68_883_240, (512, 1024, 2048),
    ),
    Row(
        "convnext_tiny.fb_in22k",
        "A modern CNN, of 22,000 classes.",
        "MIT", f"{_FREE}; timm's copy is marked Apache-2.0", 17.8,
        44_615_857, (192, 384, 768),
    ),
    Row(
        "convnext_tiny.dinov3_lvd1689m",
        "The same network, taught by DINOv3 without labels: fine stages at the cost of a CNN.",
        "DINOv3", _DINOV3, 17.8,
        27_820_128, (192, 384, 768),
    ),
    Row(
        "vit_small_patch14_reg4_dinov2.lvd142m",
        "DINOv2 with registers, small: features without labels, for a strong CPU.",
        "Apache-2.0", _FREE, 31.8,
        22_057_344, (384, 384, 384), (14, 14, 14),
    ),
    Row(
        "vit_base_patch14_reg4_dinov2.lvd142m",
        "DINOv2 with registers: for a GPU.",
        "Apache-2.0", _FREE, 107.4,
        86_582_016, (768, 768, 768), (14, 14, 14),
    ),
    Row(
        "vit_small_patch16_dinov3.lvd1689m",
        "DINOv3, small: the newest of its kind, for a strong CPU.",
        "DINOv3", _DINOV3, 22.7,
        21_586_944, (384, 384, 384), (16, 16, 16),
    ),
    Row(
        "vit_base_patch16_dinov3.lvd1689m",
        "DINOv3: for a GPU.",
        "DINOv3", _DINOV3, 79.0,
        85_641_216, (768, 768, 768), (16, 16, 16),
    ),
    Row(
        "vit_base_patch16_clip_quickgelu_224.openai",
        "CLIP, of images and their captions: where what a thing is matters more than its surface.",
        "MIT",
        f"{_FREE}, though its model card means it for research; timm's copy is marked Apache-2.0",
        78.5,
        86_193_152, (768, 768, 768), (16, 16, 16), "timm/vit_base_patch16_clip_224.openai",
    ),
)  # fmt: skip


def find_row(name: str) -> Row | None:
    return next((row for row in ROWS if row.name == name), None)


def find_near(name: str) -> list[str]:
    """Names in the table that share most words with another name: of dinov2, those of DINOv2."""
    words = set(re.findall(r"[a-z0-9]+", name.lower()))
    shared = {row.name: sum(w in row.name.replace("_", "") for w in words) for row in ROWS}
    most = max(shared.values())
    return [near for near, count in shared.items() if 0 < count == most]
