"""What each step of the default method is worth, on images with masks.

    python experiments/ablation.py DATASET...

DATASET is a folder in MVTec AD's layout; its `test` is scored blindly. Each row changes one
parameter of PatchClusterPlus; image AUROC / pixel AUROC / PRO in %. Masks and maps are compared at
the resolution of the masks.
"""

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from blind import extract, score_frames, smooth
from torch import Tensor

from patchcluster import maps
from patchcluster.datasets import find_truth, read_truth
from patchcluster.images import Header
from patchcluster.inputs import find_images
from patchcluster.methods import PatchClusterPlus
from patchcluster.metrics import PixelMetrics, image_metrics

ROWS: dict[str, dict[str, Any]] = {
    "default": {},
    "no third stage": {"stage_weights": (1.0, 2.0, 1e-9)},
    "no saturation": {"saturation": 1e6},
    "saturation 1": {"saturation": 1.0},
    "saturation 4": {"saturation": 4.0},
    "near-duplicates compared": {"duplicate": 0.0},
    "gaps ignored": {"gap": math.inf},
    "stages of equal weight": {"stage_weights": (1.0, 1.0, 1.0)},
    "k = 1": {"k": 1},
    "k = 2": {"k": 2},
    "k = 5": {"k": 5},
    "k = 10": {"k": 10},
    "only k images searched in full": {"margin": 0},
    "6 more than k searched in full": {"margin": 6},
    "first pass with every patch": {"ratio": 1.0},
    "no local term": {"local_weight": 0.0},
    "local weight 0.3": {"local_weight": 0.3},
}


def measure(scores: list[Tensor], headers: list[Header], paths: list[str], root: Path) -> str:
    truths = find_truth(paths, root)
    low = min(float(s.min()) for s in scores)
    pixels = PixelMetrics(low, max(float(s.max()) for s in scores))
    frames = []
    for grid, header, truth in zip(scores, headers, truths, strict=True):
        frame = smooth(grid.numpy(), header)
        frames.append(frame)
        mask = read_truth(truth)
        height, width = (header.height, header.width) if mask is None else mask.shape
        pixels.add(maps.to_image(frame, width, height), mask)
    image_scores, _ = score_frames(frames)
    auroc, _, _ = image_metrics(image_scores, np.array([truth.anomalous for truth in truths]))
    figures = (auroc, pixels.auroc(), pixels.pro())
    return " / ".join("-" if f is None else f"{100 * f:.1f}" for f in figures)


def main() -> None:
    for root in map(Path, sys.argv[1:]):
        paths = find_images([root / "test"])
        grids, headers, stages = extract(paths)
        print(f"{root.name}, {len(paths)} images", flush=True)
        for name, change in ROWS.items():
            method = PatchClusterPlus(**{**stages, **change})
            with torch.inference_mode():
                scores = method.fit_score(grids)
            print(f"  {name:28} {measure(scores, headers, paths, root)}", flush=True)


if __name__ == "__main__":
    main()
