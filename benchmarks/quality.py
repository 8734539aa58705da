"""The quality gate: test parts of data sets, and folders as users have them.

    python benchmarks/quality.py DATASET... [--preset NAME...] [--record VERSION]

DATASET is a folder in MVTec AD's layout. Its `test` is scored blindly by each preset. Folders of
users are drawn from all of its images: up to 150 good ones and 0, 5 and 15 % anomalous, three draws
each, scored by the default. Patches are made once and shared. A row a cell, in %: image AUROC and
AP, pixel AUROC, PRO; F1 of the flags and the best F1 of any threshold; share of good images that is
flagged. In brackets what quality.json says of 0.1.0; --record writes the figures there.

Fails if a figure falls more than 0.3 points below that of 0.1.0 or 0.5 below the newest record.
"""

import argparse
import functools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, f1_score
from torch import Tensor

from patchcluster.datasets import Truth, find_truth, read_truth
from patchcluster.images.decode import Header, read_header
from patchcluster.images.finding import find_images
from patchcluster.network.backbones import Backbone, load_backbone
from patchcluster.pipeline.in_memory import extract_files, finish_set
from patchcluster.scores import maps
from patchcluster.scores.finish import Finished
from patchcluster.scores.metrics import PixelMetrics, image_metrics
from patchcluster.scores.probability import describe_scores
from patchcluster.scores.thresholds import Flagging, choose_threshold
from patchcluster.settings import Settings, resolve

RECORD = Path(__file__).with_name("quality.json")
PRESETS = ("default", "fast", "best")
FIGURES = ("image_auroc", "image_ap", "pixel_auroc", "pro")
FLAGS = ("flag_f1", "best_f1", "good_flagged")
RATES = (0.0, 0.05, 0.15)
DRAWS, GOOD = 3, 150
BEFORE = "0.1.0"
ALLOWED = {BEFORE: 0.3}  # points below a record; below others:
ALLOWED_ELSE = 0.5

Indices = NDArray[np.int64]
Figures = dict[str, float]


class Images:
    """The images of a data set, with their truth and, for each network size, their patches."""

    def __init__(self, root: Path) -> None:
        parts = [part for part in (root / "test", root / "train") if part.is_dir()]
        self.paths = find_images(parts)
        self.truths: list[Truth] = find_truth(self.paths, root)
        self.headers: list[Header] = [read_header(path) for path in self.paths]
        self.anomalous = np.array([truth.anomalous for truth in self.truths])
        inside = [Path(path).is_relative_to(root / "test") for path in self.paths]
        self.test: Indices = np.flatnonzero(inside)
        self._patches: dict[int, list[Tensor]] = {}

    def patches(self, size: int) -> list[Tensor]:
        """Patches float16 [h, w, c] of all images, of stages of stride 8, 16 and 32."""
        if size not in self._patches:
            network, settings = load_network(), resolve(size=(size,))
            usual = torch.get_num_threads()
            torch.set_num_threads(1)
            with ThreadPoolExecutor(usual) as pool:
                made = pool.map(lambda path: extract_files([path], network, settings), self.paths)
                self._patches[size] = [grid for (grid,), _ in made]
            torch.set_num_threads(usual)
        return self._patches[size]

    def draw(self, rate: float, seed: int, most: int = GOOD) -> Indices:
        """Draw good images, and so many anomalous ones that they are about `rate` of all."""
        random = np.random.default_rng(seed)
        good = min(most, int((~self.anomalous).sum()))
        bad = max(1, round(good * rate / (1 - rate))) if rate else 0
        bad = min(bad, int(self.anomalous.sum()))
        chosen = [
            random.choice(np.flatnonzero(~self.anomalous), good, replace=False),
            random.choice(np.flatnonzero(self.anomalous), bad, replace=False),
        ]
        return np.sort(np.concatenate(chosen))


@functools.cache
def load_network() -> Backbone:
    return load_backbone(strides=(8, 16, 32))


def score(
    images: Images,
    chosen: Sequence[int],
    settings: Settings,
    change: Mapping[str, Any] = MappingProxyType({}),
) -> list[Finished]:
    """Score a set as a scan with these settings does.

    change: parameters of the method that no setting names.
    """
    network, count = load_network(), len(settings.strides)
    method = settings.make_method(network.channels[:count], network.strides[:count])
    method = type(method)(**{**method.parameters(), **change})
    widths = [40, 112, 80]  # of each stage in the patches; the last is dealt out to four
    fused = []
    for size in settings.size:
        every = images.patches(size)
        grids = [every[i][..., : sum(widths[:count])] for i in chosen]
        with torch.inference_mode():
            fused.append([grid.numpy() for grid in method.fit_score(grids)])
    means = [maps.round_as_stored(maps.fuse(list(parts))) for parts in zip(*fused, strict=True)]
    headers = [images.headers[i] for i in chosen]
    return finish_set(means, headers, settings, method.describe)[1]


