"""(e) Growth: sets of 50 to 800 drawn parts, time and memory an image.

    python benchmarks/growth.py

Each scan is a process of its own, of the default preset; the start of Python and of the network's
libraries, which is the same for all, is told apart.
"""

import tempfile
from pathlib import Path

from machine import describe, run_scan

from patchcluster.demo import write_parts

SIZES = (50, 100, 200, 400, 800)


def main() -> None:
    print(describe())
    print("images  wall s  start s  features ms  compare ms  peak GiB  predicted  MiB an image")
    with tempfile.TemporaryDirectory() as work:
        files = write_parts(Path(work), good=SIZES[-1] * 9 // 10, defective=SIZES[-1] // 10)
        for size in SIZES:
            result = run_scan(files[:: SIZES[-1] // size])
            count, seconds, memory = result["images"], result["seconds"], result["memory"]
            start = result["wall"] - sum(seconds.values()) + seconds["network"]
            features, compare = (1e3 * seconds[step] / count for step in ("features", "compare"))
            print(
                f"{count:6} {result['wall']:7.1f} {start:8.1f} "
                f"{features:12.1f} {compare:11.1f} "
                f"{memory['peak'] / 2**30:9.2f} {memory['predicted'] / 2**30:10.2f} "
                f"{memory['peak'] / 2**20 / count:13.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
