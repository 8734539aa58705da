"""Feature maps of stages -> one grid of patch features an image.

A locally aware patch feature is the mean over a 3 x 3 neighbourhood of a stage (the paper's section
4.1: the features are fused with their neighbours), and the stages are joined along the channels on
one grid.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Layout = Literal["fine", "coarse", "stages"]


def patch_grid(stages: Sequence[Tensor], layout: Layout) -> Tensor:
    """Stages [n, c_s, h_s, w_s] -> patches float32 [n, h, w, sum of c_s].

    `fine`: on the first stage's grid, the others interpolated bilinearly (PatchCore, the paper).
    `coarse`: on the last stage's grid, the others averaged over its cells.
    `stages`: on the first stage's grid, without neighbours, each cell of the others repeated: what
    the network gave can be taken out of it again.
    """
    if layout == "stages":
        size = stages[0].shape[-2:]
        repeated = [F.interpolate(stage.float(), size=size, mode="nearest") for stage in stages]
        return torch.cat(repeated, dim=1).permute(0, 2, 3, 1).contiguous()
    pooled = [pool_neighbourhood(stage) for stage in stages]
    height, width = pooled[0 if layout == "fine" else -1].shape[-2:]
    on_grid = [_bring(stage, (height, width)) for stage in pooled]
    return torch.cat(on_grid, dim=1).permute(0, 2, 3, 1).contiguous()


def pool_neighbourhood(stage: Tensor) -> Tensor:
    """Mean over 3 x 3 cells, stride 1; cells beyond the edge do not count. [n, c, h, w], same."""
    return F.avg_pool2d(stage.float(), 3, stride=1, padding=1, count_include_pad=False)


def _bring(stage: Tensor, size: tuple[int, int]) -> Tensor:
    height, width = stage.shape[-2:]
    if (height, width) == size:
        return stage
    if height >= size[0] and width >= size[1]:
        return F.adaptive_avg_pool2d(stage, size)
    return F.interpolate(stage, size=size, mode="bilinear", align_corners=False)
