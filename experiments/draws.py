"""Image scores of random sets with a known share of anomalous images.

    PYTHONPATH=benchmarks python experiments/draws.py OUT.csv DATASET...

DATASET is a folder in MVTec AD's layout; images are drawn from its test and train parts, 0, 2, 5,
10 and 25 % of them anomalous, and scored blindly by the default method. A row an image:
set,rate,draw,anomalous,score. experiments/thresholds.py compares rules on them.
"""

import csv
import sys
from pathlib import Path

from quality import Images, score

from patchcluster.settings import resolve

RATES = (0.0, 0.02, 0.05, 0.1, 0.25)
DRAWS = 4  # of each rate
NORMAL = 120  # of a draw, at most


def main() -> None:
    with open(sys.argv[1], "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["set", "rate", "draw", "anomalous", "score"])
        for root in map(Path, sys.argv[2:]):
            images = Images(root)
            for rate in RATES:
                for draw in range(DRAWS):
                    chosen = images.draw(rate, draw, NORMAL)
                    scored = score(images, chosen.tolist(), resolve())
                    for i, one in zip(chosen, scored, strict=True):
                        anomalous = int(images.anomalous[i])
                        writer.writerow([root.name, rate, draw, anomalous, f"{one.score:.5f}"])
                    print(f"{root.name} {rate:.0%} draw {draw}: {len(chosen)} images", flush=True)
                    file.flush()


if __name__ == "__main__":
    main()
