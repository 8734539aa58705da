"""What a score means: the probability that an image is anomalous, learnt from many sets.

    python experiments/probability.py DRAWS.csv [--write] [--diagram FILE.svg]

DRAWS.csv is what draws.py wrote. Each set is judged by a logistic regression that was fitted to the
others, every draw with the same weight. For draws of 150 good images (or as many as a set has) with
5 and 15 % anomalous, and for all draws: F1 of the images with a probability of 0.5 and more as a
share of the best F1 that any threshold reaches; the share of those images that is ordinary; what
share of images is flagged where all are good; the expected calibration error, in ten steps; and the
reliability diagram, a row a step (--diagram draws it). --write fits all sets and writes
src/patchcluster/scores/probability.json.
"""

import argparse
import csv
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import patchcluster.scores as scores_room
from patchcluster.scores.metrics import image_metrics
from patchcluster.scores.probability import FEATURES, Model, describe_scores

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
USUAL_GOOD, USUAL_RATES = 150, (0.05, 0.15)
STEPS = 10


@dataclass(frozen=True)
class Draw:
    """One set that was scored: features [n, 4], scores [n], truth [n]."""

    name: str
    good: int
    rate: float
    features: Floats
    scores: Floats
    anomalous: Bools

    @property
    def usual(self) -> bool:
        return self.good == USUAL_GOOD and self.rate in USUAL_RATES


def read(path: str) -> list[Draw]:
    rows: dict[Any, list[tuple[bool, float, float]]] = defaultdict(list)
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            key = (row["set"], int(row["good"]), float(row["rate"]), row["draw"])
            values = row["anomalous"] == "1", float(row["score"]), float(row["contrast"])
            rows[key].append(values)
    draws = []
    for (name, good, rate, _), images in rows.items():
        anomalous, scores, contrasts = map(np.array, zip(*images, strict=True))
        of_set = describe_scores(scores, contrasts.tolist())
        assert of_set is not None
        draws.append(Draw(name, good, rate, of_set.features(scores), scores, anomalous))
    return draws


def fit(draws: Sequence[Draw]) -> Model:
    features = np.concatenate([draw.features for draw in draws])
    anomalous = np.concatenate([draw.anomalous for draw in draws])
    weights = np.concatenate([np.full(len(d.scores), 1 / len(d.scores)) for d in draws])
    scaler = StandardScaler().fit(features)
    model = LogisticRegression(max_iter=1000)
    model.fit(scaler.transform(features), anomalous, weights * len(weights) / weights.sum())
    slopes = model.coef_[0] / scaler.scale_
    intercept = float(model.intercept_[0] - slopes @ scaler.mean_)
    ends = features.min(0), features.max(0)
    return Model(intercept, tuple(slopes.tolist()), *(tuple(end.tolist()) for end in ends))


def best_f1(draw: Draw) -> float:
    return image_metrics(draw.scores, draw.anomalous)[2] or 0.0


def report(title: str, judged: Iterable[tuple[Draw, Floats]]) -> None:
    shares: dict[Any, list[float]] = defaultdict(list)
    flagged_count = ordinary_count = 0
    for draw, probabilities in judged:
        if not draw.anomalous.any():
            continue
        flagged = probabilities >= 0.5
        hits = (flagged & draw.anomalous).sum()
        f1 = 2 * hits / (flagged.sum() + draw.anomalous.sum())
        shares[draw.name, draw.good, draw.rate].append(f1 / best_f1(draw))
        flagged_count += flagged.sum()
        ordinary_count += flagged.sum() - hits
    mean = np.mean([np.mean(of_cell) for of_cell in shares.values()])
    print(f"{title}: {mean:.3f} of the best F1, {ordinary_count / flagged_count:.1%} ordinary")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("draws", metavar="DRAWS.csv")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--diagram", metavar="FILE.svg", type=Path)
    given = parser.parse_args()
    draws = read(given.draws)
    names = sorted({draw.name for draw in draws})
    judged = []
    for name in names:
        model = fit([draw for draw in draws if draw.name != name])
        print(f"without {name:14}", np.round([model.intercept, *model.weights], 2))
        own = [draw for draw in draws if draw.name == name]
        of_set = [(draw, model.probabilities(draw.features)) for draw in own]
        report(f"{name} usual", [one for one in of_set if one[0].usual])
        judged += of_set
    report("usual folders", [one for one in judged if one[0].usual])
    report("all draws", judged)
    good = [p >= 0.5 for draw, p in judged if draw.good == USUAL_GOOD and draw.rate == 0]
    print(f"flagged where all are good: {np.concatenate(good).mean():.2%}")
    probabilities = np.concatenate([found for _, found in judged])
    anomalous = np.concatenate([draw.anomalous for draw, _ in judged])
    steps = np.minimum((probabilities * STEPS).astype(int), STEPS - 1)
    error, points = 0.0, []
    print("probability, share that is anomalous, images")
    for step in range(STEPS):
        here = steps == step
        said, true = probabilities[here].mean(), anomalous[here].mean()
        error += abs(said - true) * here.mean()
        points.append((said, true))
        print(f"{said:.2f} {true:.2f} {here.sum()}")
    print(f"expected calibration error: {error:.3f}")
    if given.diagram:
        given.diagram.write_text(draw_diagram(points))
    if given.write:
        write(fit(draws), names)


def draw_diagram(points: Iterable[tuple[float, float]]) -> str:
    """An SVG picture: the share that is anomalous over the probability, of each step."""

    def place(said: float, true: float) -> str:
        return f"{60 + 300 * said:.1f},{330 - 300 * true:.1f}"

    marks = [place(*point).split(",") for point in points]
    dots = "".join(f'<circle cx="{x}" cy="{y}" r="5"/>' for x, y in marks)
    line = " ".join(",".join(mark) for mark in marks)
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 380 380" width="380" height="380" '
        'font-family="sans-serif" font-size="13"><rect width="380" height="380" fill="#fff"/>'
        '<g fill="none" stroke="#999"><path d="M60 30V330H360"/>'
        f'<path d="M{place(0, 0)}L{place(1, 1)}" stroke-dasharray="4"/></g>'
        f'<polyline points="{line}" fill="none" stroke="#06c" stroke-width="2"/>'
        f'<g fill="#06c">{dots}</g>'
        '<text x="210" y="365" text-anchor="middle">probability</text>'
        '<text x="20" y="180" text-anchor="middle" transform="rotate(-90 20 180)">'
        "share that is anomalous</text>"
        '<text x="60" y="347" text-anchor="middle">0</text>'
        '<text x="360" y="347" text-anchor="middle">1</text>'
        '<text x="48" y="335" text-anchor="end">0</text>'
        '<text x="48" y="35" text-anchor="end">1</text></svg>\n'
    )


def write(model: Model, names: Sequence[str]) -> None:
    columns = zip(FEATURES, model.weights, model.least, model.most, strict=True)
    features = {
        name: {"weight": round(weight, 4), "least": round(least, 4), "most": round(most, 4)}
        for name, weight, least, most in columns
    }
    content = {"sets": names, "intercept": round(model.intercept, 4), "features": features}
    Path(scores_room.__file__).with_name("probability.json").write_text(
        json.dumps(content, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
