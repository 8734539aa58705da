"""Patches, and distances in float64, that several tests compare with."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def random_patches(
    n: int = 6, h: int = 4, w: int = 5, c: int = 7, seed: int = 0
) -> NDArray[np.float32]:
    """Patches [n, h, w, c]."""
    return np.random.default_rng(seed).normal(size=(n, h, w, c)).astype(np.float32)


def distances64(queries: NDArray[Any], bank: NDArray[Any]) -> NDArray[np.float64]:
    """All distances [q, m] in float64, by the definition."""
    difference = queries[:, None].astype(np.float64) - bank[None].astype(np.float64)
    distances: NDArray[np.float64] = np.sqrt((difference**2).sum(-1))
    return distances
