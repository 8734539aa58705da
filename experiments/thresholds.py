"""Rules that flag images, on the scores that draws.py wrote.

    python experiments/thresholds.py SCORES.csv... > RESULTS.csv

For each set and rate, means over the draws: AUROC, the best F1 that any threshold reaches (oracle),
and of each rule its F1 as a share of the oracle's, the share of the flagged images that is normal,
and, at rate 0, the share of images flagged.
"""

import csv
import sys
from collections import defaultdict
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from patchcluster.scores.metrics import image_metrics
from patchcluster.scores.thresholds import choose_threshold

Scores = NDArray[np.float64]
Draw = tuple[NDArray[np.bool_], Scores]


def above_median(deviations: float) -> Callable[[Scores], float]:
    def rule(scores: Scores) -> float:
        median = np.median(scores)
        return float(median + deviations * 1.4826 * np.median(np.abs(scores - median)))

    return rule


RULES: dict[str, Callable[[Scores], float]] = {
    "patchcluster": lambda scores: choose_threshold(scores).value,
    "median + 3 MAD": above_median(3),
    "median + 3.5 MAD": above_median(3.5),
    "median + 5 MAD": above_median(5),
}


def read(paths: list[str]) -> dict[tuple[str, float], list[Draw]]:
    rows = defaultdict(list)
    for path in paths:
        with open(path, newline="") as file:
            for row in csv.DictReader(file):
                key = (row["set"], float(row["rate"]), row["draw"])
                rows[key].append((row["anomalous"] == "1", float(row["score"])))
    draws = defaultdict(list)
    for (name, rate, _), images in rows.items():
        anomalous, scores = zip(*images, strict=True)
        draws[name, rate].append((np.array(anomalous), np.array(scores)))
    return draws


def f1(anomalous: NDArray[np.bool_], flagged: NDArray[np.bool_]) -> float:
    return float(2 * (anomalous & flagged).sum() / (anomalous.sum() + flagged.sum()))


def main() -> None:
    writer = csv.writer(sys.stdout)
    writer.writerow(
        ["set", "rate", "auroc", "oracle f1", "rule", "f1 / oracle", "false", "flagged"]
    )
    for (name, rate), draws in read(sys.argv[1:]).items():
        auroc: float | None = None
        oracle: float | None = None
        if rate:
            auroc = float(np.mean([roc_auc_score(*draw) for draw in draws]))
            oracle = float(
                np.mean([image_metrics(scores, anomalous)[2] for anomalous, scores in draws])
            )
        for title, rule in RULES.items():
            figures = np.array([measure(draw, rule) for draw in draws])
            share, false, flagged = figures.mean(0)
            measured = [float(share) if rate else None, float(false), float(flagged)]
            row = [name, rate, *map(three, (auroc, oracle)), title, *map(three, measured)]
            writer.writerow(row)


def measure(draw: Draw, rule: Callable[[Scores], float]) -> tuple[float, float, float]:
    """F1 as a share of the best, share of the flagged that is normal, share of images flagged."""
    anomalous, scores = draw
    flagged = scores > rule(scores)
    best = image_metrics(scores, anomalous)[2] if anomalous.any() else None
    share = f1(anomalous, flagged) / best if best else 0.0
    return share, float((flagged & ~anomalous).sum() / max(1, flagged.sum())), flagged.mean()


def three(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    main()
