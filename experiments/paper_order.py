"""Why PaDiM is ahead of PatchCluster on the embedded network: stages, or scales of channels?

    python experiments/paper_order.py DATASET CATEGORY...

Setting Test, the paper's input. Pixel AUROC / PRO in % of PaDiM and PatchCluster, on other stages
and with other scales of the channels; what was found stands in docs/benchmarks.md.
"""

import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from patchcluster.benchmark.cells import measure
from patchcluster.benchmark.features import Features, FeatureStore, InputRule
from patchcluster.datasets import read_dataset, select
from patchcluster.methods import Method, PaDiM, PatchCluster
from patchcluster.network.backbones import load_backbone
from patchcluster.network.patches import Layout

SIZE = 224
TWO, THREE = (8, 16), (4, 8, 16)  # strides of stages
Change = Callable[[Tensor], Tensor]  # patches of the set [n, h, w, c] -> the same


def as_is(patches: Tensor) -> Tensor:
    return patches


def standardise(patches: Tensor) -> Tensor:
    rows = patches.flatten(0, 2)
    return (patches - rows.mean(0)) / rows.std(0)


def whiten(patches: Tensor) -> Tensor:
    rows = (patches.flatten(0, 2) - patches.flatten(0, 2).mean(0)).double()
    covariance = rows.T @ rows / len(rows) + 0.01 * torch.eye(rows.shape[1], dtype=torch.float64)
    lower = torch.linalg.cholesky(covariance)
    white: Tensor = torch.linalg.solve_triangular(lower, rows.T, upper=False).T
    return white.float().view(patches.shape)


def coarser(patches: Tensor) -> Tensor:
    """On a grid of half the sides."""
    return F.avg_pool2d(patches.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1).contiguous()


def row(
    features: Features, method: Method, layout: Layout, strides: Sequence[int], change: Change
) -> str:
    split = select(features.category, "test")
    patches = change(torch.stack(features.patches(layout, strides, split.scored)).float())
    grids = method.fit_score(patches)
    figures = measure(grids, np.zeros(len(grids)), features, split, SIZE)
    assert figures.pixel_auroc is not None and figures.pro is not None  # noqa: PT018
    return f"{100 * figures.pixel_auroc:5.1f} / {100 * figures.pro:5.1f}"


def main() -> None:
    root, *names = sys.argv[1:]
    backbone = load_backbone(strides=THREE)
    for category in read_dataset(root):
        if category.name not in names:
            continue
        print(category.name, flush=True)
        with tempfile.TemporaryDirectory() as work:
            store = FeatureStore(Path(work), backbone, InputRule(SIZE, True), 2)
            features = store.load(category, lambda *_: None)
        print(
            "  padim, 3 stages                         ",
            row(features, PaDiM(), "fine", THREE, as_is),
            flush=True,
        )
        print(
            "  padim, 2 stages                         ",
            row(features, PaDiM(), "fine", TWO, as_is),
            flush=True,
        )
        for ratio, k in ((0.25, 25), (1.0, 50)):
            for change in (as_is, standardise, whiten):
                name = f"patchcluster-{100 * ratio:.0f}% k={k}, {change.__name__}"
                method = PatchCluster(k=k, ratio=ratio)
                print(f"  {name:40}", row(features, method, "fine", TWO, change), flush=True)
        method = PatchCluster(k=50, ratio=1.0)
        name = "patchcluster-100% k=50, 3 stages"
        print(f"  {name:40}", row(features, method, "fine", THREE, coarser), flush=True)


if __name__ == "__main__":
    main()
