"""run.json: what a scan was asked and what it found; and the checks on what is read from it.

A run may have been edited, cut short or made by somebody else, so that each value is checked before
it is used: paths of files of the run are made from `ImageRecord.id` and `ImageRecord.roi`.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Len, Lt
from pydantic import ConfigDict, StringConstraints, TypeAdapter, ValidationError

from .labels import Label
from .levels import Levels
from .settings import Settings
from .thresholds import Flagging, Threshold

FORMAT = 1
_CONFIG = ConfigDict(extra="forbid", allow_inf_nan=False)

State = Literal["running", "flagging", "rescoring", "complete"]
Count = Annotated[int, Ge(0)]
Size = Annotated[int, Gt(0), Lt(1 << 31)]
Hash = Annotated[str, StringConstraints(pattern="^[0-9a-f]*$")]


@dataclass(frozen=True)
class ImageRecord:
    """One scored image. `id` names its files in the run; sizes are as shown, in pixels."""

    __pydantic_config__: ClassVar[ConfigDict] = _CONFIG

    id: Annotated[int, Ge(0), Lt(1 << 31)]
    path: str
    sha256: Hash
    bytes: Count
    width: Size
    height: Size
    roi: Hash = ""  # name of its mask of what is scored; "": all of it


@dataclass(frozen=True)
class Skipped:
    """A file that got no score, and why."""

    __pydantic_config__: ClassVar[ConfigDict] = _CONFIG

    path: str
    reason: str


@dataclass
class RunInfo:
    """What run.json holds beside the images."""

    __pydantic_config__: ClassVar[ConfigDict] = _CONFIG

    inputs: list[str]
    settings: dict[str, Any]
    version: str
    format: int = FORMAT
    state: State = "running"
    started: str = ""
    finished: str = ""
    backbone: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    device: str = ""
    deep_range: dict[str, Annotated[list[float], Len(2, 2)]] = field(default_factory=dict)
    threshold: dict[str, Any] = field(default_factory=dict)
    boundary: float = 0.0  # image score of the most doubtful image: see `feedback.find_boundary`
    map_rule: dict[str, Any] = field(default_factory=dict)
    levels: dict[str, float] = field(default_factory=dict)  # see `levels.Levels`; empty: not heeded
    seconds: dict[str, float] = field(default_factory=dict)
    predicted_seconds: dict[str, float] = field(default_factory=dict)
    time_budget: Annotated[float, Gt(0)] | None = None  # seconds
    instead_of: dict[str, Any] = field(default_factory=dict)  # settings that it changed, as asked
    memory: dict[str, int] = field(default_factory=dict)
    duplicates: list[list[str]] = field(default_factory=list)  # paths of files of equal content
    # Paths of images that the method takes for the same, of which one would hide another's defect.
    near_duplicates: list[list[str]] = field(default_factory=list)
    labels: dict[str, Label] = field(default_factory=dict)  # of paths
    flagging: dict[str, Any] = field(default_factory=dict)  # how it was asked for
    roi_sha256: str = ""  # of the masks that were named

    def kept_budget(self) -> str:
        """What the time budget changed, in words; "": nothing, or there is none."""
        if self.time_budget is None or not self.instead_of:
            return ""
        changed = (
            f"{name.replace('_', ' ')} {_plain(self.settings[name])} instead of "
            f"{_plain(asked) or _UNASKED[name]}"
            for name, asked in self.instead_of.items()
        )
        return f"for the time budget of {self.time_budget:g} s: {', '.join(changed)}"


_UNASKED = {"ratio": "the method's own", "bank_images": "all", "size": "the method's own"}


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "" if value is None else f"{value:g}"


@dataclass
class _Backbone:
    """What must be in `backbone` of a finished run."""

    name: str
    weights: str
    sha256: str
    channels: list[Size]
    strides: list[Size]


@dataclass
class _MapRule:
    """What is read from `map_rule`."""

    native_from: Size | None = None


_IMAGES = TypeAdapter(list[ImageRecord])
_SKIPPED = TypeAdapter(list[Skipped])
_INFO = TypeAdapter(RunInfo)
_SETTINGS = TypeAdapter(Settings)
_LEVELS = TypeAdapter(Levels)
_PARTS: dict[str, TypeAdapter[Any]] = {
    "backbone": TypeAdapter(_Backbone),
    "map_rule": TypeAdapter(_MapRule),
    "threshold": TypeAdapter(Threshold),
    "flagging": TypeAdapter(Flagging),
}


def parse(value: Any) -> tuple[RunInfo, list[ImageRecord], list[Skipped]]:
    """What run.json holds, from its JSON. Raises ValueError, of one line, if that is damaged."""
    try:
        rest = dict(value)
        images = _IMAGES.validate_python(rest.pop("images"))
        skipped = _SKIPPED.validate_python(rest.pop("skipped"))
        info = _INFO.validate_python(rest)
        _SETTINGS.validate_python(info.settings, extra="forbid")
        if info.levels:
            _LEVELS.validate_python(info.levels)
        if info.state != "running":
            for name, part in _PARTS.items():
                part.validate_python(getattr(info, name))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{where}: {first['msg']}" if where else first["msg"]) from error
    for name in ("id", "path"):
        if len({getattr(image, name) for image in images}) < len(images):
            raise ValueError(f"two images have the same {name}")
    return info, images, skipped
