"""(f) How near the time and memory that a scan predicts come to what it takes.

    python benchmarks/predictions.py [FOLDER...]

Without folders: 60 and 300 drawn parts, and the real images of ../shared/data where they are. Each
scan is a process of its own. Time: what is predicted for each step, and in brackets what it took;
`all` is the wall time of the process. What runs beside makes both drift, so that each set is
scanned REPEATS times.
"""

import sys
import tempfile
from pathlib import Path

from machine import SHARED, describe, run_scan

from patchcluster.demo import write_parts

REPEATS = 3
PRESETS = ("default", "fast")
STEPS = ("features", "compare", "maps")


def main() -> None:
    print(describe())
    with tempfile.TemporaryDirectory() as drawn:
        folders = [Path(argument) for argument in sys.argv[1:]]
        if not folders:
            for good in (48, 240):
                write_parts(Path(drawn) / f"parts{good}", good=good, defective=good // 4)
                folders.append(Path(drawn) / f"parts{good}" / "test")
            folders += sorted(SHARED.glob("mvtec/*/test"))
        for folder in folders:
            for preset in PRESETS:
                for _ in range(REPEATS):
                    print(measure(folder, preset), flush=True)


def measure(folder: Path, preset: str) -> str:
    """Scan once and describe it as one row of the table."""
    result = run_scan([folder], "--preset", preset)
    predicted, seconds, memory = result["predicted_seconds"], result["seconds"], result["memory"]
    steps = "  ".join(f"{name} {predicted[name]:.1f} ({seconds[name]:.1f})" for name in STEPS)
    total, wall = sum(predicted.values()), result["wall"]
    return (
        f"{folder.parent.name:10} {preset:8} {result['images']:4}  all {total:.1f} ({wall:.1f}) "
        f"{total / wall - 1:+.0%}  {steps}  start {predicted['start']:.1f}  report "
        f"{predicted['report']:.1f}  GiB {memory['predicted'] / 2**30:.2f} "
        f"({memory['peak'] / 2**30:.2f})"
    )


if __name__ == "__main__":
    main()
