"""Whole scans as a user runs them: wall time, images per second, peak memory, share of each step.

    python benchmarks/end_to_end.py [FOLDER...]

Without folders: 60 drawn parts, and the real images of ../shared/data where they are. Each scan is
a process of its own, so that peak memory is that of one scan.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from patchcluster.demo import write_parts

SHARED = Path(__file__).parents[2] / "shared" / "data" / "mvtec"
PRESETS = ("fast", "default", "best")


def measure(folder: Path, preset: str) -> str:
    """Scan once and describe it as one row of the table."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "patchcluster", "scan", str(folder), "-o", out]
        start = time.perf_counter()
        done = subprocess.run(
            [*command, "--preset", preset, "--json", "--quiet"], capture_output=True, check=True
        )
        wall = time.perf_counter() - start
    result = json.loads(done.stdout)
    images, memory = result["images"], result["memory"]
    steps = "  ".join(f"{name} {seconds:.1f}" for name, seconds in result["seconds"].items())
    return (
        f"{folder.parent.name:12} {preset:8} {images:5} {wall:7.1f} {images / wall:6.2f} "
        f"{memory['peak'] / 2**30:6.2f} {memory['predicted'] / 2**30:6.2f}  {steps}"
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as drawn:
        folders = [Path(argument) for argument in sys.argv[1:]]
        if not folders:
            write_parts(Path(drawn) / "parts")
            folders = [Path(drawn) / "parts" / "test"]
            folders += [path for path in sorted(SHARED.glob("*/test")) if path.is_dir()]
        print("set          preset   images  wall s  img/s  GiB    pred.  seconds of each step")
        for folder in folders:
            for preset in PRESETS:
                print(measure(folder, preset), flush=True)


if __name__ == "__main__":
    main()
