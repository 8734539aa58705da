"""What a benchmark is asked to do."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..datasets import SETTINGS, Category, Setting
from ..errors import SettingError
from ..methods import METHODS
from .features import InputRule
from .tables import SHOWN_VARIANTS, STATISTICS_TABLE, TABLE_NUMBERS, Variant, choose_variants


@dataclass(frozen=True)
class Plan:
    """Categories x settings x variants; which variants is decided by the tables and methods."""

    root: str
    categories: list[Category]
    settings: list[Setting]
    tables: list[int]
    methods: list[str]
    figures: bool
    rule: InputRule
    seed: int

    def variants(self, setting: Setting) -> list[Variant]:
        """The variants to run in a setting, each once."""
        found = choose_variants(self.tables, self.methods, setting)
        if self.figures and setting == "test":
            found += [v for v in SHOWN_VARIANTS if v not in found and v.method in self.methods]
        return found


def make_plan(
    root: str,
    there: Sequence[Category],
    categories: Sequence[str] | None,
    settings: Sequence[str],
    tables: Sequence[int],
    methods: Sequence[str],
    figures: bool,
    size: int,
    crop: bool,
    seed: int,
) -> Plan:
    """Check what was asked; `there`: the categories of the data set. Raises SettingError."""
    by_name = {category.name: category for category in there}
    names = list(by_name) if categories is None else categories
    if not 32 <= size <= 4096 or size % 32:
        raise SettingError(f"size {size}: choose a multiple of 32 from 32 to 4096 pixels")
    if seed < 0:
        raise SettingError(f"seed {seed}: choose 0 or more")
    plan = Plan(
        root,
        [by_name[_known(name, list(by_name), "category")] for name in names],
        [_known(name, SETTINGS, "setting") for name in settings],
        [_known(number, TABLE_NUMBERS, "table") for number in tables],
        [_known(name, list(METHODS), "method") for name in methods],
        figures,
        InputRule(size, crop),
        seed,
    )
    if STATISTICS_TABLE not in plan.tables and not any(map(plan.variants, plan.settings)):
        raise SettingError(
            f"tables {', '.join(map(str, tables))} show nothing of the methods "
            f"{', '.join(methods)} in the settings {', '.join(settings)}: choose more of one"
        )
    return plan


def _known(value: Any, there: Sequence[Any], kind: str) -> Any:
    if value not in there:
        raise SettingError(f"no {kind} {value!r}: choose from {', '.join(map(str, there))}")
    return value
