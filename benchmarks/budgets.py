"""(g) Whether scans keep their time budgets, and what they give up for them.

    python benchmarks/budgets.py [FOLDER...]

Without folders: 300 drawn parts, and screw of ../shared/data where it is. Each set is scanned
without a budget, then with shares of the time that took. Scans are processes of their own; `of
budget` is the wall time of all of it, so that 1.1 is 10 % too much.
"""

import sys
import tempfile
from pathlib import Path

from machine import describe, run_scan

from patchcluster.demo import write_parts

SHARED = Path(__file__).parents[2] / "shared" / "data"
SHARES = (1.2, 0.9, 0.75, 0.6)


def main() -> None:
    print(describe())
    with tempfile.TemporaryDirectory() as drawn:
        folders = [Path(argument) for argument in sys.argv[1:]]
        if not folders:
            write_parts(Path(drawn) / "parts", good=240, defective=60)
            folders = [Path(drawn) / "parts" / "test", *SHARED.glob("mvtec/screw/test")]
        for folder in folders:
            free = run_scan([folder])["wall"]
            print(f"{folder.parent.name}: {free:.1f} s without a budget", flush=True)
            for share in SHARES:
                print(measure(folder, share * free), flush=True)


def measure(folder: Path, budget: float) -> str:
    """Scan once within a budget and describe it as one row of the table."""
    try:
        result = run_scan([folder], "--time-budget", f"{budget:.1f}s")
    except SystemExit as refused:
        return f"  budget {budget:.1f} s  {str(refused).strip()}"
    wall = result["wall"]
    return (
        f"  budget {budget:.1f} s  wall {wall:.1f} s  of budget {wall / budget:.2f}  "
        f"{result['changed']}"
    )


if __name__ == "__main__":
    main()
