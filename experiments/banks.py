"""What a bank of fewer images is worth, on images with masks.

    PYTHONPATH=benchmarks python experiments/banks.py DATASET IMAGES...

DATASET is a folder in MVTec AD's layout; its `test` is scored blindly with banks of so many images.
Image AUROC / AP / pixel AUROC / PRO in %, and seconds of the whole comparison and of its figures.
"""

import sys
import time
from pathlib import Path

from quality import FIGURES, Images, measure

from patchcluster.settings import resolve


def main() -> None:
    images = Images(Path(sys.argv[1]))
    images.patches(resolve().size[0])
    print(f"{len(images.test)} images", flush=True)
    for bank in map(int, sys.argv[2:]):
        start = time.perf_counter()
        found = measure(images, images.test, resolve(bank_images=bank))
        spent = time.perf_counter() - start
        figures = " / ".join(f"{found[figure]:.1f}" for figure in FIGURES)
        print(f"  bank of {bank:4}  {figures}  {spent:.0f} s", flush=True)


if __name__ == "__main__":
    main()
