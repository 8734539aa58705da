"""Survey of a set -> whether a scan of it can work, what it will need, and what would need less."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from ..errors import InputError, SettingError
from ..methods import METHODS
from ..network.patches import grid_channels, grid_stride
from ..network.tiling import find_lattice, largest_tile, seen_pixels
from ..settings import PRESETS, Settings
from . import costs
from .costs import Workload
from .survey import Candidate, Regions, at_sizes
from .times import Work

_SIZES = (384, 320, 256, 192, 128, 96, 64)  # that are tried instead of a larger one


def check_sizes(candidates: Sequence[Candidate], method: str) -> None:
    """Raise SettingError if the images' shapes differ and the method cannot take that."""
    sizes = sorted({candidate.inputs[0] for candidate in candidates})
    if METHODS[method].one_size and len(sizes) > 1:
        raise SettingError(
            f"{method} needs images of one shape, and these differ (network inputs of "
            f"{' x '.join(map(str, sizes[0]))} to {' x '.join(map(str, sizes[-1]))} pixels): "
            "choose another method"
        )


class Network(Protocol):
    """A backbone, as far as a plan needs it."""

    @property
    def strides(self) -> list[int]: ...

    @property
    def device(self) -> torch.device: ...

    def stages(self, strides: Sequence[int]) -> tuple[list[int], list[int]]: ...


@dataclass(frozen=True)
class Planner:
    """What the survey of a set found, from which scans with any settings can be planned.

    settings: those that the candidates' network inputs were made for. memory: bytes that the
    process holds with the network loaded.
    """

    candidates: Sequence[Candidate]
    regions: Regions
    settings: Settings
    backbone: Network
    threads: int
    memory: int

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.backbone.device

    def check(self, limit: int | None) -> int:
        """Peak memory in bytes that the scan is predicted to need.

        Raises SettingError, with what would fit, if it is over a limit, or if the images are too
        few for the method.
        """
        predicted = self.predict_memory(self.settings)
        costs.check_memory(predicted, limit, self._advise)
        return predicted

    def predict_memory(self, settings: Settings) -> int:
        """Peak memory in bytes of a scan with other settings."""
        return costs.predict_memory(self.plan(settings), self.memory)

    def bank_size(self, settings: Settings) -> int:
        """How many images a scan with other settings compares each with."""
        return self.plan(settings).bank

    def plan(self, settings: Settings) -> Workload:
        """What a scan with other settings has to do. Raises SettingError if it cannot work."""
        candidates, regions = self.at(settings)
        if not candidates:
            raise InputError("no image would be left to compare with: give at least 2")
        channels, strides = self.backbone.stages(settings.strides)
        method = settings.make_method(channels, strides)
        images = len(candidates)
        stride = grid_stride(strides, settings.layout)
        areas = [[h * w for h, w in candidate.inputs] for candidate in candidates]
        scored = [
            regions.areas[candidate.id] if candidate.roi else area
            for candidate, area in zip(candidates, areas, strict=True)
        ]
        patches = [sum(area) // stride**2 for area in zip(*scored, strict=True)]
        each = max(patches) / images
        method.check_count(images, each)
        bank = method.bank_size(images, each)
        width = grid_channels(channels, strides, settings.layout)
        shapes = {shape for candidate in candidates for shape in candidate.inputs}
        return Workload(
            patches=patches,
            channels=width,
            images=images,
            largest_image=max(c.header.width * c.header.height for c in candidates),
            input_pixels=max(self._seen_at_once(shape, settings) for shape in shapes),
            input_shapes=len(shapes),
            threads=self.threads,
            ratio=getattr(method, "ratio", 1.0),
            bank=bank,
            extra=method.extra_memory(images, max(patches) // images, width),
            largest_grid=max(map(max, areas)) // stride**2,
            streamed=method.streams,
        )

    def count_work(self) -> Work:
        """Count what the scan has to do, as far as time goes."""
        settings, work = self.settings, self.plan(self.settings)
        channels, strides = self.backbone.stages(settings.strides)
        method = settings.make_method(channels, strides)
        costs = [
            method.search_costs(work.images, patches / work.images, work.channels)
            for patches in work.patches
        ]
        return Work(
            images=work.images,
            pixels=sum(one.header.width * one.header.height for one in self.candidates),
            seen_pixels=sum(
                self._seen(shape, settings) for one in self.candidates for shape in one.inputs
            ),
            threads=self.threads,
            on_cpu=self.device.type == "cpu",
            searches=None if None in costs else [one for of_size in costs for one in of_size or ()],
        )

    def at(self, settings: Settings) -> tuple[Sequence[Candidate], Regions]:
        """The images, and what masks leave of them, at the network sizes of other settings."""
        same = (settings.size, settings.tile) == (self.settings.size, self.settings.tile)
        if same:
            return self.candidates, self.regions
        return at_sizes(self.candidates, self.regions, settings, self.backbone.strides)

    def _seen(self, shape: tuple[int, int], settings: Settings) -> int:
        """Pixels of a network input (height, width) that the network sees in all."""
        if settings.native_from is None:
            return shape[0] * shape[1]
        return seen_pixels(*shape, settings.native_from, find_lattice(self.backbone.strides))

    def _seen_at_once(self, shape: tuple[int, int], settings: Settings) -> int:
        """Pixels of a network input (height, width) that the network sees at once."""
        if settings.native_from is None:
            return shape[0] * shape[1]
        return largest_tile(*shape, settings.native_from, find_lattice(self.backbone.strides))

    def _advise(self, limit: int) -> str:
        """What needs no more memory than that, by the same prediction; else what needs least."""
        needs = {words: self.predict_memory(one) for words, one in self._smaller()}
        for words, need in needs.items():
            if need <= limit:
                return f"{words} (about {costs.format_bytes(need)})"
        needs["the same"] = self.predict_memory(self.settings)
        least = min(needs, key=lambda words: needs[words])
        return f"at least {costs.format_bytes(needs[least])} for {least}"

    def _smaller(self) -> Iterator[tuple[str, Settings]]:
        """Settings that need less, those that lose least first, and how a user asks for them."""
        settings = self.settings
        without = " without --tile" if settings.tile else ""
        if settings.tile:
            settings = dataclasses.replace(settings, tile=False)
            yield "a scan without --tile", settings
        usual = dataclasses.replace(settings, bank_images=None)
        if self.bank_size(settings) > self.bank_size(usual):
            settings = usual
            without += " and --bank-images" if without else " without --bank-images"
            yield f"a scan{without}", settings
        yield from _smaller_inputs(settings, without)


def _smaller_inputs(settings: Settings, without: str) -> Iterator[tuple[str, Settings]]:
    if settings == dataclasses.replace(Settings(), device=settings.device, seed=settings.seed):
        yield f"--preset fast{without}", dataclasses.replace(settings, **PRESETS["fast"])
    sizes = _SIZES if len(settings.size) == 1 else (max(settings.size), *_SIZES)
    for size in sizes:
        if size < max(settings.size) or len(settings.size) > 1:
            yield f"--size {size}{without}", dataclasses.replace(settings, size=(size,))
