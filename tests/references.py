"""Definitions in float64 that several tests compare with."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def cover64(rows: NDArray[np.float64], order: Sequence[int], size: int) -> list[int]:
    """`coreset.cover_in_order` of rows [n, c] in an order: the widest net of at most so many."""
    net = list(order[:1])
    for step in range(80, -80, -1):
        finer: list[int] = []
        for row in order:
            if all(np.linalg.norm(rows[row] - rows[other]) > 2 ** (step / 4) for other in finer):
                finer.append(row)
        if len(finer) > size:
            break
        net = finer
    rest = [row for row in order if row not in net]
    return sorted([*net, *rest[: size - len(net)]])
