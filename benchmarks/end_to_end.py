"""(d) Whole scans as a user runs them, and how near they come to what the machine can do.

    python benchmarks/end_to_end.py [FOLDER...]

Without folders: 60 drawn parts, and the real images of ../shared/data where they are. Each scan is
a process of its own, so that start-up and peak memory are those of one scan. The limit is the time
that decoding takes on all cores, and that the operations of network and search take at this
machine's matrix-product rate: in float32, and in bfloat16. Nothing else is in it.
"""

import sys
import tempfile
import time
from pathlib import Path

import torch
from machine import describe, product_rate, run_scan
from torch.utils.flop_counter import FlopCounterMode

from patchcluster.backbones import Backbone, load_backbone
from patchcluster.demo import write_parts
from patchcluster.images import load_image, network_size, survey
from patchcluster.inputs import find_images
from patchcluster.patches import grid_channels, grid_stride
from patchcluster.settings import Settings, resolve

SHARED = Path(__file__).parents[2] / "shared" / "data"
PRESETS = ("fast", "default", "best")
MANY = 400  # images, from which on only the default is measured
DECODED = 24  # images whose decoding is timed


def decoding(files: list[str], settings: Settings) -> float:
    """Seconds to read, decode and resize all files, on all cores."""
    some = files[:: max(1, len(files) // DECODED)]
    headers = [survey(file) for file in some]
    start = time.perf_counter()
    for file, header in zip(some, headers, strict=True):
        sizes = [network_size(header.width, header.height, size) for size in settings.size]
        load_image(file, header, sizes, {})
    spent = time.perf_counter() - start
    return spent / len(some) * len(files) / torch.get_num_threads()


def operations(files: list[str], settings: Settings, backbone: Backbone) -> float:
    """Floating-point operations of the network and of the default method's search."""
    method = settings.make_method(backbone.channels, backbone.strides)
    stride, total = grid_stride(backbone.strides, "middle"), 0.0
    known: dict[tuple[int, int], int] = {}
    for size in settings.size:
        shapes = [network_size(h.width, h.height, size) for h in map(survey, files)]
        for height, width in set(shapes) - set(known):
            with FlopCounterMode(display=False) as counter:
                backbone(torch.zeros(1, height, width, 3))
            known[height, width] = counter.get_total_flops()
        patches = sum(height * width for height, width in shapes) // stride**2
        total += sum(known[shape] for shape in shapes)
        channels = grid_channels(backbone.channels, backbone.strides, "middle")
        products = method.count_products(len(files), patches / len(files), channels)
        assert products is not None  # all presets here are of patchcluster-plus
        total += 2 * (products.first + products.full)
    return total


def measure(folder: Path, preset: str, rates: list[float]) -> str:
    """Scan once and describe it as one row of the table."""
    result = run_scan([folder], "--preset", preset)
    settings, files = resolve(preset=preset), find_images([folder])
    backbone = load_backbone(strides=settings.strides)
    work, decoded = operations(files, settings, backbone), decoding(files, settings)
    limits = [work / rate + decoded for rate in rates]
    wall, images, memory = result["wall"], result["images"], result["memory"]
    steps = "  ".join(f"{name} {seconds:.1f}" for name, seconds in result["seconds"].items())
    return (
        f"{folder.parent.name:14} {preset:8} {images:5} {wall:7.1f} {images / wall:6.2f} "
        f"{limits[0] / wall:9.2f} {limits[1] / wall:9.2f} "
        f"{memory['peak'] / 2**30:6.2f} {memory['predicted'] / 2**30:6.2f}  {steps}"
    )


def main() -> None:
    print(describe())
    rates = [product_rate(dtype) for dtype in (torch.float32, torch.bfloat16)]
    with tempfile.TemporaryDirectory() as drawn:
        folders = [Path(argument) for argument in sys.argv[1:]]
        if not folders:
            write_parts(Path(drawn) / "parts")
            folders = [Path(drawn) / "parts" / "test"]
            folders += sorted(SHARED.glob("mvtec/*/test"))
            folders += [path for path in [SHARED / "magnetic_tile" / "test"] if path.is_dir()]
        print("                                              of the limit with")
        print(
            "set            preset   images  wall s  img/s   float32  bfloat16    GiB  pred.  "
            "seconds of each step"
        )
        for folder in folders:
            many = len(find_images([folder])) > MANY
            for preset in ("default",) if many else PRESETS:
                print(measure(folder, preset, rates), flush=True)


if __name__ == "__main__":
    main()
