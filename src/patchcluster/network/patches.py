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

Layout = Literal["fine", "middle", "stages"]


def patch_grid(stages: Sequence[Tensor], layout: Layout) -> Tensor:
    """Join stages [n, c_s, h_s, w_s] to patches float32 [n, h, w, sum of c_s].

    `fine`: on the first stage's grid, the others interpolated bilinearly (PatchCore, the paper).
    `middle`: on the second stage's grid; finer stages are averaged over its cells, the values of a
    coarser stage are dealt out to the cells that it covers (`deal_out`), so that none is repeated.
    `stages`: on the first stage's grid, without neighbours, each cell of the others repeated: what
    the network gave can be taken out of it again.
    """
    if layout == "stages":
        size = stages[0].shape[-2:]
        repeated = [F.interpolate(stage.float(), size=size, mode="nearest") for stage in stages]
        return torch.cat(repeated, dim=1).permute(0, 2, 3, 1).contiguous()
    pooled = [pool_neighbourhood(stage) for stage in stages]
    height, width = pooled[0 if layout == "fine" else min(1, len(pooled) - 1)].shape[-2:]
    if layout == "middle":
        pooled = [deal_out(s, height // s.shape[-2]) if s.shape[-2] < height else s for s in pooled]
    on_grid = [_bring(stage, (height, width)) for stage in pooled]
    return torch.cat(on_grid, dim=1).permute(0, 2, 3, 1).contiguous()


def pool_neighbourhood(stage: Tensor, size: int = 3) -> Tensor:
    """Average over size x size cells, stride 1, size odd; cells beyond the edge do not count.

    [n, c, h, w] or [c, h, w], same.
    """
    return F.avg_pool2d(stage.float(), size, stride=1, padding=size // 2, count_include_pad=False)


def deal_out(stage: Tensor, ratio: int) -> Tensor:
    """Deal the channels of a cell out to ratio x ratio cells: a pixel shuffle.

    [n, c, h, w] -> [n, dealt_channels(c, ratio), h * ratio, w * ratio]; zeros fill the rest.
    """
    channels = stage.shape[1]
    missing = dealt_channels(channels, ratio) * ratio**2 - channels
    return F.pixel_shuffle(F.pad(stage, (0, 0, 0, 0, 0, missing)), ratio)


def dealt_channels(channels: int, ratio: int) -> int:
    """Return how many of c channels each of ratio x ratio cells gets."""
    return -(-channels // ratio**2)


def grid_stride(strides: Sequence[int], layout: Layout) -> int:
    """Return the stride of the grid that `patch_grid` makes of stages of these strides."""
    return strides[min(1, len(strides) - 1) if layout == "middle" else 0]


def grid_channels(channels: Sequence[int], strides: Sequence[int], layout: Layout) -> int:
    """Return the channels of a patch that `patch_grid` makes of stages."""
    if layout != "middle":
        return sum(channels)
    return sum(dealt_channels(c, r) for c, r in zip(channels, middle_ratios(strides), strict=True))


def block_side(strides: Sequence[int], layout: Layout) -> int:
    """Return the side, in patches, of the smallest block that methods can take by itself.

    A cell of the coarsest stage, where that is dealt out to patches.
    """
    return max(middle_ratios(strides)) if layout == "middle" else 1


def middle_ratios(strides: Sequence[int]) -> list[int]:
    """Return how many times coarser than the `middle` grid each stage is; 1 for finer ones.

    So they are dealt out.
    """
    return [max(1, stride // grid_stride(strides, "middle")) for stride in strides]


def gather_up(grid: Tensor, ratio: int) -> Tensor:
    """Undo `deal_out` for one image's grid [h, w, c] -> [h / ratio, w / ratio, c * ratio^2]."""
    return F.pixel_unshuffle(grid.permute(2, 0, 1), ratio).permute(1, 2, 0)


def spread_cells(
    values: Tensor,
    shapes: Sequence[Sequence[int]],
    ratio: int,
    blocks: Sequence[Tensor] | None = None,
) -> Tensor:
    """Interpolate values of cells to finer grids, bilinearly, image after image in one vector.

    values [p] of grids `ratio` times coarser than shapes (h_i, w_i) -> [sum of h_i * w_i]. blocks:
    where the coarser cells lie, rows and columns int64 [m, 2], if only some are there; values are
    then interpolated between neighbours that are there.
    """
    if ratio == 1:
        return values
    parts = torch.split(values, [height * width // ratio**2 for height, width in shapes])
    if blocks is not None:
        return torch.cat([_spread(v, at, ratio) for v, at in zip(parts, blocks, strict=True)])
    return torch.cat(
        [
            _finer(part.view(height // ratio, width // ratio), ratio).flatten()
            for part, (height, width) in zip(parts, shapes, strict=True)
        ]
    )


def _finer(values: Tensor, ratio: int) -> Tensor:
    """Interpolate values [h, w] to [h * ratio, w * ratio], bilinearly."""
    size = [side * ratio for side in values.shape]
    return F.interpolate(values[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]


def _spread(values: Tensor, blocks: Tensor, ratio: int) -> Tensor:
    """Interpolate values [m] of blocks at rows and columns [m, 2] to those of their cells.

    The blocks lie side by side: float [ratio * (m * ratio)], row-major.
    """
    row, column = (blocks - blocks.amin(0)).to(values.device).T
    there = values.new_zeros(int(row.max()) + 1, int(column.max()) + 1)
    there[row, column] = 1
    full = torch.zeros_like(there)
    full[row, column] = values
    cells = F.pixel_unshuffle((_finer(full, ratio) / _finer(there, ratio))[None], ratio)
    side = cells[:, row, column].view(ratio, ratio, -1)  # row, column within a block; block
    return side.transpose(1, 2).flatten()


def _bring(stage: Tensor, size: tuple[int, int]) -> Tensor:
    height, width = stage.shape[-2:]
    if (height, width) == size:
        return stage
    if height >= size[0] and width >= size[1]:
        return F.adaptive_avg_pool2d(stage, size)
    return F.interpolate(stage, size=size, mode="bilinear", align_corners=False)
