"""What the experiments share: patches as a scan makes them, and image scores as it gives them."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchcluster import maps
from patchcluster.backbones import load_backbone
from patchcluster.images import Header, load_image, network_size, survey
from patchcluster.methods import PatchClusterPlus
from patchcluster.patches import patch_grid
from patchcluster.settings import Settings


def extract(paths: list[str]) -> tuple[list[Tensor], list[Header], dict[str, list[int]]]:
    """Patches float16 [h, w, c] and headers of images, as a scan makes them, and their stages."""
    backbone, size = load_backbone(strides=PatchClusterPlus.strides), Settings.size[0]
    headers = [survey(path) for path in paths]
    grids = []
    for path, header in zip(paths, headers, strict=True):
        sizes = [network_size(header.width, header.height, size)]
        stages = backbone.features(load_image(path, header, sizes, {}).pixels)
        grids.append(patch_grid(stages, "middle")[0].half())
    return grids, headers, {"stages": backbone.channels, "strides": backbone.strides}


def smooth(scores: Tensor, header: Header) -> maps.Floats:
    """A score grid [h, w] on its image's frame."""
    return maps.smooth(scores.numpy(), Settings.frame, header.width, header.height)


def score_images(grids: list[Tensor], headers: list[Header], method: PatchClusterPlus) -> NDArray:
    """Image scores float64 [n] of a set, scored blindly."""
    with torch.inference_mode():
        scores = method.fit_score(grids)
    frames = [smooth(grid, header) for grid, header in zip(scores, headers, strict=True)]
    return np.array([maps.score_image(frame, Settings.image_score) for frame in frames])
