"""What a few labels are worth: AUROC over the number of marked images.

    python experiments/feedback.py DATASET... > RESULTS.csv

`test` of each DATASET (MVTec AD's layout) is scored blindly, then marked image by image, most
uncertain first (`order_by_doubt`). After each round of images the set
is scored again with the labels. AUROC of the images that are not marked yet, by the blind scores
(before) and with the labels (after). A row a round: set,marked,before,after.
"""

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor

from patchcluster.datasets import find_truth
from patchcluster.images.decode import Header
from patchcluster.images.finding import find_images
from patchcluster.network.backbones import Backbone, load_backbone
from patchcluster.pipeline.in_memory import extract_files, score_set
from patchcluster.scores.feedback import find_boundary, order_by_doubt
from patchcluster.scores.labels import Label
from patchcluster.settings import Settings

ROUND = 5  # images
ROUNDS = 6


def main() -> None:
    network = load_backbone(strides=Settings().strides)
    writer = csv.writer(sys.stdout)
    writer.writerow(["set", "marked", "before", "after"])
    for root in map(Path, sys.argv[1:]):
        paths = find_images([root / "test"])
        grids, headers = extract_files(paths, network, Settings())
        anomalous = np.array([truth.anomalous for truth in find_truth(paths, root)])
        labels: list[Label | None] = [None] * len(paths)
        blind = scores = score(grids, headers, network, labels)
        boundary = find_boundary(blind)
        for number in range(1, ROUNDS + 1):
            for i in order_by_doubt(scores, labels, boundary)[:ROUND]:
                labels[i] = "anomalous" if anomalous[i] else "normal"
            scores = score(grids, headers, network, labels)
            left = np.array([label is None for label in labels])
            figures = [roc_auc_score(anomalous[left], s[left]) for s in (blind, scores)]
            writer.writerow([root.name, number * ROUND, *(f"{100 * f:.1f}" for f in figures)])
            sys.stdout.flush()


def score(
    grids: Sequence[Tensor],
    headers: Sequence[Header],
    network: Backbone,
    labels: Sequence[Label | None],
) -> NDArray[np.float64]:
    """Image scores float64 [n] of a set, with what labels add."""
    method = Settings().make_method(network.channels, network.strides)
    scores, _ = score_set(grids, headers, method, Settings(), labels)
    return np.array(scores)


if __name__ == "__main__":
    main()
