"""A scan, update or rescoring: its folder, settings, workers and progress."""

import datetime
import functools
import importlib.metadata
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import PIL
import torch

from .. import __version__
from ..methods import Method
from ..network.backbones import Backbone, load_backbone
from ..network.devices import choose_devices
from ..runs.info import RunInfo
from ..scores import maps
from ..settings import Settings, resolve
from .workers import DeviceWorkers, LocalWorkers, Workers

Progress = Callable[[str, int, int], None]  # step, done, total


@dataclass(frozen=True)
class Job:
    """One scan, update or new scoring of a run.

    info: what run.json will say, filled in as steps are done. ray: the address of a cluster that
    works instead of this machine. tell(line): says what is predicted. max_memory: bytes. since:
    when it began, of `time.monotonic`.
    """

    folder: Path
    info: RunInfo
    progress: Progress = lambda *_: None
    tell: Callable[[str], None] = lambda _: None
    ray: str | None = None
    max_memory: int | None = None
    since: float = field(default_factory=time.monotonic)

    @functools.cached_property
    def settings(self) -> Settings:
        return resolve(**self.info.settings)

    @functools.cached_property
    def threads(self) -> int:
        return torch.get_num_threads()

    @functools.cached_property
    def devices(self) -> list[torch.device]:
        """The devices that share the work; what is not shared lies on the first."""
        return choose_devices("cpu" if self.ray else self.settings.device)

    @contextmanager
    def workers(self) -> Iterator[Workers]:
        """Have workers until the end of the comparison; those of a cluster are started."""
        if self.ray is not None:
            from .ray_workers import RayWorkers  # takes a moment, and an extra

            with RayWorkers(self.ray, self.settings.device, self.threads, self.tell) as workers:
                yield workers
        elif len(self.devices) == 1:
            yield LocalWorkers(self.threads)
        else:
            yield DeviceWorkers(self.devices, self.threads)

    def step(self, name: str) -> Callable[[int, int], None]:
        return lambda done, total: self.progress(name, done, total)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the seconds of what is done to those of a step."""
        start = time.perf_counter()
        yield
        spent = time.perf_counter() - start
        self.info.seconds[name] = round(self.info.seconds.get(name, 0.0) + spent, 3)

    def begin(self) -> None:
        """Say when the work starts, and where."""
        self.info.started = now()
        self.info.device = "ray" if self.ray else ",".join(map(str, self.devices))

    def load_network(self) -> Backbone:
        settings = self.settings
        with self.timed("network"):
            return load_backbone(
                settings.backbone, settings.weights, self.devices[0], settings.strides
            )

    def make_method(self) -> Method:
        """Make the method, once run.json names the network."""
        backbone = self.info.backbone
        return self.settings.make_method(backbone["channels"], backbone["strides"])


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def describe_network(job: Job, backbone: Backbone) -> None:
    """Say in run.json which network it is."""
    job.info.backbone = {
        "name": backbone.name,
        "weights": job.settings.weights or "pretrained",
        "sha256": backbone.weights_hash,
        "channels": backbone.channels,
        "strides": backbone.strides,
    }


def describe_versions(job: Job) -> None:
    """Say in run.json what it was made by, and how maps follow from score grids."""
    job.info.versions = {
        "patchcluster": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": importlib.metadata.version("timm"),
        "faiss": importlib.metadata.version("faiss-cpu"),
        "numpy": np.__version__,
        "pillow": PIL.__version__,
    }
    job.info.map_rule = {
        "frame": job.settings.frame,
        "native_from": job.settings.native_from,
        "sigma": maps.SIGMA,
        "steps": "if native_from is a number, multiply frame by sqrt(width * height) / "
        "native_from where that is above 1; bilinear (half-pixel centres) from the grid to "
        "round(frame / a) x round(frame * a) rows x columns, a = sqrt(width / height); "
        "Gaussian of sigma pixels there, edges repeated; bilinear to height x width. With a "
        "region of interest each step averages what is inside it, and the rest is NaN",
    }
