"""Similar regions over all images: what a person reviews together."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .maps import Floats, Region

if TYPE_CHECKING:
    from torch import Tensor

# Index of an image in a set -> vectors [h * w, d] of its grid's patches (NaN: not scored) that tell
# them apart; None if the method does not keep them.
Describe = Callable[[int], "Tensor | None"]

MOST_GROUPS = 8
_PEAKS = 8  # patches of a region, the highest, that describe it
_MOST_CLUSTERED = 4000  # regions; more join the group whose mean is nearest


def describe_regions(
    vectors: "Tensor", grid: Floats, regions: Sequence[Region], width: int, height: int
) -> Floats:
    """Describe what regions of one image look like: float32 [regions, d], each of length 1.

    vectors [h * w, d] of the patches (see `Describe`), grid their scores [h, w]; the image
    is width x height pixels. A region is described by the mean over its highest patches.
    """
    rows, columns = grid.shape
    described = []
    for region in regions:
        top, left = region.y * rows // height, region.x * columns // width
        bottom = max(top + 1, math.ceil((region.y + region.height) * rows / height))
        right = max(left + 1, math.ceil((region.x + region.width) * columns / width))
        places = np.arange(rows * columns).reshape(rows, columns)[top:bottom, left:right].ravel()
        described.append(_describe_peak(vectors, grid, places))
    return np.stack(described)


def describe_image(vectors: "Tensor", grid: Floats) -> Floats:
    """Describe what the most anomalous place of an image looks like: float32 [d], of length 1.

    vectors [h * w, d] of the patches, grid their scores [h, w].
    """
    return _describe_peak(vectors, grid, np.arange(grid.size))


def _describe_peak(vectors: "Tensor", grid: Floats, places: NDArray[np.int64]) -> Floats:
    """Mean over the highest of some patches, brought to length 1."""
    places = places[np.isfinite(grid.ravel()[places])]
    highest = places[np.argsort(-grid.ravel()[places], kind="stable")[:_PEAKS]]
    mean = vectors[highest].float().mean(0)
    described: Floats = (mean / mean.norm().clamp_min(np.finfo(np.float32).tiny)).cpu().numpy()
    return described


def group_regions(described: NDArray[np.float32]) -> NDArray[np.int64]:
    """Group similar regions [r, d]: numbers from 1, the largest group first, int64 [r].

    Ward's hierarchical clustering into about sqrt(r / 2) groups (a rule of thumb; Mardia, Kent and
    Bibby 1979), 8 at most.
    """
    from scipy.cluster import hierarchy  # scikit-learn's takes a second to import

    count = min(MOST_GROUPS, max(1, round(math.sqrt(len(described) / 2))))
    if count == 1:
        return np.ones(len(described), np.int64)
    clustered = described[:_MOST_CLUSTERED]
    labels = hierarchy.cut_tree(hierarchy.ward(clustered), count)[:, 0]
    if len(described) > len(clustered):
        means = np.stack([clustered[labels == label].mean(0) for label in range(count)])
        rest = described[_MOST_CLUSTERED:]
        squares = np.square(means).sum(1) - 2 * rest @ means.T
        labels = np.concatenate([labels, squares.argmin(1)])
    order = np.argsort(-np.bincount(labels, minlength=count), kind="stable")
    numbers = np.empty(count, np.int64)
    numbers[order] = np.arange(1, count + 1)
    grouped: NDArray[np.int64] = numbers[labels]
    return grouped
