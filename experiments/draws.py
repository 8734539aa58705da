"""Image scores of random sets with a known share of anomalous images.

    PYTHONPATH=benchmarks python experiments/draws.py OUT.csv DATASET...

DATASET is a folder in MVTec AD's layout; images are drawn from its test and train parts, up to 25,
60 or 150 good ones and 0 to 30 % anomalous, and scored blindly by the default method. A row an
image: set,good,rate,draw,anomalous,score,contrast (of its map: see `Finished.contrast`).
experiments/probability.py learns from them what a score means.
"""

import csv
import sys
from pathlib import Path

from quality import Images, score

from patchcluster.settings import resolve

GOOD = (150, 60, 25)  # of a draw, at most
RATES = (0.0, 0.02, 0.05, 0.1, 0.15, 0.3)
DRAWS = 3  # of each


def main() -> None:
    with open(sys.argv[1], "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["set", "good", "rate", "draw", "anomalous", "score", "contrast"])
        for root in map(Path, sys.argv[2:]):
            images = Images(root)
            for good in GOOD:
                for rate in RATES:
                    for draw in range(DRAWS):
                        chosen = images.draw(rate, draw, good)
                        scored = score(images, chosen.tolist(), resolve())
                        for i, one in zip(chosen, scored, strict=True):
                            found = [f"{one.score:.5f}", f"{one.contrast:.5f}"]
                            bad = int(images.anomalous[i])
                            writer.writerow([root.name, good, rate, draw, bad, *found])
                        print(f"{root.name}: {good} good, {rate:.0%}, draw {draw}", flush=True)
                        file.flush()


if __name__ == "__main__":
    main()
