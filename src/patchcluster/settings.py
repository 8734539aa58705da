"""Every setting of a scan, its one default, and the presets, which are named sets of them."""

import dataclasses
import inspect
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from .errors import SettingError
from .methods import METHODS, Method
from .network.patches import Layout
from .scores.finish import MapRule
from .scores.levels import Levels
from .scores.maps import ImageScore

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "fast": {
        "size": (320,),
        "local_weight": 0.0,
        "saturation": 4.0,
        "stage_weights": (1.0, 1.5),
    },
    "best": {"size": (448, 640)},
    "paper": {"method": "patchcluster", "backbone": "wide_resnet50_2.tv_in1k"},
}


Chosen = TypeVar("Chosen")

_METHOD_OPTIONS = ("k", "ratio", "bank_images", "local_weight", "saturation", "stage_weights")


@dataclass(frozen=True)
class Settings:
    """What is asked of a scan. None in `k` to `stage_weights`: the method's own default."""

    preset: str = "default"
    method: str = "patchcluster-plus"
    backbone: str = "tf_efficientnet_lite0"
    weights: str | None = None  # file of the backbone's weights
    size: tuple[int, ...] = (448,)  # network inputs of about size x size pixels; maps are averaged
    frame: int = 256  # maps are smoothed on a frame of about frame x frame pixels
    image_score: ImageScore = "contrast"
    k: int | None = None
    ratio: float | None = None
    bank_images: int | None = None  # that each is compared with; see `PatchClusterPlus`
    local_weight: float | None = None
    saturation: float | None = None
    stage_weights: tuple[float, ...] | None = None  # of stride 8, 16, 32; what has none is not made
    tile: bool = False  # images larger than size x size are scored at their own resolution
    roi: str | None = None  # mask of what is scored, or folder with one for each image
    seed: int = 0
    device: str = "auto"  # cpu, cuda, mps, cuda:0,cuda:1; auto: the fastest there is, all GPUs

    @property
    def layout(self) -> Layout:
        return METHODS[self.method].layout

    @property
    def strides(self) -> tuple[int, ...]:
        strides = METHODS[self.method].strides
        return strides if self.stage_weights is None else strides[: len(self.stage_weights)]

    @property
    def native_from(self) -> int | None:
        """The size from which on images are scored at their own resolution; None: no size."""
        return self.size[0] if self.tile else None

    def map_rule(self, levels: Mapping[str, float]) -> MapRule:
        """Say how maps and scores of a set are made; levels: of run.json, empty if not used."""
        known = Levels(**levels) if levels else None
        return MapRule(self.frame, self.native_from, self.image_score, known)

    def make_method(self, stages: list[int], strides: list[int]) -> Method:
        """Build the method for patches that are made of stages of so many channels."""
        options = {name: getattr(self, name) for name in _METHOD_OPTIONS}
        options |= {"stages": stages, "strides": strides, "seed": self.seed}
        taken = inspect.signature(METHODS[self.method]).parameters
        given = {name: value for name, value in options.items() if value is not None}
        return METHODS[self.method](**{n: value for n, value in given.items() if n in taken})


def resolve(**given: Any) -> Settings:
    """Settings from what a user gave; None means not given.

    From weakest to strongest: defaults, the method's settings, the preset, what was given.

    Raises SettingError for unknown names or values that cannot work.
    """
    given = {key: value for key, value in given.items() if value is not None}
    if "roi" in given:
        given["roi"] = os.fspath(given["roi"])
    preset_name = given.get("preset", "default")
    preset = _choose(PRESETS, preset_name, "preset")
    method = given.get("method", preset.get("method", Settings.method))
    base = _choose(METHODS, method, "method").settings
    if "method" in given and method != preset.get("method", Settings.method):
        # Sizes and ratios of a preset belong to its method.
        preset = {key: value for key, value in preset.items() if key == "backbone"}
    fields = {field.name for field in dataclasses.fields(Settings)}
    unknown = sorted(set(given) - fields)
    if unknown:
        raise SettingError(
            f"no setting named {unknown[0]!r}: choose from {', '.join(sorted(fields))}"
        )
    settings = Settings(**{**base, **preset, **given, "method": method, "preset": preset_name})
    _check(settings)
    return settings


def _choose(options: Mapping[str, Chosen], name: str, kind: str) -> Chosen:
    if name not in options:
        raise SettingError(f"no {kind} named {name!r}: choose from {', '.join(options)}")
    return options[name]


def _check(settings: Settings) -> None:
    if not settings.size or any(not 32 <= size <= 4096 for size in settings.size):
        raise SettingError(f"size {settings.size}: choose network inputs of 32 to 4096 pixels")
    if settings.tile and len(settings.size) > 1:
        raise SettingError(
            f"tile with sizes {settings.size}: tiles are at the image's own resolution, choose one "
            "size"
        )
    if settings.ratio is not None and not 0 < settings.ratio <= 1:
        raise SettingError(f"ratio {settings.ratio}: choose a share of the patches in (0, 1]")
    if settings.k is not None and settings.k < 1:
        raise SettingError(f"k={settings.k}: choose at least 1 neighbour")
    if settings.bank_images is not None and settings.bank_images < 2:
        raise SettingError(f"bank_images {settings.bank_images}: choose 2 or more")
    if not 1 <= settings.frame <= 4096:
        raise SettingError(f"frame {settings.frame}: choose 1 to 4096 pixels")
    if not 0 <= settings.seed < 1 << 63:
        raise SettingError(f"seed {settings.seed}: choose 0 or more, of 63 bits at most")
    weight = settings.local_weight
    if weight is not None and not 0 <= weight < math.inf:
        raise SettingError(f"local_weight {weight}: choose 0 or more")
    if settings.saturation is not None and not settings.saturation > 0:
        raise SettingError(f"saturation {settings.saturation}: choose more than 0")
    weights = settings.stage_weights
    if weights is not None and not (
        0 < len(weights) <= 3 and all(0 < weight < math.inf for weight in weights)
    ):
        raise SettingError(f"stage_weights {weights}: choose 1 to 3 weights of more than 0")
    if settings.roi is not None and not METHODS[settings.method].takes_parts:
        raise SettingError(
            f"{settings.method} compares whole images: leave the region of interest out, or choose "
            "another method"
        )
    taken = inspect.signature(METHODS[settings.method]).parameters
    for name in _METHOD_OPTIONS:
        if getattr(settings, name) is not None and name not in taken:
            raise SettingError(f"{settings.method} has no setting {name}: leave it out")
    if settings.seed and "seed" not in taken:
        raise SettingError(f"nothing is random in {settings.method}: leave seed out")
    own = METHODS[settings.method].image_scores
    rules = ("contrast", "top1%", "max", *own)
    if settings.image_score not in rules:
        raise SettingError(
            f"{settings.method} has no image score {settings.image_score!r}: choose from "
            f"{', '.join(rules)}"
        )
    if settings.image_score in own and len(settings.size) > 1:
        raise SettingError(
            f"the image score {settings.image_score} needs one size: choose one size, or "
            "--image-score max"
        )
