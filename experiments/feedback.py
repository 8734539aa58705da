"""What a few labels are worth: AUROC over the number of marked images.

    python experiments/feedback.py DATASET... > RESULTS.csv

`test` of each DATASET (MVTec AD's layout) is scored blindly, then marked image by image, most
uncertain first (`order_by_doubt`). After each round of images the set
is scored again with the labels. AUROC of the images that are not marked yet, by the blind scores
(before) and with the labels (after). A row a round: set,marked,before,after.
"""

import csv
import sys
from pathlib import Path

import numpy as np
from blind import extract, score_images
from sklearn.metrics import roc_auc_score

from patchcluster.datasets import find_truth
from patchcluster.images.inputs import find_images
from patchcluster.methods import PatchClusterPlus
from patchcluster.scores.feedback import find_boundary, order_by_doubt
from patchcluster.scores.labels import Label

ROUND = 5  # images
ROUNDS = 6


def main() -> None:
    writer = csv.writer(sys.stdout)
    writer.writerow(["set", "marked", "before", "after"])
    for root in map(Path, sys.argv[1:]):
        paths = find_images([root / "test"])
        grids, headers, stages = extract(paths)
        anomalous = np.array([truth.anomalous for truth in find_truth(paths, root)])
        labels: list[Label | None] = [None] * len(paths)
        blind = scores = score_images(grids, headers, PatchClusterPlus(**stages))
        boundary = find_boundary(blind)
        for number in range(1, ROUNDS + 1):
            for i in order_by_doubt(scores, labels, boundary)[:ROUND]:
                labels[i] = "anomalous" if anomalous[i] else "normal"
            scores = score_images(grids, headers, PatchClusterPlus(**stages), labels)
            left = np.array([label is None for label in labels])
            figures = [roc_auc_score(anomalous[left], s[left]) for s in (blind, scores)]
            writer.writerow([root.name, number * ROUND, *(f"{100 * f:.1f}" for f in figures)])
            sys.stdout.flush()


if __name__ == "__main__":
    main()
