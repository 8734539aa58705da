"""(d) Whole scans as a user runs them, and how the comparison compares with the features.

    python benchmarks/end_to_end.py [FOLDER...]

Without folders: 60 drawn parts, and the real images of ../shared/data where they are. Each scan is
a process of its own, so that start-up and peak memory are those of one scan. Beside it the time
that the same comparison takes by plain products of all pairs of patches in torch, of which the
smallest of each image is kept; it is measured for one image and counted for all.
ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 FAISS_OPT_LEVEL=AVX2 make this machine one of the
common kind.
"""

import sys
import tempfile
import time
from pathlib import Path

import torch
from machine import SHARED, describe, run_scan

from patchcluster.demo import write_parts
from patchcluster.images.decode import read_header
from patchcluster.images.finding import find_images
from patchcluster.images.shapes import network_size
from patchcluster.network.backbones import Backbone, load_backbone
from patchcluster.network.patches import grid_channels, grid_stride
from patchcluster.settings import Settings, resolve

PRESETS = ("fast", "default", "best")
MANY = 400  # images, from which on only the default is measured
REPEATS = 3


def all_pairs(files: list[str], settings: Settings, backbone: Backbone) -> float:
    """Seconds of the comparison of all images with the bank by plain products."""
    count = len(settings.strides)
    channels, strides = backbone.channels[:count], backbone.strides[:count]
    method = settings.make_method(channels, strides)
    width = grid_channels(channels, strides, "middle")
    total = 0.0
    for size in settings.size:
        shapes = [network_size(h.width, h.height, size) for h in map(read_header, files)]
        patches = sum(h * w for h, w in shapes) / grid_stride(strides, "middle") ** 2 / len(files)
        for one in method.search_costs(len(files), patches, width) or ():
            block = round(one.queries / len(files))
            queries = torch.randn(block, one.channels)
            blocks = torch.randn(round(one.rows / block), block, one.channels)
            spent = []
            for _ in range(REPEATS):
                start = time.perf_counter()
                for rows in blocks:
                    torch.addmm(rows.square().sum(1), queries, rows.T, alpha=-2).amin(1)
                spent.append(time.perf_counter() - start)
            total += min(spent) * len(files)
    return total


def measure(folder: Path, preset: str) -> str:
    """Scan once and describe it as one row of the table."""
    result = run_scan([folder], "--preset", preset)
    files, settings = find_images([folder]), resolve(preset=preset)
    pairs = all_pairs(files, settings, load_backbone(strides=(8, 16, 32)))
    wall, images, memory, spent = (result[n] for n in ("wall", "images", "memory", "seconds"))
    predicted = sum(result["predicted_seconds"].values())
    steps = "  ".join(f"{name} {seconds:.1f}" for name, seconds in spent.items())
    return (
        f"{folder.parent.name:14} {preset:8} {images:5} {wall:7.1f} {predicted:7.1f} "
        f"{images / wall:6.2f} {spent['compare'] / spent['features']:9.2f} "
        f"{pairs:9.1f} {pairs / spent['compare']:6.1f} "
        f"{memory['peak'] / 2**30:6.2f} {memory['predicted'] / 2**30:6.2f}  {steps}"
    )


def main() -> None:
    print(describe())
    with tempfile.TemporaryDirectory() as drawn:
        folders = [Path(argument) for argument in sys.argv[1:]]
        if not folders:
            write_parts(Path(drawn) / "parts")
            folders = [Path(drawn) / "parts" / "test"]
            folders += sorted(SHARED.glob("mvtec/*/test"))
            folders += [path for path in [SHARED / "magnetic_tile" / "test"] if path.is_dir()]
        print(
            "set            preset   images  wall s predict  img/s  of feat.  pairs s  times    "
            "GiB  pred.  seconds of each step"
        )
        for folder in folders:
            many = len(find_images([folder])) > MANY
            for preset in ("default",) if many else PRESETS:
                print(measure(folder, preset), flush=True)


if __name__ == "__main__":
    main()
