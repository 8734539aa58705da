"""How long the bank of a run takes to load, and how much memory of its own that takes.

    python benchmarks/bank.py [IMAGES]

Random patches stand for IMAGES images (256) of 28 x 28 patches, as a scan at 448 (default) or 224
(the paper's method, whose whole set is the bank here) has them. The file is put out of the memory
that the system keeps of it first. Loading maps the file; what a comparison needs is read then.
"""

import gc
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe
from PIL import Image

import patchcluster
from patchcluster.methods.grids import Grids
from patchcluster.pipeline.loading import load_method
from patchcluster.runs import runfolder
from patchcluster.runs.run import Run
from patchcluster.settings import resolve

SIDE = 28


def main() -> None:
    images = int(sys.argv[1]) if len(sys.argv) > 1 else 256
    print(describe())
    methods: dict[str, dict[str, Any]] = {"patchcluster-plus": {}, "patchcluster": {"ratio": 1.0}}
    for method, options in methods.items():
        with tempfile.TemporaryDirectory() as folder:
            run = write_run(Path(folder), images, method=method, **options)
            path = run.folder / runfolder.BANK_FILE
            forget(path)
            before, start = own_memory(), time.perf_counter()
            loaded = load_method(run)
            seconds, taken = time.perf_counter() - start, own_memory() - before
            start = time.perf_counter()
            float(loaded.bank_.float().sum())
            read = time.perf_counter() - start
            print(
                f"{method:18} {images} images, {path.stat().st_size / 2**20:.0f} MiB: loaded in "
                f"{seconds * 1e3:.1f} ms, {taken / 2**20:.1f} MiB of memory; all of it read "
                f"{read:.2f} s later"
            )


def write_run(folder: Path, images: int, **options: Any) -> Run:
    """A run of 3 images whose bank is that of many."""
    rng = np.random.default_rng(0)
    for i in range(3):
        noise = rng.integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")
    run = patchcluster.scan(folder, folder / "run", size=(64,), **options)
    settings, backbone = resolve(**run.info.settings), run.info.backbone
    method = settings.make_method(backbone["channels"], backbone["strides"])
    state = load_method(run).state()
    shape = (SIDE, SIDE, state["bank"].shape[1])
    draw = torch.Generator().manual_seed(0)

    def read(image: int) -> torch.Tensor:
        del image
        return torch.randn(shape, generator=draw).half()

    method.fit(Grids([shape] * images, read), keys=range(images))
    note = {"method": method.name, "parameters": method.parameters()}
    runfolder.write_bank(run.folder, {64: method.state()}, note)
    return run


def forget(path: Path) -> None:
    """Have the system read a file from the disk again."""
    gc.collect()
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def own_memory() -> int:
    """Bytes of memory that are this process's alone, and no part of a file."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise SystemExit("this system does not say how much memory a process has of its own")


if __name__ == "__main__":
    main()
