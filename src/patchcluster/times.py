"""How long a scan will take on this machine, said before it starts.

The work is counted from the survey of the set; a few images and a small search tell how fast this
machine does it now, with all that runs on it beside. Factors were fitted once with
benchmarks/predictions.py.
"""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from statistics import fmean, median
from typing import Self, TypeVar

import torch
from torch import Tensor

from . import maps
from .errors import SettingError
from .levels import find_level
from .methods.base import Products
from .neighbors import BlockBank

# Of what is measured, to what a scan takes.
_EXTRACTING = 1.1  # writing the patches, and what is done once a batch
_MAPPING = 6.0  # maps an image that are looked at or written, until all results are there
_FLAGGED = 0.4  # of the images, in whose maps regions are looked for
_REPORTING = 5.0  # and until the page is
_FIRST, _FULL, _PREPARING = 0.16, 1.9, 7.2
_BLOCKS = 24  # images in the search that is timed
_ROWS = 784  # patches of each
_SIDE = 512  # pixels, of the image in which regions are found
_NEAREST = 3
_IN_FULL = 19
_QUERIES = 768  # equal parts for several threads
_REPEATS = 2
# A machine that is shared gets faster and slower by a fifth within seconds: for a long scan it is
# measured more than once,
_MEASURING = 0.02  # of the seconds that are foreseen, and
_MEASUREMENTS = 6  # times at most

Result = TypeVar("Result")


@dataclass(frozen=True)
class Rates:
    """Seconds that this machine takes, as measured."""

    load: float  # a pixel of a file, in each of the threads
    network: float  # a pixel of the network's input, to patches; on the CPU in each of the threads
    first: float  # a product of the first pass of a search
    full: float  # a product of the search in full
    prepare: float  # a value of a patch that is brought into a bank
    smooth: float  # a map on its frame, and what it says of its image
    regions: float  # a pixel of an image whose map regions are looked for in

    @classmethod
    def mean(cls, several: Sequence[Self]) -> Self:
        """The mean of each rate over several measurements."""
        return cls(*(fmean(getattr(one, f.name) for one in several) for f in fields(cls)))

    def slower(self, factor: float) -> "Rates":
        """The same on a machine that takes `factor` times as long."""
        return Rates(*(factor * rate for rate in vars(self).values()))


@dataclass(frozen=True)
class Labour:
    """What a scan has to do, as far as time goes."""

    images: int
    pixels: int  # of all files
    seen_pixels: int  # of all inputs of the network, tiles with their overlaps
    threads: int
    parallel: bool  # whether each thread has a network of its own, as on the CPU
    products: Sequence[Products] | None  # of the search, one a network size; None: not known


def predict_seconds(labour: Labour, rates: Rates) -> dict[str, float]:
    """Seconds of each step that is still to come; without `compare` if that is not known."""
    load = labour.pixels * rates.load / labour.threads
    network = labour.seen_pixels * rates.network
    features = load + network / labour.threads if labour.parallel else max(load, network)
    smooth = labour.images * rates.smooth / labour.threads
    seconds = {"features": features * _EXTRACTING}
    if labour.products is not None:
        seconds["compare"] = sum(
            one.first * rates.first * _FIRST
            + one.full * rates.full * _FULL
            + one.values * rates.prepare * _PREPARING
            for one in labour.products
        )
    regions = _FLAGGED * labour.pixels * rates.regions / labour.threads
    return seconds | {"maps": smooth * _MAPPING + regions, "report": smooth * _REPORTING}


def measure_repeatedly(
    measure: Callable[[], Rates | None], predict: Callable[[Rates], float]
) -> Rates | None:
    """The mean of one or several measurements; None if nothing can be measured.

    predict: rates -> seconds of the work that they are for.
    """
    begin = time.perf_counter()
    several: list[Rates] = []
    while len(several) < _MEASUREMENTS:
        rates = measure()
        if rates is None:
            return None
        several.append(rates)
        if time.perf_counter() - begin > _MEASURING * predict(Rates.mean(several)):
            break
    return Rates.mean(several)


def measure_search(grids: Sequence[Tensor], device: torch.device) -> tuple[float, float, float]:
    """Seconds a product of the first pass and in full, and a value of a bank.

    By a search among a few images whose patches are those of grids [h, w, c].
    """
    patches = torch.cat([grid.reshape(-1, grid.shape[-1]) for grid in grids]).to(device)
    channels = min(patches.shape[1], 128)
    rows = patches[:, -channels:].float()
    places = torch.arange(_BLOCKS * _ROWS, device=device) * 7 % len(rows)
    generator = torch.Generator().manual_seed(0)

    def prepare() -> BlockBank:
        values = rows[places]
        values = values - values.mean(0)
        values += 0.1 * noise * values.std()
        return BlockBank(values, offsets, sample)

    noise = torch.randn(len(places), channels, generator=generator).to(device)
    offsets = list(range(0, len(places) + 1, _ROWS))
    sample = torch.arange(0, len(places), 3, device=device)
    prepared, bank = clock(prepare, device)
    queries = bank.rows[:_QUERIES]
    first, _ = clock(lambda: bank.block_squares(queries), device)
    whole, _ = clock(lambda: bank.nearest_blocks(queries, _NEAREST, _IN_FULL), device)
    pairs = len(queries) * channels
    return (
        first / (pairs * len(sample)),
        max(whole - first, first) / (pairs * _IN_FULL * _ROWS),
        prepared / (len(places) * channels),
    )


def measure_maps(frame: float) -> tuple[float, float]:
    """Seconds of one map on its frame, with what it says of its image, and of a pixel of an image
    whose regions are found."""
    grid = torch.rand(28, 28, generator=torch.Generator().manual_seed(0)).numpy()
    cpu = torch.device("cpu")

    def smooth_and_score() -> maps.Floats:
        on_frame = maps.smooth(grid, frame, 1, 1)
        maps.score_image(on_frame, "top1%")
        find_level(on_frame)
        return on_frame

    smooth, on_frame = clock(smooth_and_score, cpu)
    threshold = float(on_frame.max()) * 0.9

    def find() -> list[maps.Region]:
        return maps.find_regions(maps.to_image(on_frame, _SIDE, _SIDE), threshold)

    return smooth, clock(find, cpu)[0] / _SIDE**2


def clock(work: Callable[[], Result], device: torch.device) -> tuple[float, Result]:
    """Median seconds of some work, after a first time that is not counted, and what it gave."""
    result = work()
    spent = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        result = work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        spent.append(time.perf_counter() - start)
    return median(spent), result


def parse_seconds(text: str) -> float:
    """`90s`, `10m`, `2h` or a number of seconds -> seconds. Raises SettingError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip().lower())
    seconds = float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]] if found else 0
    if not 0 < seconds < float("inf"):
        raise SettingError(f"{text!r} is not an amount of time: write 90s, 10m or 2h")
    return seconds


def format_seconds(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
