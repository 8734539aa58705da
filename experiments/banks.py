"""What a bank of fewer images is worth, on images with masks.

    python experiments/banks.py DATASET IMAGES...

DATASET is a folder in MVTec AD's layout; its `test` is scored blindly with banks of so many images.
Image AUROC / pixel AUROC / PRO in %, and seconds of the whole comparison.
"""

import sys
import time
from pathlib import Path

import torch
from ablation import measure
from blind import extract

from patchcluster.inputs import find_images
from patchcluster.methods import PatchClusterPlus


def main() -> None:
    root = Path(sys.argv[1])
    paths = find_images([root / "test"])
    with torch.inference_mode():
        grids, headers, stages = extract(paths)
        print(f"{root.name}, {len(paths)} images", flush=True)
        for bank in map(int, sys.argv[2:]):
            start = time.perf_counter()
            scores = PatchClusterPlus(bank_images=bank, **stages).fit_score(grids)
            spent = time.perf_counter() - start
            figures = measure(scores, headers, paths, root)
            print(f"  bank of {bank:4}  {figures}  {spent:.0f} s", flush=True)


if __name__ == "__main__":
    main()
