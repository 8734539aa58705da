"""What a scan gives up to keep a time budget: those settings first that change least.

In this order: a smaller share of the patches in the first pass of the search; a bank of fewer
images, down to three quarters; smaller inputs of the network, and for these the same, with
banks down to a few images; a first pass with next to nothing. docs/scale.md has what each costs.
"""

import dataclasses
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from .errors import SettingError
from .planning import Planner
from .settings import PRESETS, Settings
from .times import Rates, format_seconds, predict_seconds

_SHARE = 0.9  # of what is left that a choice may be predicted to take
_RATIOS = (0.5, 0.3, 0.2)
_LEAST_RATIO = 0.1
_FEWER = 0.9  # each bank that is tried, to the one before
_LEAST_BANK = 24
_LEAST_SHARE = 0.75  # of its own bank; with fewer, smaller inputs lose less
_NAMES = ("ratio", "bank_images", "size")


@dataclass(frozen=True)
class Chooser:
    """Chooses what a scan does in so many seconds.

    fixed: names of settings that the user gave, which stay as they are.
    """

    planner: Planner
    rates: Rates
    fixed: Collection[str] = ()

    def predict(self, settings: Settings) -> dict[str, float]:
        """Seconds of each step of a scan with these settings."""
        return predict_seconds(self.planner.labour(settings), self.rates)

    def choose(self, settings: Settings, seconds: float, budget: float) -> Settings:
        """The first settings that fit so many seconds.

        Raises SettingError, with the `budget` that is too small and what would do, if none does.
        """
        need, least = 0.0, settings
        for least in cheaper(settings, self.planner, self.fixed):
            need = sum(self.predict(least).values())
            if need <= _SHARE * seconds:
                return least
        enough = budget - seconds + need / _SHARE
        raise SettingError(
            f"this needs about {format_seconds(budget - seconds + need)}, over --time-budget "
            f"{format_seconds(budget)}, even with {describe(least)}: choose "
            f"{math.ceil(enough)}s, or give it fewer images"
        )

    def shrink(self, settings: Settings, seconds: float) -> Settings:
        """The first settings with which all after the features fits; else the cheapest ones."""
        fixed = {*self.fixed, "size"}
        for one in cheaper(settings, self.planner, fixed):
            settings = one
            spent = self.predict(one)
            if sum(spent.values()) - spent["features"] <= seconds:
                break
        return settings


def cheaper(settings: Settings, planner: Planner, fixed: Collection[str]) -> Iterator[Settings]:
    """Settings that take less and less time, from those given on."""
    size: tuple[int, ...] = PRESETS["fast"]["size"]
    if "size" in fixed or settings.tile or settings.size <= size:
        yield from _smallest_searches(settings, planner, fixed)
        return
    most = round(_LEAST_SHARE * planner.bank_size(settings))
    yield from _smaller_searches(settings, planner, fixed, max(most, _LEAST_BANK))
    smaller = dataclasses.replace(settings, size=size)
    yield from _smallest_searches(smaller, planner, fixed)


def _smallest_searches(
    settings: Settings, planner: Planner, fixed: Collection[str]
) -> Iterator[Settings]:
    least = settings
    for least in _smaller_searches(settings, planner, fixed, _LEAST_BANK):
        yield least
    if "ratio" not in fixed and _ratio(least, planner) > _LEAST_RATIO:
        yield dataclasses.replace(least, ratio=_LEAST_RATIO)


def _smaller_searches(
    settings: Settings, planner: Planner, fixed: Collection[str], least: int
) -> Iterator[Settings]:
    yield settings
    if "ratio" not in fixed:
        own = _ratio(settings, planner)
        for ratio in _RATIOS:
            if ratio < own:
                settings = dataclasses.replace(settings, ratio=ratio)
                yield settings
    if "bank_images" in fixed:
        return
    bank = int(_FEWER * planner.bank_size(settings))
    while bank >= max(least, (settings.k or 0) + 1):
        yield dataclasses.replace(settings, bank_images=bank)
        bank = int(_FEWER * bank)


def _ratio(settings: Settings, planner: Planner) -> float:
    """The share of the patches in the first pass; 0: the method has none."""
    method = settings.make_method(*planner.backbone.stages(settings.strides))
    return float(getattr(method, "ratio", 0))


def changes(asked: Settings, chosen: Settings) -> dict[str, object]:
    """Names of the settings that were changed -> what was asked for."""
    return {
        name: getattr(asked, name)
        for name in _NAMES
        if getattr(asked, name) != getattr(chosen, name)
    }


def describe(settings: Settings) -> str:
    """The settings that a time budget can change, as a user gives them."""
    parts = [f"--size {','.join(map(str, settings.size))}"]
    if settings.ratio is not None:
        parts.append(f"--ratio {settings.ratio:g}")
    if settings.bank_images is not None:
        parts.append(f"--bank-images {settings.bank_images}")
    return " ".join(parts)
