"""Exact nearest neighbours: ours, faiss-cpu's IndexFlatL2 and scikit-learn, side by side.

    pip install faiss-cpu
    python benchmarks/neighbours.py [DATASET]

Each row alternates the searches in one process and gives medians. Rows: drawn from a Gaussian,
where all distances are nearly equal and bfloat16 proves little; and, with a data set, the patches
of its test images, which is what the search is for. The limit is the time that the products'
operations take at this machine's bfloat16 matrix-product rate.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from patchcluster import screening
from patchcluster.backbones import load_backbone
from patchcluster.benchmark.features import FeatureStore, InputRule
from patchcluster.datasets import read_dataset, select
from patchcluster.neighbors import nearest

QUERIES = 4096
REPEATS = 3
SKLEARN_MOST = 30_000  # rows of a bank; it takes minutes beyond
Rows = NDArray[np.float32]


def product_rate(dtype: torch.dtype) -> float:
    """Floating-point operations a second of this machine's matrix product."""
    a, b = torch.randn(2048, 1024).to(dtype), torch.randn(1024, 2048).to(dtype)
    a @ b
    start = time.perf_counter()
    for _ in range(10):
        a @ b
    return 10 * 2 * 2048 * 2048 * 1024 / (time.perf_counter() - start)


def searches(bank: Rows, queries: Rows, k: int) -> dict[str, Callable[[], object]]:
    found: dict[str, Callable[[], object]] = {"ours": lambda: nearest(queries, bank, k)}
    try:
        import faiss

        index = faiss.IndexFlatL2(bank.shape[1])
        index.add(bank)
        found["faiss"] = lambda: index.search(queries, k)
    except ImportError:
        print("faiss-cpu is not installed: pip install faiss-cpu", file=sys.stderr)
    if len(bank) <= SKLEARN_MOST:
        brute = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(bank)
        found["scikit-learn"] = lambda: brute.kneighbors(queries)
    return found


def row(name: str, bank: Rows, queries: Rows, k: int, rate: float) -> str:
    times: dict[str, list[float]] = {}
    for _ in range(REPEATS):
        for which, search in searches(bank, queries, k).items():
            start = time.perf_counter()
            search()
            times.setdefault(which, []).append(time.perf_counter() - start)
    medians = {which: statistics.median(values) for which, values in times.items()}
    limit = 2 * len(queries) * bank.shape[0] * bank.shape[1] / rate
    ratios = "  ".join(
        f"{which} {seconds:.2f} s ({seconds / medians['ours']:.1f} x)"
        for which, seconds in medians.items()
    )
    return f"{name:30} k {k:3}: {ratios}; {limit / medians['ours']:.2f} of the limit"


def patches(root: str, category_name: str) -> Rows:
    """Patches of the images of a category's test part, at the paper's input, [m, 152]."""
    category = next(c for c in read_dataset(root) if c.name == category_name)
    with tempfile.TemporaryDirectory() as work:
        store = FeatureStore(Path(work), load_backbone(), InputRule(224, True), 2)
        features = store.load(category, lambda *_: None)
    grids = features.patches("fine", 2, select(features.category, "test").scored)
    return torch.stack(grids).flatten(0, 2).float().numpy()


def main() -> None:
    rate = product_rate(torch.bfloat16)
    print(f"bfloat16 products {rate / 1e9:.0f} GFLOP/s, float32", end=" ")
    print(f"{product_rate(torch.float32) / 1e9:.0f}; screening: {screening.available()}")
    rng = np.random.default_rng(0)
    for root in sys.argv[1:]:
        for category in read_dataset(root):
            bank = patches(root, category.name)
            queries = bank[rng.permutation(len(bank))[:QUERIES]]
            for k in (1, 25, 100):
                name = f"{category.name} {len(bank)} x {bank.shape[1]}"
                print(row(name, bank, queries, k, rate), flush=True)
    for channels in (152, 512, 1024):
        for size in (25_000, 100_000):
            bank = rng.normal(size=(size, channels)).astype(np.float32)
            queries = rng.normal(size=(QUERIES, channels)).astype(np.float32)
            for k in (1, 25, 100):
                name = f"Gaussian {size} x {channels}"
                print(row(name, bank, queries, k, rate), flush=True)


if __name__ == "__main__":
    main()
