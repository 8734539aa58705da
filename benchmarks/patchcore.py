"""Scoring a folder blindly, and anomalib's PatchCore on the same images.

    python benchmarks/patchcore.py CATEGORY PYTHON

CATEGORY is a folder of MVTec AD with a train part; PYTHON the interpreter of an environment with
anomalib, see `peers/anomalib_peer.py`. Both take EfficientNet-Lite0 at 256: PatchCore fits a 1 %
coreset of the train part and scores half of the test part (the other half it keeps for its
threshold); a scan scores every image of both parts.
"""

import sys
from pathlib import Path

from machine import describe, run_peer, run_scan


def main() -> None:
    category, python = Path(sys.argv[1]), sys.argv[2]
    print(describe())
    parts = [category / "train", category / "test"]
    for name, options in (
        ("scan, input 256", ("--size", "256")),
        ("scan, --preset fast", ("--preset", "fast")),
        ("scan, default (448)", ()),
    ):
        result = run_scan(parts, *options)
        peak = result["memory"]["peak"] / 2**30
        print(f"{name:22} {result['images']} images {result['wall']:6.1f} s, peak {peak:.1f} GiB")
    peer = run_peer(python, "patchcore", category)
    print(
        f"PatchCore of anomalib: fit {peer['fit']:.0f} s, predict {peer['predict']:.0f} s, peak "
        f"{peer['peak'] / 2**30:.1f} GiB"
    )


if __name__ == "__main__":
    main()
