"""The workload of a scan and the memory that it will need, from the survey of its images."""

import dataclasses
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import nlargest
from typing import Any, Self

from ..errors import InputError, SettingError
from ..images.shapes import decoding_bytes
from ..methods.base import SearchCost
from ..methods.grids import COMPARED_PATCHES
from ..network.patches import grid_channels, grid_stride
from ..network.tiling import find_lattice, largest_tile, seen_pixels
from ..search.neighbors import QUERY_TILE
from ..settings import Settings
from .job import Job
from .survey import Candidate, input_shapes

MIB = 1 << 20
GIB = 1 << 30
_SIZES = (384, 320, 256, 192, 128, 96, 64)  # that are advised instead of a larger one
# Options that are advised against, and what it is without them.
_COSTLY: dict[str, Any] = {"--tile": {"tile": False}, "--bank-images": {"bank_images": None}}
# Measured with EfficientNet-Lite0 on the CPU:
_ACTIVATION_BYTES = 600  # of the network, a pixel of the image that a thread works on
_LEFT_BYTES = 150  # of these, that are not given back to the system before the search
_SHAPE_BYTES = 8 * MIB  # that the network's library keeps for each shape of input
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
class Workload:
    """The workload of a scan, as far as its survey shows it."""

    images: int
    patches: Sequence[int]  # of all images, one number a network size
    channels: int
    bank: int  # images that each is compared with
    pixels: int  # of all files
    largest_images: int  # pixels of the largest together, one for each thread
    decoding: int  # bytes while those are decoded that need most, one for each thread
    largest_grid: int  # patches of the image that has most
    seen_pixels: int  # of all inputs of the network, tiles with their overlaps
    input_pixels: int  # at most that the network sees at a time: of an image, or of a tile
    input_shapes: int  # how many different ones
    threads: int
    on_cpu: bool  # where each thread has a network of its own, and searches are not exact
    ratio: float  # share of the patches in the coreset
    streamed: bool  # whether patches are read image by image, but for those of the bank
    extra: int  # bytes that the method needs besides patches, bank and scores
    searches: Sequence[SearchCost] | None  # one a stage and network size; None: not known


@dataclass(frozen=True)
class Planner:
    """Counts the work of scans of a surveyed set, with the settings asked for and with others.

    channels, strides: of the network's stages. memory: bytes that the process holds with the
    network loaded.
    """

    candidates: Sequence[Candidate]
    settings: Settings
    channels: list[int]
    strides: list[int]
    threads: int
    on_cpu: bool
    memory: int

    @classmethod
    def of(cls, job: Job, candidates: Sequence[Candidate]) -> Self:
        """Make the planner of a job whose network is loaded and named in run.json."""
        channels, strides = job.info.backbone["channels"], job.info.backbone["strides"]
        on_cpu = job.devices[0].type == "cpu"
        memory = resident_memory()
        return cls(candidates, job.settings, channels, strides, job.threads, on_cpu, memory)

    def plan(self, settings: Settings) -> Workload:
        """Count the work of a scan with other settings of the same stages.

        Raises InputError or SettingError if it cannot work.
        """
        if not self.candidates:
            raise InputError("no image would be left to compare with: give at least 2")
        method = settings.make_method(self.channels, self.strides)
        images, stride = len(self.candidates), grid_stride(self.strides, settings.layout)
        sizes = [(one.header.width, one.header.height) for one in self.candidates]
        inputs = [input_shapes(*size, settings, self.strides) for size in sizes]
        areas = [[height * width for height, width in shapes] for shapes in inputs]
        scored = (
            [round(one.scored * area) for area in of_image]
            for one, of_image in zip(self.candidates, areas, strict=True)
        )
        patches = [sum(of_size) // stride**2 for of_size in zip(*scored, strict=True)]
        each = max(patches) / images
        method.check_count(images, each)
        width = grid_channels(self.channels, self.strides, settings.layout)
        costs = [method.search_costs(images, count / images, width) for count in patches]
        counts = Counter(shape for shapes in inputs for shape in shapes)
        seen = {shape: self._seen(shape, settings) for shape in counts}
        return Workload(
            images=images,
            patches=patches,
            channels=width,
            bank=method.bank_size(images, each),
            pixels=sum(wide * high for wide, high in sizes),
            largest_images=sum(nlargest(self.threads, (wide * high for wide, high in sizes))),
            decoding=sum(nlargest(self.threads, map(_decoding_bytes, self.candidates))),
            largest_grid=max(map(max, areas)) // stride**2,
            seen_pixels=sum(seen[shape][0] * count for shape, count in counts.items()),
            input_pixels=max(at_once for _, at_once in seen.values()),
            input_shapes=len(counts),
            threads=self.threads,
            on_cpu=self.on_cpu,
            ratio=method.ratio,
            streamed=method.streams,
            extra=method.extra_memory(images, max(patches) // images, width),
            searches=None if None in costs else [one for of_size in costs for one in of_size or ()],
        )

    def _seen(self, shape: tuple[int, int], settings: Settings) -> tuple[int, int]:
        """Pixels of a network input (height, width) that the network sees in all, and at once."""
        if settings.native_from is None:
            return shape[0] * shape[1], shape[0] * shape[1]
        tiles = *shape, settings.native_from, find_lattice(self.strides)
        return seen_pixels(*tiles), largest_tile(*tiles)

    def predict_memory(self, settings: Settings) -> int:
        """Predict the peak memory in bytes of a scan with other settings of the same stages."""
        return predict_memory(self.plan(settings), self.memory)

    def check(self, limit: int | None) -> int:
        """Return the peak memory in bytes that the scan is predicted to need.

        Raises SettingError, with what would fit, if it is over a limit, or if the images are too
        few for the method.
        """
        predicted = self.predict_memory(self.settings)
        check_memory(predicted, limit, self._advise)
        return predicted

    def _advise(self, limit: int) -> str:
        """Name what needs no more memory than that, by the same prediction; or what needs least."""
        settings, left_out = self.settings, []
        for option, default in _COSTLY.items():
            without = dataclasses.replace(settings, **default)
            if self.predict_memory(without) < self.predict_memory(settings):
                settings = without
                left_out.append(option)
        asked = " without " * bool(left_out) + " and ".join(left_out)
        sizes = {size for size in (*settings.size, *_SIZES) if size <= max(settings.size)}
        for size in sorted(sizes, reverse=True):
            words = f"--size {size}{asked}"
            need = self.predict_memory(dataclasses.replace(settings, size=(size,)))
            if need <= limit:
                return f"{words} (about {format_bytes(need)})"
        return f"at least {format_bytes(need)} for {words}"


def _decoding_bytes(one: Candidate) -> int:
    header = one.header
    return decoding_bytes(header.width, header.height, header.depth != "byte")


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
    maps = work.largest_images * _MAP_BYTES
    results = maps + patches * _NEIGHBOUR_BYTES
    search = compared + max(tiles + work.extra, results)
    grid = work.largest_grid * work.channels
    network = work.input_pixels * _ACTIVATION_BYTES + grid * _STAGE_BYTES
    network = work.threads * max(network, grid * _JOINING_BYTES)
    made = work.largest_images * _INPUT_BYTES + network
    extraction = max(made, work.decoding) + work.threads * grid * _WAITING_BYTES
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


def parse_limit(max_memory: int | str | None) -> int | None:
    """Bytes, or text such as "8GB" -> bytes. Raises SettingError."""
    return parse_bytes(max_memory) if isinstance(max_memory, str) else max_memory


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
