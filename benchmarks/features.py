"""(c) Features: files to patches as a scan makes them, and the network called plainly.

    python benchmarks/features.py [FOLDER]

Plainly: the network as timm builds it, float32, batches of 8, without decoding; and the same one
image at a time. Ours decodes, resizes, makes thumbnails, hashes and writes as well.
"""

import dataclasses
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from machine import alternate, describe

from patchcluster.demo import write_parts
from patchcluster.images.finding import find_images
from patchcluster.network.backbones import load_backbone
from patchcluster.pipeline.extraction import extract_all
from patchcluster.pipeline.job import Job
from patchcluster.pipeline.survey import survey_files
from patchcluster.pipeline.workers import LocalWorkers
from patchcluster.runs.info import RunInfo
from patchcluster.settings import resolve

IMAGES = 32


def compare(files: list[str], size: int) -> None:
    backbone = load_backbone()
    settings, threads = resolve(size=(size,)), torch.get_num_threads()
    survey = survey_files(files, settings, backbone.strides, threads, lambda *_: None)
    info = RunInfo(inputs=[], settings=dataclasses.asdict(settings), version="")
    plain: Any = timm.create_model(backbone.name).eval()  # its time does not depend on the weights
    pixels = torch.from_numpy(np.random.default_rng(0).normal(size=(8, 3, size, size))).float()

    def ours() -> None:
        with tempfile.TemporaryDirectory() as work:
            extract_all(Job(Path(work), info), backbone, survey.candidates, LocalWorkers(threads))

    def plainly(batch: int) -> None:
        with torch.inference_mode():
            for i in range(0, len(files), batch):
                plain.forward_intermediates(
                    pixels[: min(batch, len(files) - i)],
                    indices=backbone.indices, stop_early=True, intermediates_only=True,
                )  # fmt: skip

    seconds = alternate(
        {"ours": ours, "network alone, 8": lambda: plainly(8), "1": lambda: plainly(1)}
    )
    times = "  ".join(
        f"{name} {1e3 * spent / len(files):.1f} ms" for name, spent in seconds.items()
    )
    print(f"input {size}, an image: {times}", flush=True)


def main() -> None:
    print(describe())
    with tempfile.TemporaryDirectory() as work:
        write_parts(Path(work))
        files = find_images(sys.argv[1:2] or [str(Path(work) / "test")], lambda _: False)
        for size in (256, 448):
            compare(files[:IMAGES], size)


if __name__ == "__main__":
    main()
