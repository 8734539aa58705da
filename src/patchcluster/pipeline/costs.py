"""What a scan will need, said before it starts."""

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

from ..errors import SettingError
from ..methods.grids import COMPARED_PATCHES
from ..search.neighbors import QUERY_TILE

MIB = 1 << 20
GIB = 1 << 30
# Measured with EfficientNet-Lite0 on the CPU:
_ACTIVATION_BYTES = 400  # of the network, a pixel of the image that a thread works on
_LEFT_BYTES = 150  # of these, that are not given back to the system before the search
_SHAPE_BYTES = 8 * MIB  # that the network's library keeps for each shape of input
_PIXEL_BYTES = 12  # of an image that is being decoded: its bytes, its pixels, its copy as shown
_MAP_BYTES = 10  # of the map of an image that regions are looked for in, and of the regions
_GRID_BYTES = 12  # of the scores of all images, a patch
_NEIGHBOUR_BYTES = 30  # of what each patch was compared with, a patch, while that is written
_COMPARISON_BYTES = 60  # of the comparisons of the bank's own patches, a patch
_IMAGE_BYTES = 8_000  # of what is known of an image besides its patches
_MEAN_BYTES = 28  # of the means by which a bank is chosen, an image and channel
_DRAWN_BYTES = 250_000  # of an image whose map is in the page,
_DRAWN = 500  # which are so many at most
# Of the grid that a thread makes, a value: the stages, patches joined of them, grids that wait.
_STAGE_BYTES, _JOINING_BYTES, _WAITING_BYTES = 4, 18, 8
_INPUT_BYTES = 3  # of an image at the network's size, a pixel
# Of a bank that is searched by images, a value: as float16; in the index as float16; and the rows
# of a stage, half of all at most, from which the index is made.
_INDEXED_BYTES = 2 + 2 + 2
_ROW_BYTES = 40  # of the index, and of what is known of its rows, a patch
_QUERY_BYTES = 8_000  # of what is found for a patch that is compared, besides its values
_SLACK = 96 * MIB


@dataclass(frozen=True)
class Limits:
    """What a scan must keep within (memory, in bytes), and when it began."""

    memory: int | None = None
    since: float = 0.0

    @classmethod
    def of(cls, max_memory: int | str | None, since: float | None) -> Self:
        """Take bytes or text such as "8GB"; since: of `time.monotonic`, None: now."""
        memory = parse_bytes(max_memory) if isinstance(max_memory, str) else max_memory
        return cls(memory, time.monotonic() if since is None else since)


@dataclass(frozen=True)
class Workload:
    """What a scan has to do, as far as the survey shows it."""

    patches: Sequence[int]  # of all images, one number a network size
    channels: int
    images: int
    largest_image: int  # pixels
    input_pixels: int  # at most that the network sees at a time: of an image, or of a tile
    input_shapes: int  # how many different ones
    threads: int
    ratio: float  # share of the patches in the coreset
    bank: int  # images that each is compared with
    extra: int = 0  # bytes that the method needs besides patches, bank and scores
    largest_grid: int = 0  # patches of the image that has most
    streamed: bool = False  # whether patches are read image by image, but for those of the bank


def predict_memory(work: Workload, baseline: int) -> int:
    """Predict the peak resident memory in bytes.

    baseline: what the process holds with the network loaded. For one network size at a time, a
    method that is given all patches holds them as float16, as its bank, and while that is being
    written; one that reads them image by image has only those of its bank.
    """
    share = work.bank / work.images
    values, patches = max(work.patches) * work.channels, max(work.patches)
    if work.streamed:
        bank = int(share * (values * _INDEXED_BYTES + patches * _ROW_BYTES))
    else:
        bank = int(values * (8 + share * (5 + 5 * work.ratio)))
    bank += int(patches * share * _COMPARISON_BYTES)
    compared_patches = max(COMPARED_PATCHES, work.largest_grid)  # an image is compared as a whole
    tiles = QUERY_TILE * 4 * work.channels
    tiles += compared_patches * (work.channels * 12 + _QUERY_BYTES)
    left = work.threads * work.input_pixels * _LEFT_BYTES
    means = work.images * work.channels * _MEAN_BYTES
    compared = bank + sum(work.patches) * _GRID_BYTES + means + left
    maps = work.threads * work.largest_image * _MAP_BYTES
    results = maps + patches * _NEIGHBOUR_BYTES
    search = compared + max(tiles + work.extra, results)
    grid = work.largest_grid * work.channels
    network = work.input_pixels * _ACTIVATION_BYTES + grid * _STAGE_BYTES
    made = work.largest_image * _INPUT_BYTES + max(network, grid * _JOINING_BYTES)
    decoded = work.largest_image * _PIXEL_BYTES
    extraction = work.threads * (max(made, decoded) + grid * _WAITING_BYTES)
    report = min(work.images, _DRAWN) * _DRAWN_BYTES + left
    kept = baseline + work.input_shapes * _SHAPE_BYTES + work.images * _IMAGE_BYTES + _SLACK
    return kept + max(search, extraction, report)


def check_memory(predicted: int, limit: int | None, advise: Callable[[int], str]) -> None:
    """Raise SettingError if the work would not fit; advise(limit) says what to choose instead."""
    if limit is not None and predicted > limit:
        raise SettingError(
            f"this needs about {format_bytes(predicted)}, over --max-memory "
            f"{format_bytes(limit)}: choose {advise(limit)}, or more memory"
        )


def parse_bytes(text: str) -> int:
    """`8GB`, `500MB` or a number of bytes -> bytes. Raises SettingError."""
    units = {"KB": 1 << 10, "MB": MIB, "GB": GIB, "TB": 1 << 40, "B": 1}
    upper = text.strip().upper().replace("IB", "B")
    unit = next((u for u in units if upper.endswith(u)), "")
    try:
        value = float(upper.removesuffix(unit)) * units.get(unit, 1)
        if not 1 <= value < float("inf"):
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
    try:  # what `resource` says can be that of a larger process that started this one
        with open("/proc/self/status") as file:
            peak = next(int(line.split()[1]) for line in file if line.startswith("VmHWM:"))
        return max(peak * 1024, resident_memory())
    except (OSError, ValueError, StopIteration):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Some systems bring the peak up to date with a delay.
    return max(peak if sys.platform == "darwin" else peak * 1024, resident_memory())
