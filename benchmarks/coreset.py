"""(b) Greedy k-centre: ours, one row at a time, and anomalib's KCenterGreedy.

    python benchmarks/coreset.py [PYTHON]

PYTHON is the interpreter of an environment with anomalib, see `peers/anomalib_peer.py`; its time is
that of the selection alone. The choice is that of the serial algorithm but for ties: distances that
float32 rounds differently.
"""

import math
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from machine import alternate, describe, run_peer
from numpy.typing import NDArray

from patchcluster.search.coreset import greedy_coreset
from patchcluster.search.neighbors import nearest

CASES = ((20_000, 128, 2_000), (40_000, 128, 4_000))  # rows, channels, chosen


def by_differences(rows: NDArray[np.float32], size: int) -> list[int]:
    """The serial algorithm as it is written down: all distances to the row chosen last."""
    chosen, gaps = [0], np.full(len(rows), np.inf, np.float32)
    while len(chosen) < size:
        gaps = np.minimum(gaps, np.linalg.norm(rows - rows[chosen[-1]], axis=1))
        chosen.append(int(gaps.argmax()))
    return chosen


def by_products(rows: NDArray[np.float32], size: int) -> list[int]:
    """The same with one matrix-vector product a step: the best that a serial loop can do."""
    norms = (rows * rows).sum(1)
    chosen, gaps = [0], np.full(len(rows), np.inf, np.float32)
    while len(chosen) < size:
        last = chosen[-1]
        gaps = np.minimum(gaps, norms + norms[last] - 2 * (rows @ rows[last]))
        gaps[last] = -1
        chosen.append(int(gaps.argmax()))
    return chosen


def radius(rows: NDArray[np.float32], chosen: Any) -> float:
    return float(nearest(rows, rows[np.asarray(chosen)], 1)[0].max())


def anomalib(python: str, rows: NDArray[np.float32], size: int) -> float:
    """Seconds; not a number if it fails twice: the system was seen to kill it."""
    with tempfile.TemporaryDirectory() as work:
        path = Path(work) / "rows.npy"
        np.save(path, rows)
        for _ in range(2):
            try:
                return float(run_peer(python, "coreset", path, str(size))["seconds"])
            except subprocess.CalledProcessError as error:
                print(f"anomalib ended with exit code {error.returncode}", file=sys.stderr)
    return math.nan


def main() -> None:
    print(describe())
    for count, channels, size in CASES:
        rows = np.random.default_rng(0).normal(size=(count, channels)).astype(np.float32)
        seconds = alternate(
            {
                "ours": partial(greedy_coreset, rows, size),
                "by products": partial(by_products, rows, size),
            }
        )
        seconds |= alternate({"by differences": partial(by_differences, rows, size)}, repeats=1)
        if sys.argv[1:]:
            seconds["anomalib"] = anomalib(sys.argv[1], rows, size)
        ours, serial = greedy_coreset(rows, size), by_products(rows, size)
        same, radii = np.mean(ours == np.array(serial)), [radius(rows, c) for c in (ours, serial)]
        ratios = "  ".join(
            f"{name} {spent:.2f} s ({spent / seconds['ours']:.1f} x)"
            for name, spent in seconds.items()
        )
        print(f"{size} of {count} x {channels}: {ratios}; same choice {same:.2%}, radius", end=" ")
        print(f"{radii[0]:.5f}, serial {radii[1]:.5f}", flush=True)


if __name__ == "__main__":
    main()
