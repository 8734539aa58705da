"""(i) The HTTP service: how long an image takes, and how many a second it scores.

    python benchmarks/serving.py [SET NEW]

A set is scanned, a service started on its run, and new images are sent to it over connections that
stay open, by so many clients at a time, each image once. Without folders: drawn parts. A service
that works on one image at a time has all cores for it.
"""

import http.client
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from machine import describe

from patchcluster import scan
from patchcluster.demo import write_parts
from patchcluster.images.finding import find_images

CLIENTS = (1, 2, 4)
WARM = 8  # images that are sent before


@contextmanager
def service(run: Path, workers: int) -> Iterator[tuple[str, int]]:
    """Host and port of a service in a process of its own, and the process's number."""
    command = [sys.executable, "-m", "patchcluster", "serve", str(run), "--port", "0"]
    process = subprocess.Popen(
        [*command, "--workers", str(workers)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().split("//")[1].strip(), process.pid
    finally:
        process.terminate()
        process.wait()


def send(address: str, images: Sequence[bytes]) -> list[float]:
    """Seconds of each image, one after the other."""
    connection = http.client.HTTPConnection(address)
    seconds = []
    for image in images:
        start = time.perf_counter()
        connection.request("POST", "/score", image, {"Content-Type": "image/png"})
        answer = connection.getresponse()
        body = json.loads(answer.read())
        seconds.append(time.perf_counter() - start)
        if answer.status != 200:
            raise SystemExit(body["error"])
    connection.close()
    return seconds


def cpu_seconds(process: int) -> float:
    """Seconds that a process has had of all cores; Linux only."""
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(address: str, process: int, images: Sequence[bytes], clients: int) -> str:
    """One row: latency at the median and the 95th percentile, images a second, work an image."""
    worked, start = cpu_seconds(process), time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        parts = pool.map(lambda i: send(address, images[i::clients]), range(clients))
        seconds = [one for part in parts for one in part]
    wall, worked = time.perf_counter() - start, cpu_seconds(process) - worked
    middle, late = 1000 * np.quantile(seconds, [0.5, 0.95])
    return (
        f"{clients:7} {middle:8.0f} {late:8.0f} {len(images) / wall:14.1f}"
        f"{1000 * worked / len(images):13.0f}"
    )


def main() -> None:
    print(describe())
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if len(sys.argv) == 3:
            known, new = map(Path, sys.argv[1:])
        else:
            write_parts(root / "parts")
            known = new = root / "parts" / "test"
        run = scan(known, root / "run")
        images = [Path(path).read_bytes() for path in find_images([new])]
        print(f"bank of {len(run)} images, {len(images)} new ones")
        for workers in sorted({1, os.cpu_count() or 1}):
            with service(run.folder, workers) as (address, process):
                send(address, images[:WARM])
                print(f"workers {workers}\nclients  p50, ms  p95, ms  images a second  work, ms")
                for clients in CLIENTS:
                    print(measure(address, process, images, clients), flush=True)


if __name__ == "__main__":
    main()
