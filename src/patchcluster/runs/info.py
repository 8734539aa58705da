"""run.json: what a scan was asked and what it found; and the checks on what is read from it.

A run may have been edited, cut short or made by somebody else, so that each value is checked before
it is used: paths of files of the run are made from `ImageRecord.id` and `ImageRecord.roi`.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Len, Lt
from pydantic import ConfigDict, StringConstraints, TypeAdapter, ValidationError

from ..errors import PatchclusterError, SettingError
from ..scores.finish import SetBaseline
from ..scores.labels import Label
from ..scores.probability import Scores, SetScores, find_probabilities
from ..scores.thresholds import Flagging, Threshold
from ..settings import Settings, resolve

FORMAT = 4  # of run.json, and of what the other files of a run hold
_CONFIG = ConfigDict(extra="forbid", allow_inf_nan=False)

# The state of a run says whether its files belong together, and what finishes it after a kill.
# run.json is therefore the first file that a change writes, and the last one.
#
#   state      the folder holds                                    finished by
#   running    a scan in progress                                  the same scan
#   rescoring  scores, maps and bank of two comparisons            comparing again (`rescoring.py`)
#   flagging   the tables of one threshold, the page of another    flagging again (`rescoring.py`)
#   complete   files that belong together
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
    version: Count = 0  # of a URL, see `inputs.stamp`; 0: not known
    # See `images.looks.measure_look`; none in runs that were written without.
    look: Annotated[list[float], Len(0, 4)] = field(default_factory=list)

    @property
    def figures(self) -> list[float] | None:
        """Width, height and the four figures of its look; None: not known."""
        return [self.width, self.height, *self.look] if len(self.look) == 4 else None


@dataclass(frozen=True)
class Skipped:
    """A file that got no score, and why."""

    __pydantic_config__: ClassVar[ConfigDict] = _CONFIG

    path: str
    reason: str


@dataclass
class RunInfo:
    """All of run.json but the images and the skipped files."""

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
    windows: dict[str, Annotated[list[float], Len(2, 2)]] = field(default_factory=dict)
    threshold: dict[str, Any] = field(default_factory=dict)
    boundary: float = 0.0  # image score of the most doubtful image: see `feedback.find_boundary`
    map_rule: dict[str, Any] = field(default_factory=dict)
    baseline: dict[str, float] = field(default_factory=dict)  # see `SetBaseline`; empty: not used
    set_scores: dict[str, Any] = field(default_factory=dict)  # `SetScores`; empty: too few images
    seconds: dict[str, float] = field(default_factory=dict)
    predicted_seconds: dict[str, float] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    duplicates: list[list[str]] = field(default_factory=list)  # paths of files of equal content
    # Paths of images that the method takes for the same, of which one would hide another's defect.
    near_duplicates: list[list[str]] = field(default_factory=list)
    labels: dict[str, Label] = field(default_factory=dict)  # of paths
    flagging: dict[str, Any] = field(default_factory=dict)  # how it was asked for
    roi_sha256: str = ""  # of the masks that were named
    removed: list[str] = field(default_factory=list)  # paths that updates took out of the set

    @property
    def of_set(self) -> SetScores | None:
        """What the image scores are like; None: too few images to say."""
        return SetScores(**self.set_scores) if self.set_scores else None

    def probabilities(self, scores: Scores) -> list[float | None]:
        """Say how probable it is that images with these scores [n] are anomalous; None: not known.

        With the four decimal places of scores.csv.
        """
        if self.of_set is None:
            return [None] * len(scores)
        found: list[float | None] = find_probabilities(scores, self.of_set).round(4).tolist()
        return found


@dataclass
class _Backbone:
    """The field `backbone` of a finished run."""

    name: str
    weights: str
    sha256: str
    channels: list[Size]
    strides: list[Size]


@dataclass
class _MapRule:
    """The field `map_rule`."""

    frame: Size | None = None
    native_from: Size | None = None
    sigma: float | None = None
    steps: str = ""


_IMAGES = TypeAdapter(list[ImageRecord])
_SKIPPED = TypeAdapter(list[Skipped])
_INFO = TypeAdapter(RunInfo)
_PARTS: dict[str, TypeAdapter[Any]] = {
    "settings": TypeAdapter(Settings),
    "backbone": TypeAdapter(_Backbone),
    "map_rule": TypeAdapter(_MapRule),
    "baseline": TypeAdapter(SetBaseline),
    "set_scores": TypeAdapter(SetScores),
    "threshold": TypeAdapter(Threshold),
    "flagging": TypeAdapter(Flagging),
}


def parse(value: Any) -> tuple[RunInfo, list[ImageRecord], list[Skipped]]:
    """Check the JSON value of a run.json. Raises ValueError, of one line, if it is damaged."""
    if not isinstance(value, dict):
        raise ValueError("not an object")
    rest = dict(value)
    images = _check("images", _IMAGES, rest.pop("images", None))
    skipped = _check("skipped", _SKIPPED, rest.pop("skipped", None))
    info = _check("", _INFO, rest)
    for name, part in _PARTS.items():
        given = getattr(info, name)
        if given or (info.state != "running" and name not in ("baseline", "set_scores")):
            setattr(info, name, _check_part(name, part, given))
    _check_settings(info.settings)
    if info.state != "running" and not images:
        raise ValueError("images: none")
    for name in ("id", "path"):
        if len({getattr(image, name) for image in images}) < len(images):
            raise ValueError(f"two images have the same {name}")
    return info, images, skipped


def _check(name: str, part: TypeAdapter[Any], value: Any, **rules: Any) -> Any:
    """Convert a value to its type. Raises ValueError that says in one line where it is wrong."""
    try:
        return part.validate_python(value, **rules)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, (name, *first["loc"]) if name else first["loc"]))
        words = f"{where}: {first['msg']}" if where else first["msg"]
    except PatchclusterError as error:  # of a value that a user may give elsewhere
        words = f"{name}: {error}"
    raise ValueError(" ".join(words.split()))


def _check_part(name: str, part: TypeAdapter[Any], given: dict[str, Any]) -> dict[str, Any]:
    """Check the fields that are given of a part; return them as JSON has them."""
    found = part.dump_python(_check(name, part, given, extra="forbid"), mode="json")
    return {key: found[key] for key in given}


def _check_settings(given: dict[str, Any]) -> None:
    missing = [one.name for one in dataclasses.fields(Settings) if one.name not in given]
    if missing:
        raise ValueError(f"settings.{missing[0]}: missing")
    try:
        resolve(**given)
    except SettingError as error:
        raise ValueError(f"settings: {error}") from error
