"""Every setting of a scan, its one default, and the presets, which are named sets of them."""

import dataclasses
import inspect
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import SettingError
from .images.shapes import LARGEST, MAX_PIXELS
from .methods import METHODS, facts_of
from .scores import MAP_SCORES

if TYPE_CHECKING:
    from .methods import Method
    from .network.patches import Layout
    from .scores.finish import MapRule

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


# Settings of methods: `Facts.options` says which have which.
METHOD_SETTINGS = ("k", "ratio", "bank_images", "local_weight", "saturation", "stage_weights")


@dataclass(frozen=True)
class Settings:
    """The settings of a scan. None in `k` to `stage_weights`: the method's own default."""

    preset: str = "default"
    method: str = "patchcluster-plus"
    backbone: str = "tf_efficientnet_lite0"
    weights: str | None = None  # file of the backbone's weights
    size: tuple[int, ...] = (448,)  # network inputs of about size x size pixels; maps are averaged
    frame: int = 256  # maps are smoothed on a frame of about frame x frame pixels
    image_score: str = MAP_SCORES[0]
    k: int | None = None
    ratio: float | None = None
    bank_images: int | None = None  # that each is compared with; see `PatchClusterPlus`
    local_weight: float | None = None
    saturation: float | None = None
    stage_weights: tuple[float, ...] | None = None  # of stride 8, 16, 32; what has none is not made
    tile: bool = False  # images larger than size x size are scored at their own resolution
    roi: str | None = None  # mask of what is scored, or folder with one for each image
    max_pixels: int = MAX_PIXELS  # of an image that is read
    window: tuple[float, float] | None = None  # values of deep images that become black and white
    seed: int = 0
    device: str = "auto"  # cpu, cuda, mps, cuda:0,cuda:1; auto: the fastest there is, all GPUs

    @property
    def layout(self) -> "Layout":
        return METHODS[self.method].layout

    @property
    def strides(self) -> tuple[int, ...]:
        strides = METHODS[self.method].strides
        return strides if self.stage_weights is None else strides[: len(self.stage_weights)]

    @property
    def native_from(self) -> int | None:
        """The size from which on images are scored at their own resolution; None: no size."""
        return self.size[0] if self.tile else None

    def map_rule(self, baseline: Mapping[str, float]) -> "MapRule":
        """Say how maps and scores of a set are made; baseline: of run.json, empty if not used."""
        from .scores.finish import MapRule, SetBaseline  # this loads SciPy, which takes a moment

        known = SetBaseline(**baseline) if baseline else None
        return MapRule(self.frame, self.native_from, self.image_score, known)

    def make_method(self, stages: list[int], strides: list[int]) -> "Method":
        """Build the method for patches that are made of stages of so many channels."""
        kind = METHODS[self.method]
        given = {name: getattr(self, name) for name in facts_of(self.method).options}
        taken = inspect.signature(kind).parameters
        of_network = (("stages", stages), ("strides", strides))
        given |= {name: value for name, value in of_network if name in taken}
        return kind(**{name: value for name, value in given.items() if value is not None})


def resolve(**given: Any) -> Settings:
    """Settings from what a user gave; None means not given.

    From weakest to strongest: defaults, the method's settings, the preset, what was given.

    Raises SettingError for unknown names or values that cannot work.
    """
    given = {key: value for key, value in given.items() if value is not None}
    if "roi" in given:
        given["roi"] = os.fspath(given["roi"])
    fields = sorted(field.name for field in dataclasses.fields(Settings))
    for name in given:
        _check_name("setting", name, fields)
    preset_name = given.get("preset", Settings.preset)
    _check_name("preset", preset_name, PRESETS)
    preset = PRESETS[preset_name]
    presets_method = preset.get("method", Settings.method)
    method = given.get("method", presets_method)
    _check_name("method", method, METHODS)
    _check_values(Settings(**given))
    if method != presets_method:  # sizes and ratios of a preset belong to its method
        preset = {key: value for key, value in preset.items() if key == "backbone"}
    own = facts_of(method).settings
    settings = Settings(**{**own, **preset, **given, "method": method, "preset": preset_name})
    _check_together(settings)
    return settings


def _check_name(kind: str, name: str, known: Iterable[str]) -> None:
    if name not in known:
        raise SettingError(f"no {kind} named {name!r}: choose from {', '.join(known)}")


def _check_values(settings: Settings) -> None:
    """Check each value by itself."""
    if not settings.size or any(not 32 <= size <= 4096 for size in settings.size):
        raise SettingError(f"size {settings.size}: choose network inputs of 32 to 4096 pixels")
    if settings.ratio is not None and not 0 < settings.ratio <= 1:
        raise SettingError(f"ratio {settings.ratio}: choose a share of the patches in (0, 1]")
    if settings.k is not None and settings.k < 1:
        raise SettingError(f"k={settings.k}: choose at least 1 neighbour")
    if settings.bank_images is not None and settings.bank_images < 2:
        raise SettingError(f"bank_images {settings.bank_images}: choose 2 or more")
    if not 1 <= settings.frame <= 4096:
        raise SettingError(f"frame {settings.frame}: choose 1 to 4096 pixels")
    if settings.max_pixels < 1:
        raise SettingError(f"max_pixels {settings.max_pixels}: choose 1 or more")
    window = settings.window
    if window is not None and not (
        len(window) == 2 and -LARGEST <= window[0] < window[1] <= LARGEST
    ):
        raise SettingError(f"window {window}: choose two numbers, the lower one first")
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


def _check_together(settings: Settings) -> None:
    """Check that the settings work with each other and with the method."""
    name, method = settings.method, facts_of(settings.method)
    if settings.tile and len(settings.size) > 1:
        raise SettingError(
            f"tile with sizes {settings.size}: tiles are at the image's own resolution, choose one "
            "size"
        )
    if settings.roi is not None and not method.takes_parts:
        raise SettingError(
            f"{name} compares whole images: leave the region of interest out, or choose another "
            "method"
        )
    for option in METHOD_SETTINGS:
        if getattr(settings, option) is not None and option not in method.options:
            raise SettingError(f"{name} has no setting {option}: leave it out")
    check_seed(settings.seed, [name])
    rules = (*MAP_SCORES, *method.image_scores)
    if settings.image_score not in rules:
        raise SettingError(
            f"{name} has no image score {settings.image_score!r}: choose from {', '.join(rules)}"
        )
    if settings.image_score in method.image_scores and len(settings.size) > 1:
        raise SettingError(
            f"the image score {settings.image_score} needs one size: choose one size, or "
            "--image-score max"
        )


def check_seed(seed: int, methods: Sequence[str]) -> None:
    """Raise SettingError if none of the methods draws anything at random by a seed that is set."""
    if seed and not any("seed" in facts_of(method).options for method in methods):
        raise SettingError(f"nothing is random in {', '.join(methods)}: leave seed out")
