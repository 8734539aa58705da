"""(a) Exact nearest neighbours: ours, faiss-cpu's IndexFlatL2 and scikit-learn, side by side.

    python benchmarks/neighbours.py [DATASET]

Each line alternates the searches of 4,096 queries in one process and gives medians. Rows: drawn
from a Gaussian, where all distances are nearly equal; and, with a data set, the patches of its test
images, which is what the search is for. The limit is the time that the products' operations take at
this machine's float32 matrix-product rate.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import torch
from machine import alternate, describe, product_rate
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from patchcluster.benchmark.features import InputRule, load_images
from patchcluster.datasets import read_dataset, select
from patchcluster.network.backbones import load_backbone
from patchcluster.search.neighbors import nearest
from patchcluster.settings import resolve

QUERIES = 4096
CHANNELS, SIZES, KS = (152, 512, 1024), (25_000, 100_000), (1, 25, 100)
SKLEARN_MOST = 30_000  # rows of a bank; it takes minutes beyond
Rows = NDArray[np.float32]


def searches(bank: Rows, queries: Rows, k: int) -> dict[str, Callable[[], object]]:
    found: dict[str, Callable[[], object]] = {"ours": lambda: nearest(queries, bank, k)}
    index = faiss.IndexFlatL2(bank.shape[1])
    index.add(bank)
    found["faiss"] = lambda: index.search(queries, k)
    if len(bank) <= SKLEARN_MOST:
        brute = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(bank)
        found["scikit-learn"] = lambda: brute.kneighbors(queries)
    return found


def compare(name: str, bank: Rows, queries: Rows, rate: float) -> None:
    limit = 2 * len(queries) * bank.size / rate
    for k in KS:
        seconds = alternate(searches(bank, queries, k))
        ratios = "  ".join(
            f"{which} {spent:.2f} s ({spent / seconds['ours']:.1f} x)"
            for which, spent in seconds.items()
        )
        label = f"{name} {len(bank)} x {bank.shape[1]}"
        print(f"{label:24} k {k:3}: {ratios}; {limit / seconds['ours']:.2f} of the limit")
        sys.stdout.flush()


def patches(root: str, category_name: str) -> Rows:
    """Patches of the images of a category's test part, at the paper's input, [m, 152]."""
    category = next(c for c in read_dataset(root) if c.name == category_name)
    with tempfile.TemporaryDirectory() as work:
        rule = InputRule(224, True)
        images = load_images(category, Path(work), load_backbone(), rule, lambda *_: None)
        scored = select(images.category, "test").scored
        grids = images.patches(resolve(method="patchcluster"), scored)
    return torch.stack(grids).flatten(0, 2).float().numpy()


def main() -> None:
    print(describe())
    rate = product_rate(torch.float32)
    rng = np.random.default_rng(0)
    for root in sys.argv[1:]:
        for category in read_dataset(root):
            bank = patches(root, category.name)
            compare(category.name, bank, bank[rng.permutation(len(bank))[:QUERIES]], rate)
    for channels in CHANNELS:
        for size in SIZES:
            bank = rng.normal(size=(size, channels)).astype(np.float32)
            queries = rng.normal(size=(QUERIES, channels)).astype(np.float32)
            compare("Gaussian", bank, queries, rate)


if __name__ == "__main__":
    main()
