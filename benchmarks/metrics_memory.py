"""Pixel metrics of many large maps: time and memory, and the same with scikit-learn.

    python benchmarks/metrics_memory.py [MAPS [SIDE]]

By default 5,000 maps of 1,024 x 1,024, drawn one at a time, of which a quarter has an anomaly.
scikit-learn needs all pixels at once, so it gets only the first 40 maps, in a second table.
"""

import sys
import time

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from patchcluster.pipeline.costs import peak_memory
from patchcluster.scores.metrics import PixelMetrics

COMPARED = 40  # maps
HIGHEST = 8.0  # above all values


def draw(number: int, side: int) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None]:
    rng = np.random.default_rng(number)
    image_map = rng.random((side, side), np.float32)
    if number % 4:
        return image_map, None
    mask = np.zeros((side, side), bool)
    for y, x in rng.integers(0, side * 3 // 4, (3, 2)):
        mask[y : y + side // 10, x : x + side // 7] = True
    image_map[mask] += np.float32(rng.random())
    return image_map, mask


def measure(count: int, side: int) -> PixelMetrics:
    metrics = PixelMetrics(0, HIGHEST)
    for number in range(count):
        metrics.add(*draw(number, side))
    return metrics


def main() -> None:
    count, side = (int(value) for value in [*sys.argv[1:], "5000", "1024"][:2])
    before, start = peak_memory(), time.perf_counter()
    metrics = measure(count, side)
    figures = [metrics.auroc(), metrics.average_precision(), metrics.f1max(), metrics.pro()]
    seconds = time.perf_counter() - start
    print(f"{count} maps of {side} x {side}: {seconds:.0f} s with drawing them")
    print("pixel AUROC, AP, F1max, PRO:", *(f"{figure:.5f}" for figure in figures if figure))
    print(f"peak memory {peak_memory() / 2**30:.2f} GiB, {before / 2**30:.2f} GiB before the start")

    drawn = [draw(number, side) for number in range(min(count, COMPARED))]
    few = measure(len(drawn), side)
    values = np.concatenate([image_map.ravel() for image_map, _ in drawn])
    truth = np.concatenate([(np.zeros_like(m, bool) if k is None else k).ravel() for m, k in drawn])
    print(f"the first {len(drawn)}: AUROC {few.auroc():.7f}, scikit-learn's", end=" ")
    print(f"{roc_auc_score(truth, values):.7f}; AP {few.average_precision():.7f},", end=" ")
    print(f"scikit-learn's {average_precision_score(truth, values):.7f}")


if __name__ == "__main__":
    main()
