"""Forecast of time and memory of a scan on this machine.

A few images and a small search tell how fast the machine is now, whatever else runs on it. Factors
were fitted once with benchmarks/predictions.py.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from statistics import fmean, median
from typing import Any, Self, TypeVar

import torch

from ..errors import UnreadableImage
from ..images.decode import load_image
from ..methods.ranked_images import RankedImages
from ..network.backbones import Backbone
from ..scores import maps
from ..scores.finish import find_baseline
from ..search.row_index import NEAREST_ROWS, RowIndex
from .costs import Planner, Workload, format_bytes
from .extraction import Features
from .job import Job
from .survey import Candidate, Survey
from .workers import thread_pool

# What a scan takes, in units of what is measured:
_EXTRACTING = 1.1  # writing the patches, and what is done once a batch
_MAPPING = 6.0  # maps an image that are looked at or written, until all results are there
_FLAGGED = 0.4  # of the images, in whose maps regions are looked for
_REPORTING = 5.0  # and until the page is written
_BUILDING, _SCANNING, _RANKING = 0.5, 0.27, 1.2
_ROWS, _CHANNELS = 32_768, 64  # of the bank in the search that is timed
_QUERIES = 768
_OWNERS = 42  # images that the rows are said to be of
_SIDE = 512  # pixels, of the image in which regions are found
_REPEATS = 2
_TRIED = 2  # images a thread, by which the time of all is foreseen
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
    build: float  # a value of a bank that is indexed, times `_count_compared` of its rows
    scan: float  # a value of a query that is searched for, times the same
    rank: float  # a query whose nearest images are ranked
    smooth: float  # a map on its frame, and what it says of its image
    regions: float  # a pixel of an image whose map regions are looked for in

    @classmethod
    def mean(cls, several: Sequence[Self]) -> Self:
        """Average each rate over several measurements."""
        return cls(*(fmean(getattr(one, f.name) for one in several) for f in fields(cls)))


@dataclass(frozen=True)
class Forecast:
    """Size, time and memory of a scan. seconds: of each step; no `compare` if not known."""

    images: int
    skipped: int
    patches: int
    bank: int  # images that each is compared with
    seconds: dict[str, float]
    memory: int  # bytes
    settings: dict[str, Any]

    def describe(self) -> str:
        """The forecast in one line."""
        total = format_seconds(sum(self.seconds.values()))
        steps = ", ".join(f"{name} {spent:.1f}" for name, spent in self.seconds.items())
        if not self.seconds:
            needed = "time not known"
        elif "compare" not in self.seconds:
            needed = f"about {total} ({steps}) and the comparison, whose time is not known"
        else:
            needed = f"about {total} ({steps})"
        memory = format_bytes(self.memory)
        what = f"{self.images} images, {self.patches} patches"
        if self.bank < self.images:
            what += f", each compared with {self.bank} images"
        return f"{what}: {needed}; about {memory} of memory"


def forecast(job: Job, backbone: Backbone, survey: Survey) -> Forecast:
    """Check the memory, measure the machine, and say what the scan will take.

    Raises SettingError if the memory is not enough.
    """
    planner, info = Planner.of(job, survey.candidates), job.info
    info.memory["predicted"] = planner.check(job.max_memory)
    work = planner.plan(job.settings)
    rates = None
    if job.ray is None:  # else it is not this machine that does the work
        with job.timed("measure"):
            rates = measure_repeatedly(
                lambda: _measure(job, backbone, survey.candidates),
                lambda rates: sum(predict_seconds(work, rates).values()),
            )
    if rates is not None:
        seconds = {"start": time.monotonic() - job.since} | predict_seconds(work, rates)
        info.predicted_seconds = {name: round(s, 3) for name, s in seconds.items()}
    said = Forecast(
        work.images,
        len(survey.skipped),
        sum(work.patches),
        work.bank,
        info.predicted_seconds,
        info.memory["predicted"],
        info.settings,
    )
    job.tell(said.describe())
    return said


def predict_seconds(work: Workload, rates: Rates) -> dict[str, float]:
    """Predict the seconds of each step still to come; without `compare` if that is not known."""
    load = work.pixels * rates.load / work.threads
    network = work.seen_pixels * rates.network
    features = load + network / work.threads if work.on_cpu else max(load, network)
    smooth = work.images * rates.smooth / work.threads
    seconds = {"features": features * _EXTRACTING}
    if work.searches is not None:
        seconds["compare"] = sum(
            _count_compared(one.rows, work.on_cpu)
            * one.channels
            * (one.rows * rates.build * _BUILDING + one.queries * rates.scan * _SCANNING)
            + one.queries * rates.rank * _RANKING
            for one in work.searches
        )
    regions = _FLAGGED * work.pixels * rates.regions / work.threads
    return seconds | {"maps": smooth * _MAPPING + regions, "report": smooth * _REPORTING}


def _count_compared(rows: float, on_cpu: bool) -> float:
    """Count the rows that a query is compared with, but for a factor: see `RowIndex`."""
    return math.sqrt(rows) if on_cpu else rows


def measure_repeatedly(
    measure: Callable[[], Rates | None], predict: Callable[[Rates], float]
) -> Rates | None:
    """Average one or several measurements; None if nothing can be measured.

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


