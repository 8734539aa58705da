"""What a scan will need, said before it starts."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from .errors import SettingError
from .neighbors import QUERY_TILE

MIB = 1 << 20
GIB = 1 << 30
_ACTIVATION_BYTES = 200  # of the network, a pixel of the batch (measured, EfficientNet-Lite0)
_PIXEL_BYTES = 12  # of an image that is being decoded: its bytes, its pixels, its copy as shown


@dataclass(frozen=True)
class Workload:
    """What a scan has to do, as far as the survey shows it."""

    patches: Sequence[int]  # of all images, one number a network size
    channels: int
    images: int
    largest_image: int  # pixels
    batch_pixels: int
    threads: int
    ratio: float  # share of the patches in the bank


def predict_memory(work: Workload, baseline: int) -> int:
    """Peak resident memory in bytes. `baseline` is what the process holds with the network loaded.

    Features are held as float16 for one network size at a time; the bank as float32, twice (whole,
    and by stage); comparisons and scores a few numbers a patch.
    """
    patches = max(work.patches)
    features = patches * work.channels * 2
    bank = int(patches * work.ratio) * work.channels * 4 * 2
    comparisons = sum(work.patches) * 60
    tiles = QUERY_TILE * (work.images * 4 + work.channels * 16) + 64 * MIB
    search = features + bank + comparisons + tiles
    decoding = work.threads * work.largest_image * _PIXEL_BYTES
    extraction = work.batch_pixels * _ACTIVATION_BYTES + decoding
    return baseline + max(search, extraction)


def check_memory(predicted: int, limit: int | None) -> None:
    """Raise SettingError if a scan would not fit."""
    if limit is not None and predicted > limit:
        raise SettingError(
            f"the scan needs about {format_bytes(predicted)}, over --max-memory "
            f"{format_bytes(limit)}: choose --preset fast, a smaller --size or --ratio, or more "
            "memory"
        )


def parse_bytes(text: str) -> int:
    """`8GB`, `500MB` or a number of bytes -> bytes. Raises SettingError."""
    units = {"KB": 1 << 10, "MB": MIB, "GB": GIB, "B": 1}
    upper = text.strip().upper().replace("IB", "B")
    unit = next((u for u in units if upper.endswith(u)), "")
    try:
        value = float(upper.removesuffix(unit)) * units.get(unit, 1)
        if not 0 < value < float("inf"):
            raise ValueError
    except ValueError:
        raise SettingError(f"{text!r} is not an amount of memory: write 8GB or 500MB") from None
    return int(value)


def format_bytes(count: int) -> str:
    return f"{count / GIB:.1f} GB" if count >= GIB else f"{count / MIB:.0f} MB"


def resident_memory() -> int:
    """Bytes of memory that this process holds now; 0 where the system does not say."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0


def peak_memory() -> int:
    """Largest amount of memory in bytes that this process has held; 0 if not known."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
