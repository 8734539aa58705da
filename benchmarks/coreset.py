"""(b) Greedy k-centre: ours, one row at a time, and anomalib's KCenterGreedy.

    python benchmarks/coreset.py [PYTHON]

PYTHON is the interpreter of an environment with anomalib, see `peers/anomalib_peer.py`; its time is
that of the selection alone. The choice must be the same as that of the serial algorithm.
"""

import json
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from machine import alternate, describe
from numpy.typing import NDArray

from patchcluster.coreset import greedy_coreset

PEER = Path(__file__).with_name("peers") / "anomalib_peer.py"
CASES = ((20_000, 128, 2_000), (40_000, 128, 4_000))  # rows, channels, chosen


def one_at_a_time(rows: NDArray[np.float32], size: int) -> list[int]:
    """The serial algorithm with one matrix-vector product a step."""
    norms = (rows * rows).sum(1)
    chosen = [0]
    gaps = np.full(len(rows), np.inf, np.float32)
    while True:
        last = chosen[-1]
        gaps = np.minimum(gaps, norms + norms[last] - 2 * (rows @ rows[last]))
        gaps[last] = -1
        if len(chosen) == size:
            return chosen
        chosen.append(int(gaps.argmax()))


def anomalib(python: str, rows: NDArray[np.float32], size: int) -> float:
    with tempfile.TemporaryDirectory() as work:
        path = Path(work) / "rows.npy"
        np.save(path, rows)
        command = [python, str(PEER), "coreset", str(path), str(size)]
        done = subprocess.run(command, capture_output=True, check=True, text=True)
    return float(json.loads(done.stdout.splitlines()[-1])["seconds"])


def main() -> None:
    print(describe())
    for count, channels, size in CASES:
        rows = np.random.default_rng(0).normal(size=(count, channels)).astype(np.float32)
        seconds = alternate(
            {
                "ours": lambda: greedy_coreset(rows, size),
                "serial": lambda: one_at_a_time(rows, size),
            }
        )
        if sys.argv[1:]:
            seconds["anomalib"] = anomalib(sys.argv[1], rows, size)
        same = np.mean(greedy_coreset(rows, size) == np.array(one_at_a_time(rows, size)))
        ratios = "  ".join(
            f"{name} {spent:.2f} s ({spent / seconds['ours']:.1f} x)"
            for name, spent in seconds.items()
        )
        print(f"{size} of {count} x {channels}: {ratios}; same choice: {same:.2%}", flush=True)


if __name__ == "__main__":
    main()