def measure(
    images: Images,
    chosen: Indices,
    settings: Settings,
    change: Mapping[str, Any] = MappingProxyType({}),
) -> Figures:
    """Measure the scores of some of the images, scored as one set; to a tenth, in %."""
    finished = score(images, chosen.tolist(), settings, change)
    scores = np.array([round(one.score, 6) for one in finished])
    anomalous = images.anomalous[chosen]
    of_set = describe_scores(scores, [one.contrast for one in finished])
    flagged = scores > choose_threshold(scores, Flagging(), of_set).value
    figures = {"good_flagged": float(flagged[~anomalous].mean())}
    if anomalous.any():
        order = anomalous[np.argsort(-scores, kind="stable")]
        hits = order.cumsum()
        figures |= {
            "image_auroc": image_metrics(scores, anomalous)[0] or 0.0,
            "image_ap": float(average_precision_score(anomalous, scores)),
            "flag_f1": float(f1_score(anomalous, flagged, zero_division=0)),
            "best_f1": float((2 * hits / (np.arange(1, len(hits) + 1) + hits[-1])).max()),
        }
        bounds = [(float(one.smoothed.min()), float(one.smoothed.max())) for one in finished]
        pixels = PixelMetrics(min(low for low, _ in bounds), max(high for _, high in bounds))
        for i, one in zip(chosen, finished, strict=True):
            mask = read_truth(images.truths[i])
            height, width = (one.height, one.width) if mask is None else mask.shape
            pixels.add(one.map(width, height), mask)
        figures |= {"pixel_auroc": pixels.auroc() or 0.0, "pro": pixels.pro() or 0.0}
    return {name: round(100 * value, 1) for name, value in figures.items()}


def cells(images: Images, name: str, presets: Sequence[str]) -> Iterator[tuple[str, Figures]]:
    """Measure the test part by each preset, and the mean of each rate's draws by the default."""
    for preset in presets:
        yield f"{name} test {preset}", measure(images, images.test, resolve(preset=preset))
    if "default" not in presets:
        return
    for rate in RATES:
        draws = [measure(images, images.draw(rate, seed), resolve()) for seed in range(DRAWS)]
        mean = {key: round(float(np.mean([one[key] for one in draws])), 1) for key in draws[0]}
        yield f"{name} {rate:.0%}", mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("roots", metavar="DATASET", nargs="*", type=Path)
    parser.add_argument("--preset", nargs="+", choices=PRESETS, default=PRESETS)
    parser.add_argument("--record", metavar="VERSION")
    given = parser.parse_args()
    records: dict[str, dict[str, Figures]] = json.loads(RECORD.read_text())
    fallen: list[str] = []
    gains: list[float] = []
    for root in given.roots:
        for cell, found in cells(Images(root), root.name, given.preset):
            before = records.get(BEFORE, {}).get(cell, {})
            row = [f"{found[f]:6.1f} ({before.get(f, '-')})" for f in FIGURES if f in found]
            flags = [f"{found[f]:.1f}" for f in FLAGS if f in found]
            print(f"{cell:28}", *row, " flags", *flags, flush=True)
            gains += [found[f] - before[f] for f in FIGURES if f in found and f in before]
            for version, record in records.items():
                for f in FIGURES:
                    least = record.get(cell, {}).get(f, 0.0) - ALLOWED.get(version, ALLOWED_ELSE)
                    if f in found and found[f] < least:
                        fallen.append(f"{cell} {f} {found[f]} ({version}: {record[cell][f]})")
            if given.record:
                records.setdefault(given.record, {})[cell] = found
                RECORD.write_text(json.dumps(records, indent=1) + "\n")
    if gains:
        print(f"mean of {len(gains)} figures: {np.mean(gains):+.2f} points on {BEFORE}")
    else:
        print("no data sets at hand: nothing was measured")
    if fallen and not given.record:
        sys.exit("below the record:\n  " + "\n  ".join(fallen))


if __name__ == "__main__":
    main()
