"""Why PaDiM is ahead of PatchCluster on the embedded network: stages, or scales of channels?

    python experiments/paper_order.py DATASET CATEGORY...

Setting Test, the paper's input. Pixel AUROC / PRO in % of PaDiM and PatchCluster, on other stages
and with other scales of the channels; what was found stands in docs/benchmarks.md.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from patchcluster.benchmark.cells import measure
from patchcluster.benchmark.features import Images, InputRule, load_images
from patchcluster.datasets import read_dataset, select
from patchcluster.methods import Method, PaDiM, PatchCluster
from patchcluster.network.backbones import load_backbone
from patchcluster.scores.finish import MapRule
from patchcluster.settings import Settings, resolve

SIZE = 224
TWO, THREE = resolve(method="patchcluster"), resolve(method="padim")  # strides 8, 16; and 4
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


def show(
    name: str, images: Images, method: Method, settings: Settings, change: Change = as_is
) -> None:
    """Print a row: of the patches that a scan with such settings makes, changed."""
    scored = select(images.category, "test").scored
    patches = change(torch.stack(images.patches(settings, scored)).float())
    rule = MapRule(SIZE, None, "max")
    figures, _ = measure(method.fit_score(patches), images, scored, rule)
    pixel_auroc, pro = (100 * (figure or 0.0) for figure in (figures.pixel_auroc, figures.pro))
    print(f"  {name:40} {pixel_auroc:5.1f} / {pro:5.1f}", flush=True)


def main() -> None:
    root, *names = sys.argv[1:]
    network = load_backbone(strides=THREE.strides)
    for category in read_dataset(root):
        if category.name not in names:
            continue
        print(category.name, flush=True)
        with tempfile.TemporaryDirectory() as work:
            rule = InputRule(SIZE, True)
            images = load_images(category, Path(work), network, rule, lambda *_: None)
            show("padim, 3 stages", images, PaDiM(), THREE)
            show("padim, 2 stages", images, PaDiM(), TWO)
            for ratio, k in ((0.25, 25), (1.0, 50)):
                for change in (as_is, standardise, whiten):
                    name = f"patchcluster-{100 * ratio:.0f}% k={k}, {change.__name__}"
                    show(name, images, PatchCluster(k, ratio), TWO, change)
            name = "patchcluster-100% k=50, 3 stages"
            show(name, images, PatchCluster(50, 1.0), THREE, coarser)


if __name__ == "__main__":
    main()
