"""What the experiments share: patches as a scan makes them, and image scores as it gives them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchcluster.images.decode import Header, load_image, survey
from patchcluster.methods import PatchClusterPlus
from patchcluster.network.backbones import load_backbone
from patchcluster.pipeline.extract import extract as extract_patches
from patchcluster.pipeline.extract import input_shapes
from patchcluster.scores import maps
from patchcluster.scores.feedback import learn
from patchcluster.scores.labels import Label
from patchcluster.scores.levels import describe_levels, find_level
from patchcluster.settings import Settings


def extract(paths: list[str]) -> tuple[list[Tensor], list[Header], dict[str, Any]]:
    """Patches float16 [h, w, c] and headers of images, as a scan makes them, and their stages."""
    backbone, settings = load_backbone(strides=PatchClusterPlus.strides), Settings()
    headers = [survey(path) for path in paths]
    grids = []
    for path, header in zip(paths, headers, strict=True):
        shapes = input_shapes(header.width, header.height, settings, backbone.strides)
        pixels = load_image(path, header, shapes, {}).pixels
        grids += extract_patches(pixels, backbone, settings, settings.size[0])
    return grids, headers, {"stages": backbone.channels, "strides": backbone.strides}


def smooth(scores: maps.Floats, header: Header) -> maps.Floats:
    """A score grid [h, w] on its image's frame."""
    return maps.smooth(scores, Settings.frame, header.width, header.height)


def score_images(
    grids: list[Tensor],
    headers: list[Header],
    method: PatchClusterPlus,
    labels: Sequence[Label | None] = (),
) -> NDArray[np.float64]:
    """Image scores float64 [n] of a set, scored blindly but for labels, one an image or None."""
    with torch.inference_mode():
        maps_ = [scores.numpy() for scores in method.fit_score(grids, labels or None)]
        frames = [smooth(grid, header) for grid, header in zip(maps_, headers, strict=True)]
        scores, offsets = score_frames(frames)
        if any(labels):
            learnt = learn(maps_, scores.tolist(), method.describe, labels)
            frames = [smooth(grid, header) for grid, header in zip(learnt, headers, strict=True)]
            scores = score_tops(frames) - offsets
    return scores


def score_frames(frames: Sequence[maps.Floats]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Image scores [n] by the default's rule, from smoothed maps, and what levels took off them."""
    found = [find_level(frame) for frame in frames]
    offsets = np.array([describe_levels(found).offset(level) for level in found])
    return score_tops(frames) - offsets, offsets


def score_tops(frames: Sequence[maps.Floats]) -> NDArray[np.float64]:
    return np.array([maps.score_image(frame, "top1%") for frame in frames])
