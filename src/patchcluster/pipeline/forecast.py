"""What a scan would do and need on this machine, said before it works."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from ..images.decode import deep_range
from ..network.backbones import Backbone
from ..runs.info import Skipped
from . import costs, times
from .extraction import Features
from .job import Job, describe_network, describe_versions
from .planning import Planner, check_sizes
from .survey import Candidate, Regions, survey_files, take_regions


@dataclass(frozen=True)
class Forecast:
    """What a scan would do and need. seconds: of each step; without `compare` if not known."""

    images: int
    skipped: int
    patches: int
    bank: int  # images that each is compared with
    seconds: dict[str, float]
    memory: int  # bytes
    settings: dict[str, Any]

    def describe(self) -> str:
        """The forecast in one line."""
        total = times.format_seconds(sum(self.seconds.values()))
        steps = ", ".join(f"{name} {spent:.1f}" for name, spent in self.seconds.items())
        if not self.seconds:
            needed = "time not known"
        elif "compare" not in self.seconds:
            needed = f"about {total} ({steps}) and the comparison, whose time is not known"
        else:
            needed = f"about {total} ({steps})"
        memory = costs.format_bytes(self.memory)
        what = f"{self.images} images, {self.patches} patches"
        if self.bank < self.images:
            what += f", each compared with {self.bank} images"
        return f"{what}: {needed}; about {memory} of memory"


@dataclass(frozen=True)
class Surveyed:
    """A set of files once their headers are read. skipped: by place among all files."""

    planner: Planner
    backbone: Backbone
    skipped: dict[int, Skipped]

    @property
    def candidates(self) -> Sequence[Candidate]:
        return self.planner.candidates


def survey_set(job: Job, files: Sequence[str]) -> Surveyed:
    """Load the network and read all headers; what can be refused without a plan is refused."""
    job.begin()
    backbone, settings = job.load_network(), job.settings
    with job.timed("survey"):
        candidates, skipped = survey_files(
            files, settings, backbone.strides, job.threads, job.step("survey")
        )
        regions = Regions(candidates)
        if settings.roi is not None and candidates:
            regions = take_regions(candidates, settings.roi)
            candidates = regions.candidates
            skipped |= regions.skipped
    if not candidates:
        reasons = sorted({skip.reason for skip in skipped.values()})
        raise InputError(
            f"none of the {len(files)} files is an image that can be read "
            f"({'; '.join(reasons[:3])}): name a folder that holds images"
        )
    describe_network(job.info, backbone, settings.weights)
    describe_versions(job.info, settings)
    check_sizes(candidates, settings.method)
    job.make_method().check_labels(job.info.labels.get(one.path) for one in candidates)
    job.info.deep_range = deep_range(candidate.header for candidate in candidates)
    memory = costs.resident_memory()
    planner = Planner(candidates, regions, settings, backbone, job.threads, memory)
    return Surveyed(planner, backbone, skipped)


def forecast(job: Job, surveyed: Surveyed, limits: costs.Limits) -> Forecast:
    """Check the memory, measure the machine, and say what the scan will take.

    Raises SettingError if the memory is not enough.
    """
    planner, info = surveyed.planner, job.info
    info.memory["predicted"] = planner.check(limits.memory)
    rates = _measure(job, surveyed)
    if rates is not None:
        seconds = {"start": time.monotonic() - limits.since}
        seconds |= times.predict_seconds(planner.count_work(), rates)
        info.predicted_seconds = {name: round(s, 3) for name, s in seconds.items()}
    work = planner.plan(job.settings)
    said = Forecast(
        work.images,
        len(surveyed.skipped),
        sum(work.patches),
        work.bank,
        info.predicted_seconds,
        info.memory["predicted"],
        info.settings,
    )
    job.tell(said.describe())
    return said


def _measure(job: Job, surveyed: Surveyed) -> times.Rates | None:
    """Measure this machine; None if no image that was tried can be read, or if it is not this
    machine that will do the work.
    """
    if job.ray is not None:
        return None
    work = surveyed.planner.count_work()
    with job.timed("measure"):
        return times.measure_repeatedly(
            lambda: _measure_once(job, surveyed),
            lambda rates: sum(times.predict_seconds(work, rates).values()),
        )


def _measure_once(job: Job, surveyed: Surveyed) -> times.Rates | None:
    """The same by one measurement, of about half a second."""
    features = Features(surveyed.backbone, job.settings, job.info.deep_range)
    trial = features.try_out(surveyed.candidates, job.threads)
    if trial is None:
        return None
    build, scan, rank = times.measure_search(surveyed.planner.device)
    smooth, regions = times.measure_maps(job.settings.frame)
    share = len(job.devices)
    return times.Rates(
        trial.load, trial.network / share, build, scan / share, rank / share, smooth, regions
    )
