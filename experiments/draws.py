"""Image scores of random sets with a known share of anomalous images.

    python experiments/draws.py OUT.csv DATASET...

DATASET is a folder in MVTec AD's layout; images are drawn from its test and train parts, 0, 2, 5,
10 and 25 % of them anomalous, and scored blindly by the default method. A row an image:
set,rate,draw,anomalous,score. experiments/thresholds.py compares rules on them.
"""

import csv
import sys
from pathlib import Path

import numpy as np

from patchcluster.datasets import find_truth
from patchcluster.images.inputs import find_images
from patchcluster.network.backbones import load_backbone
from patchcluster.pipeline.in_memory import extract_files, score_set
from patchcluster.settings import Settings

RATES = (0.0, 0.02, 0.05, 0.1, 0.25)
DRAWS = 4  # of each rate
NORMAL = 120  # of a draw, at most


def main() -> None:
    settings = Settings()
    network = load_backbone(strides=settings.strides)
    with open(sys.argv[1], "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["set", "rate", "draw", "anomalous", "score"])
        for root in map(Path, sys.argv[2:]):
            paths = find_images([part for part in (root / "test", root / "train") if part.is_dir()])
            grids, headers = extract_files(paths, network, settings)
            anomalous = np.array([truth.anomalous for truth in find_truth(paths, root)])
            for rate in RATES:
                for draw in range(DRAWS):
                    chosen = draw_images(anomalous, rate, draw)
                    scored = score_set(
                        [grids[i] for i in chosen],
                        [headers[i] for i in chosen],
                        settings.make_method(network.channels, network.strides),
                        settings,
                    )
                    for i, one in zip(chosen, scored, strict=True):
                        row = [root.name, rate, draw, int(anomalous[i]), f"{one.score:.5f}"]
                        writer.writerow(row)
                    print(f"{root.name} {rate:.0%} draw {draw}: {len(chosen)} images", flush=True)
                    file.flush()


def draw_images(anomalous: np.ndarray, rate: float, seed: int) -> np.ndarray:
    """Indices of a random set in which about `rate` are anomalous, one at least unless it is 0."""
    random = np.random.default_rng(seed)
    normal = min(NORMAL, int((~anomalous).sum()))
    count = max(1, round(normal * rate / (1 - rate))) if rate else 0
    chosen = [
        random.choice(np.flatnonzero(~anomalous), normal, replace=False),
        random.choice(np.flatnonzero(anomalous), count, replace=False),
    ]
    return np.sort(np.concatenate(chosen))


if __name__ == "__main__":
    main()
