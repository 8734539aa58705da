"""One defect in many images: does it hide itself?

    python experiments/repeats.py DATASET > RESULTS.csv

A defect of DATASET's test part (MVTec AD's layout) is pasted into 2, 5 and 10 % of its good
training images, shifted by up to 12 pixels and with its brightness changed by up to 10 %; the set
is scored blindly by the default method. `same`: one defect in all of them, `different`: one each,
for comparison. A row a set: rate,defects,seed,auroc (image AUROC in %).
"""

import csv
import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from patchcluster.datasets import find_truth, read_mask
from patchcluster.datasets.drawn import Shape
from patchcluster.images.finding import find_images
from patchcluster.network.backbones import load_backbone
from patchcluster.pipeline.in_memory import extract_files, score_set
from patchcluster.settings import Settings

RATES = (0.02, 0.05, 0.1)
SEEDS = 3
SHIFT, BRIGHTNESS = 12, 0.1
LARGEST = 0.05  # of the image that a defect may cover, so that a paste looks like one

Defect = tuple[str, Path | Shape]  # image, mask


def main() -> None:
    root = Path(sys.argv[1])
    good = find_images([root / "train"])
    settings = Settings()
    network = load_backbone(strides=settings.strides)
    grids, headers = extract_files(good, network, settings)
    defects = find_defects(root)
    writer = csv.writer(sys.stdout)
    writer.writerow(["rate", "defects", "seed", "auroc"])
    for seed in range(SEEDS):
        for rate in RATES:
            for kind in ("same", "different"):
                random = np.random.default_rng(seed)
                places = random.permutation(len(good))[: max(1, round(rate * len(good)))]
                order = random.permutation(len(defects))
                changed = list(grids)
                with tempfile.TemporaryDirectory() as folder:
                    for j, i in enumerate(places):
                        defect = defects[order[0 if kind == "same" else j % len(order)]]
                        file = Path(folder) / "pasted.png"
                        Image.fromarray(paste(good[i], defect, random)).save(file)
                        changed[i] = extract_files([str(file)], network, settings)[0][0]
                method = settings.make_method(network.channels, network.strides)
                scores, _ = score_set(changed, headers, method, settings)
                auroc = roc_auc_score(np.isin(np.arange(len(good)), places), scores)
                writer.writerow([rate, kind, seed, f"{100 * auroc:.1f}"])
                sys.stdout.flush()


def find_defects(root: Path) -> list[Defect]:
    paths = find_images([root / "test"])
    truths = find_truth(paths, root)
    pairs = [(p, one) for p, truth in zip(paths, truths, strict=True) for one in truth.masks]
    return [(path, mask) for path, mask in pairs if read_mask(mask).mean() <= LARGEST]


def paste(good: str, defect: Defect, random: np.random.Generator) -> NDArray[np.uint8]:
    """An image with a defect of another of the same size, with soft edges."""
    below = np.asarray(Image.open(good).convert("RGB"), np.float64)
    above = np.asarray(Image.open(defect[0]).convert("RGB"), np.float64)
    grown = ndimage.binary_dilation(read_mask(defect[1]), iterations=3)
    weight = ndimage.gaussian_filter(grown.astype(np.float64), 2)
    shift = tuple(random.integers(-SHIFT, SHIFT + 1, 2))
    weight = np.roll(weight, shift, (0, 1))[..., None]
    above = np.roll(above, shift, (0, 1)) * random.uniform(1 - BRIGHTNESS, 1 + BRIGHTNESS)
    mixed: NDArray[np.float64] = below * (1 - weight) + above.clip(0, 255) * weight
    return np.rint(mixed).astype(np.uint8)


if __name__ == "__main__":
    main()
