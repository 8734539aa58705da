"""What the features of each backbone of the table cost on this machine, relative to the default.

    python benchmarks/backbones.py [SIZE]

Random weights: the time does not depend on them. One image of SIZE x SIZE pixels (448), the three
stages of the default method, each network in turn with the default; seconds that one core worked,
the median of five, which other programs beside disturb least.
"""

import gc
import statistics
import sys
import time

import numpy as np
import torch
from machine import describe

from patchcluster.images.decode import Pixels
from patchcluster.methods import PatchClusterPlus
from patchcluster.network.backbone_table import COST_SIZE, ROWS
from patchcluster.network.backbones import Backbone, random_backbone

REPEATS = 5


def work(backbone: Backbone, pixels: Pixels) -> float:
    """Milliseconds that the core worked for an image."""
    start = time.process_time()
    backbone.features([pixels])
    return 1e3 * (time.process_time() - start)


def main() -> None:
    size = int(sys.argv[1]) if len(sys.argv) > 1 else COST_SIZE
    pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
    print(f"{describe()}\nan image of {size} x {size} pixels, features alone, one core")
    torch.set_num_threads(1)
    default = random_backbone(ROWS[0].name, strides=PatchClusterPlus.strides)
    for row in ROWS:
        backbone = random_backbone(row.name, strides=PatchClusterPlus.strides)
        pairs = [(work(default, pixels), work(backbone, pixels)) for _ in range(1 + REPEATS)][1:]
        spent = statistics.median(other for _, other in pairs)
        ratio = statistics.median(other / base for base, other in pairs)
        print(f"{row.name:44} {spent:7.0f} ms {ratio:6.1f} x the default", flush=True)
        del backbone
        gc.collect()


if __name__ == "__main__":
    main()
