"""(h) How far stitched tiles are from the whole image, by their width and overlap.

    python benchmarks/tiles.py FOLDER

FOLDER holds images; four of them make a picture of 1,792 x 1,792 pixels. The error of a cell is its
distance to that of the network on the whole picture, in units of the mean distance of a cell from
the mean cell.
"""

import sys
import time
from pathlib import Path

import numpy as np
from machine import describe
from PIL import Image

from patchcluster.images.finding import find_images
from patchcluster.network import tiling
from patchcluster.network.backbones import load_backbone

SIDE, SIZE = 1792, 448
CASES = [(1, 1 / 4), (1, 1 / 2), (2, 1 / 4), (2, 3 / 8), (2, 1 / 2)]  # width, overlap


def picture(folder: Path) -> np.ndarray:
    """Four images side by side and below each other, uint8 [SIDE, SIDE, 3]."""
    files, half = find_images([folder])[:4], SIDE // 2
    quarters = [np.asarray(Image.open(f).convert("RGB").resize((half, half))) for f in files]
    return np.vstack([np.hstack(quarters[:2]), np.hstack(quarters[2:])])


def main() -> None:
    print(describe())
    backbone = load_backbone(strides=(8, 16, 32))
    image = picture(Path(sys.argv[1]))
    backbone.features([image])  # warm
    start = time.perf_counter()
    whole = backbone.features([image])
    print(f"whole: {time.perf_counter() - start:.2f} s")
    print("width overlap  seconds  stride: mean error, 99th percentile in %")
    for tiling.WIDTH, tiling._OVERLAP in CASES:
        start = time.perf_counter()
        stitched = tiling.tiled_features(backbone, [image], SIZE)
        spent = time.perf_counter() - start
        errors = []
        for stage, exact, stride in zip(stitched, whole, backbone.strides, strict=True):
            spread = (exact - exact.mean((0, 2, 3), keepdim=True)).norm(dim=1).mean()
            error = 100 * (stage - exact).norm(dim=1) / spread
            errors.append(f"{stride}: {error.mean():.2f}, {error.quantile(0.99):.1f}")
        print(f"{tiling.WIDTH * SIZE:5} {tiling._OVERLAP:7.3f} {spent:8.2f}  {'   '.join(errors)}")


if __name__ == "__main__":
    main()
