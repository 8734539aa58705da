"""What an update takes, beside a scan of the same set: images added to a run, and removed.

    python benchmarks/updates.py [IMAGES [CHANGED]]

1,000 parts as in growth.py and 10 changed, by default; processes of their own, as a user starts
them. The scores of the updated run are compared with those of the fresh scan. What no update can be
shorter than is the start: Python, PyTorch, timm and the network's weights.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from growth import write_many
from machine import describe, run_command

from patchcluster import load_run


def run(*arguments: str | Path) -> tuple[float, dict[str, float]]:
    """Wall seconds of a command, and of its steps."""
    result = run_command(*arguments)
    return result["wall"], result["seconds"]


def start() -> float:
    """Wall seconds until the network could see the first image."""
    program = "from patchcluster.network.backbones import load_backbone; load_backbone()"
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True)
    return time.perf_counter() - begin


def main() -> None:
    count, changed = (int(a) for a in (*sys.argv[1:], *("1000", "10")[len(sys.argv) - 1 :]))
    print(describe())
    with tempfile.TemporaryDirectory() as work:
        root = Path(work)
        files = write_many(root, count)
        names = [path.name for path in files[-changed:]]
        (root / "more").mkdir()
        for name in names:
            (root / "many" / name).rename(root / "more" / name)
        scan_of_few = run("scan", root / "many", "-o", root / "run")
        added = run("update", root / "run", "--add", root / "more")
        fresh = run("scan", root / "many", root / "more", "-o", root / "fresh")
        mine, theirs = load_run(root / "run"), load_run(root / "fresh")
        differ = np.abs(mine.scores / theirs.scores - 1).max()
        removal = [argument for name in names for argument in ("--remove", name)]
        removed = run("update", root / "run", *removal)
        rows = {
            "start": (sorted(start() for _ in range(3))[1], {}),
            f"scan of {count - changed}": scan_of_few,
            f"scan of {count}": fresh,
            f"update, {changed} added": added,
            f"update, {changed} removed": removed,
        }
        for what, (wall, seconds) in rows.items():
            steps = ", ".join(f"{name} {spent:.1f}" for name, spent in seconds.items())
            print(f"{what:24} {wall:7.1f} s  {wall / fresh[0]:6.1%} of the scan  ({steps})")
        print(f"scores differ by {differ:.1e} at most, relative")


if __name__ == "__main__":
    main()
