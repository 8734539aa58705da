"""The quality gate: are the presets as good as recorded?

    python benchmarks/quality.py DATASET... [--preset NAME...] [--record]

Scans `test` of each DATASET (MVTec AD's layout) blindly and measures it against its masks. Fails if
a figure falls more than 0.5 points below the one in quality.json, which --record writes.
"""

import argparse
import dataclasses
import json
import sys
import tempfile
from pathlib import Path

import patchcluster
from patchcluster.evaluation import evaluate

RECORD = Path(__file__).with_name("quality.json")
PRESETS = ("default", "fast", "best")
FIGURES = ("image_auroc", "pixel_auroc", "pro")
ALLOWED = 0.5  # points below the record


def measure(root: Path, preset: str) -> dict[str, float]:
    """Figures in % of one preset on one data set, to a tenth."""
    with tempfile.TemporaryDirectory() as folder:
        run = patchcluster.scan(root / "test", Path(folder) / "run", preset=preset)
        figures = dataclasses.asdict(evaluate(run, root))
    return {name: round(100 * figures[name], 1) for name in FIGURES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("roots", metavar="DATASET", nargs="*", type=Path)
    parser.add_argument("--preset", nargs="+", choices=PRESETS, default=PRESETS)
    parser.add_argument("--record", action="store_true")
    given = parser.parse_args()
    recorded = json.loads(RECORD.read_text()) if RECORD.is_file() else {}
    fallen = []
    for root in given.roots:
        for preset in given.preset:
            name = f"{root.name} {preset}"
            found = measure(root, preset)
            known = recorded.get(name, {})
            print(f"{name:24}", *(f"{found[f]:6.1f} ({known.get(f, '-')})" for f in FIGURES))
            fallen += [f"{name} {f}" for f in known if found[f] < known[f] - ALLOWED]
            if given.record:
                recorded[name] = found
                RECORD.write_text(json.dumps(recorded, indent=1) + "\n")
    if not given.roots:
        print("no data sets at hand: nothing was measured")
    if fallen and not given.record:
        sys.exit(f"more than {ALLOWED} below the record: {', '.join(fallen)}")


if __name__ == "__main__":
    main()
