"""What this machine can do at best: the limits that the other benchmarks compare with."""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

PEER = Path(__file__).with_name("peers") / "anomalib_peer.py"
SHARED = Path(__file__).parents[2] / "shared" / "data"
REPEATS = 3


def product_rate(dtype: torch.dtype) -> float:
    """Floating-point operations a second of a matrix product, the best of several."""
    a, b = torch.randn(2048, 1024).to(dtype), torch.randn(1024, 2048).to(dtype)
    a @ b
    best = 0.0
    for _ in range(10):
        start = time.perf_counter()
        a @ b
        best = max(best, 2 * 2048 * 2048 * 1024 / (time.perf_counter() - start))
    return best


def describe() -> str:
    """The machine and the rates of its matrix products, in one line."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    rates = [product_rate(dtype) / 1e9 for dtype in (torch.float32, torch.bfloat16)]
    return (
        f"{os.cpu_count()} cores of {names[0] if names else platform.machine()}, torch "
        f"{torch.__version__} with {torch.backends.cpu.get_cpu_capability()}; matrix products "
        f"{rates[0]:.0f} GFLOP/s in float32, {rates[1]:.0f} in bfloat16"
    )


def alternate(runs: dict[str, Callable[[], Any]], repeats: int = REPEATS) -> dict[str, float]:
    """Median seconds of each, run in turn, so that all meet the same disturbances."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def run_peer(python: str, *arguments: str | Path) -> dict[str, Any]:
    """Have anomalib work, in an environment of its own: see `peers/anomalib_peer.py`.

    Raises subprocess.CalledProcessError.
    """
    command = [python, str(PEER), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def run_scan(inputs: Sequence[str | Path], *options: str) -> dict[str, Any]:
    """Scan in a process of its own: what `--json` prints, and `wall`, the seconds of it all."""
    with tempfile.TemporaryDirectory() as out:
        return run_command("scan", *inputs, "-o", out, *options)


def run_command(*arguments: str | Path) -> dict[str, Any]:
    """The same of any command."""
    command = [sys.executable, "-m", "patchcluster", *map(str, arguments), "--json", "--quiet"]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True)
    wall = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(done.stderr.decode())
    result: dict[str, Any] = json.loads(done.stdout)
    return result | {"wall": wall}
