"""What each step of the default method is worth, on test parts and in folders as users have them.

    PYTHONPATH=benchmarks python experiments/ablation.py DATASET...

DATASET is a folder in MVTec AD's layout. Each row changes one parameter of PatchClusterPlus: image
AUROC / AP / pixel AUROC / PRO in % of its test part, and of draws of 150 good images (or as many as
there are) with 5 and 15 % anomalous. Of a test part of more than 400 images every third is taken.
"""

import math
import sys
from pathlib import Path
from typing import Any

from quality import FIGURES, Images, measure

from patchcluster.settings import resolve

ROWS: dict[str, dict[str, Any]] = {
    "default": {},
    "no stage of stride 8": {"stage_weights": (1e-9, 2.0, 0.5)},
    "no stage of stride 32": {"stage_weights": (1.0, 2.0, 1e-9)},
    "stages of equal weight": {"stage_weights": (1.0, 1.0, 1.0)},
    "no saturation": {"saturation": 1e6},
    "saturation 1.4": {"saturation": 1.4},
    "saturation 2.8": {"saturation": 2.8},
    "near-duplicates compared": {"duplicate": math.inf},
    "gaps ignored": {"gap": math.inf},
    "k = 1": {"k": 1},
    "k = 2": {"k": 2},
    "k = 5": {"k": 5},
    "no local term": {"local_weight": 0.0},
    "local weight 0.3": {"local_weight": 0.3},
}
MANY = 400


def main() -> None:
    for root in map(Path, sys.argv[1:]):
        images = Images(root)
        sets = {"test": images.test[:: 3 if len(images.test) > MANY else 1]}
        sets |= {f"{rate:.0%}": images.draw(rate, seed) for rate, seed in ((0.05, 0), (0.15, 1))}
        for row, change in ROWS.items():
            for name, chosen in sets.items():
                found = measure(images, chosen, resolve(), change)
                figures = " / ".join(f"{found[figure]:.1f}" for figure in FIGURES)
                print(f"{root.name:14} {name:5} {row:26} {figures}", flush=True)


if __name__ == "__main__":
    main()