def _measure(job: Job, backbone: Backbone, candidates: Sequence[Candidate]) -> Rates | None:
    """Measure all rates once, in about half a second; None if no tried image can be read."""
    features = Features(backbone, job.settings, job.info.windows)
    images = measure_images(features, candidates, job.threads)
    if images is None:
        return None
    load, network = images
    build, scan, rank = measure_search(job.devices[0])
    smooth, regions = measure_maps(job.settings.frame)
    share = len(job.devices)
    return Rates(load, network / share, build, scan / share, rank / share, smooth, regions)


def measure_images(
    features: Features, candidates: Sequence[Candidate], threads: int
) -> tuple[float, float] | None:
    """Measure the rates `load` and `network` by a few images; None if none of them can be read."""
    spread = candidates[:: max(1, len(candidates) // (_TRIED * threads))]

    def measure(candidate: Candidate) -> tuple[float, float] | None:
        start = time.perf_counter()
        try:
            image = load_image(candidate.path, candidate.header, candidate.inputs, features.windows)
        except UnreadableImage:
            return None
        loaded = time.perf_counter()
        features.make_grids(image)
        spent = time.perf_counter() - loaded
        seen = sum(height * width for height, width in candidate.inputs)
        return (loaded - start) / (candidate.header.width * candidate.header.height), spent / seen

    with thread_pool(threads) as pool:
        list(pool.map(measure, spread[:threads]))  # what is first takes longer
        found = [one for one in pool.map(measure, spread[: _TRIED * threads]) if one is not None]
    if not found:
        return None
    load, network = zip(*found, strict=True)
    return fmean(load), fmean(network)


def measure_search(device: torch.device) -> tuple[float, float, float]:
    """Measure the rates `build`, `scan` and `rank` by a search in a small bank of drawn rows."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(64, _CHANNELS, generator=generator)  # patches come in kinds, not evenly
    which = torch.randint(0, 64, (_ROWS,), generator=generator)
    rows = (centres[which] + torch.randn(_ROWS, _CHANNELS, generator=generator)).to(device)
    queries = rows[:: _ROWS // _QUERIES].contiguous()
    owners = torch.arange(_ROWS, device=device) % _OWNERS
    own = torch.full((len(queries),), -1, device=device)
    build, index = clock(lambda: RowIndex(rows), device)
    scan, found = clock(lambda: index.search(queries, NEAREST_ROWS), device)
    rank, _ = clock(lambda: RankedImages.of_rows(*found, owners, _OWNERS, own, _OWNERS), device)
    values = _count_compared(_ROWS, device.type == "cpu") * _CHANNELS
    return build / (_ROWS * values), scan / (len(queries) * values), rank / len(queries)


def measure_maps(frame: float) -> tuple[float, float]:
    """Measure the rates `smooth` and `regions`, on frames of so many pixels a side."""
    grid = torch.rand(28, 28, generator=torch.Generator().manual_seed(0)).numpy()
    cpu = torch.device("cpu")

    def smooth_and_score() -> maps.Floats:
        on_frame = maps.smooth(grid, frame, 1, 1)
        maps.score_image(on_frame, "top1%")
        find_baseline(on_frame)
        return on_frame

    smooth, on_frame = clock(smooth_and_score, cpu)
    threshold = float(on_frame.max()) * 0.9

    def find() -> list[maps.Region]:
        return maps.find_regions(maps.to_image(on_frame, _SIDE, _SIDE), threshold)

    return smooth, clock(find, cpu)[0] / _SIDE**2


def clock(work: Callable[[], Result], device: torch.device) -> tuple[float, Result]:
    """Return the median seconds of some work, after a first time that is not counted, and what it
    gave."""
    result = work()
    spent = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        result = work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        spent.append(time.perf_counter() - start)
    return median(spent), result


def format_seconds(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
