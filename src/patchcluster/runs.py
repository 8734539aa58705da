"""The run folder: the only file that knows its layout.

RUN/
  run.json               what was asked and found; "state" is "running" or "complete"
  scores.csv             rank,path,score,percentile,flagged,regions,nearest
  regions.csv            path,region,x,y,width,height,area,peak,group
  maps/000012.npy        float16 [h, w]: the score grid of the image with that id
  thumbnails/000012.jpg
  neighbours.safetensors what each patch was compared with
  bank.safetensors       the fitted methods, one a network size
  report.html
  .work/                 a scan in progress: features and comparisons, removed at its end
"""

import csv
import dataclasses
import functools
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import maps, storage
from .errors import InputError, RunError
from .maps import Floats, Region
from .thresholds import Threshold

FORMAT = 1
RUN_FILE = "run.json"
SCORES_FILE = "scores.csv"
REGIONS_FILE = "regions.csv"
NEIGHBOURS_FILE = "neighbours.safetensors"
BANK_FILE = "bank.safetensors"
REPORT_FILE = "report.html"
WORK_FOLDER = ".work"

SCORES_HEADER = ["rank", "path", "score", "percentile", "flagged", "regions", "nearest"]
REGIONS_HEADER = ["path", "region", "x", "y", "width", "height", "area", "peak", "group"]


@dataclass(frozen=True)
class ImageRecord:
    """One scored image. `id` names its files in the run; sizes are as shown, in pixels."""

    id: int
    path: str
    sha256: str
    bytes: int
    width: int
    height: int


@dataclass(frozen=True)
class Skipped:
    """A file that got no score, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Neighbour:
    """A place in another image that a place was compared with; x, y are its centre in pixels."""

    path: str
    x: float
    y: float
    distance: float


@dataclass
class RunInfo:
    """What run.json holds beside the images."""

    inputs: list[str]
    settings: dict[str, Any]
    version: str
    format: int = FORMAT
    state: str = "running"
    started: str = ""
    finished: str = ""
    backbone: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    device: str = ""
    deep_range: dict[str, list[float]] = field(default_factory=dict)
    threshold: dict[str, Any] = field(default_factory=dict)
    map_rule: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    duplicates: list[list[str]] = field(default_factory=list)


@dataclass(frozen=True)
class Result:
    """What a scan found out about one file."""

    record: ImageRecord
    content: int  # index of its content in the set; copies share it
    score: float
    flagged: bool
    regions: list[Region]
    nearest: str  # path of the image that its most anomalous patch is nearest to


def is_run(folder: Path) -> bool:
    """Whether a folder is (or was about to become) a run."""
    return (folder / RUN_FILE).is_file() and (
        (folder / "maps").is_dir() or (folder / WORK_FOLDER).is_dir()
    )


def map_path(folder: Path, image_id: int) -> Path:
    return folder / "maps" / f"{image_id:06d}.npy"


def thumbnail_path(folder: Path, image_id: int) -> Path:
    return folder / "thumbnails" / f"{image_id:06d}.jpg"


def batch_paths(folder: Path) -> list[Path]:
    return sorted((folder / WORK_FOLDER).glob("features-*.safetensors"))


def batch_path(folder: Path, batch: int) -> Path:
    return folder / WORK_FOLDER / f"features-{batch:06d}.safetensors"


def comparison_path(folder: Path, size: int, batch: int) -> Path:
    return folder / WORK_FOLDER / f"comparison-{size}-{batch:06d}.safetensors"


def fitted_path(folder: Path, size: int) -> Path:
    return folder / WORK_FOLDER / f"fitted-{size}.safetensors"


# --- write --------------------------------------------------------------------------------------


def write_info(
    folder: Path, info: RunInfo, images: Sequence[ImageRecord], skipped: Sequence[Skipped]
) -> None:
    """Write run.json."""
    value = dataclasses.asdict(info)
    value["images"] = [dataclasses.asdict(image) for image in images]
    value["skipped"] = [dataclasses.asdict(skip) for skip in skipped]
    storage.write_json(folder / RUN_FILE, value)


def write_map(folder: Path, image_id: int, grid: Floats) -> None:
    """Write one score grid [h, w] as float16."""
    buffer = io.BytesIO()
    np.save(buffer, grid.astype(np.float16), allow_pickle=False)
    storage.write_bytes(map_path(folder, image_id), buffer.getvalue(), durable=False)


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file in UTF-8; file names that are not valid UTF-8 keep their bytes."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    storage.write_bytes(path, text.getvalue().encode("utf-8", "surrogateescape"))


def write_scores(folder: Path, results: Sequence[Result]) -> None:
    """Write scores.csv, most anomalous first.

    The percentile is the share of the other images that score lower, in %.
    """
    scores = np.array([result.score for result in results])
    order = rank(scores)
    ascending = np.sort(scores)
    lower = np.searchsorted(ascending, scores) / max(1, len(scores) - 1) * 100
    rows = []
    for place, i in enumerate(order, start=1):
        result = results[i]
        flag = "true" if result.flagged else "false"
        score, percentile = f"{result.score:.9g}", f"{lower[i]:.2f}"
        rows.append(
            [
                place,
                result.record.path,
                score,
                percentile,
                flag,
                len(result.regions),
                result.nearest,
            ]
        )
    write_table(folder / SCORES_FILE, SCORES_HEADER, rows)


def write_regions(folder: Path, results: Sequence[Result]) -> None:
    """Write regions.csv, images in input order, each image's highest peak first."""
    rows = [
        [result.record.path, n, r.x, r.y, r.width, r.height, r.area, f"{r.peak:.9g}", ""]
        for result in results
        for n, r in enumerate(result.regions, start=1)
    ]
    write_table(folder / REGIONS_FILE, REGIONS_HEADER, rows)


def write_neighbours(
    folder: Path, results: Sequence[Result], explanations: Sequence[Any], ids: Sequence[int]
) -> None:
    """Write what each patch of each image was compared with.

    explanations: one a content, see `comparing.Explanations`; ids: the image id of each content.
    """
    parts = [explanations[result.content] for result in results]
    counts = torch.tensor([0, *(len(part.patch) for part in parts)])
    image = torch.cat([part.image for part in parts]).long()
    storage.write_tensors(
        folder / NEIGHBOURS_FILE,
        {
            "ids": torch.tensor([result.record.id for result in results]),
            "offsets": counts.cumsum(0),
            "image": torch.tensor(ids)[image].int(),
            "patch": torch.cat([part.patch for part in parts]),
            "distance": torch.cat([part.distance for part in parts]).half(),
        },
    )


def write_bank(folder: Path, states: Mapping[int, Mapping[str, Tensor]]) -> None:
    """Write the fitted methods, one a network size, as tensors named SIZE.NAME."""
    tensors = {f"{size}.{name}": t for size, state in states.items() for name, t in state.items()}
    storage.write_tensors(folder / BANK_FILE, tensors)


def clear(folder: Path) -> None:
    """Remove what a scan writes, and nothing else, from a folder."""
    for name in (RUN_FILE, SCORES_FILE, REGIONS_FILE, NEIGHBOURS_FILE, BANK_FILE, REPORT_FILE):
        (folder / name).unlink(missing_ok=True)
    for name in ("maps", "thumbnails", WORK_FOLDER):
        storage.remove(folder / name)


# --- read ---------------------------------------------------------------------------------------


def load_run(folder: str | Path) -> "Run":
    """Open a finished run. Raises RunError if it is missing, unfinished, damaged or too new."""
    return Run(Path(folder))


def check_output(folder: Path, overwrite: bool) -> None:
    """Raise RunError if a scan must not write into a folder."""
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{str(folder)!r} is a file: choose a folder for the run with -o")
    if not folder.is_dir() or is_run(folder):
        return
    others = sorted(path.name for path in folder.iterdir() if path.name != ".lock")
    if others:
        advice = "choose another -o" if overwrite else "choose a new or empty folder with -o"
        raise RunError(f"{str(folder)!r} holds other files ({', '.join(others[:3])}): {advice}")


def read_earlier(folder: Path, info: RunInfo) -> RunInfo | None:
    """What run.json says if the folder holds a scan of the same, finished or not; None if empty.

    Raises RunError if it holds a scan of something else.
    """
    if not (folder / RUN_FILE).is_file():
        return None
    value = storage.read_json(folder / RUN_FILE)
    asked = json.loads(json.dumps([info.inputs, info.settings]))  # tuples become lists
    if [value.get("inputs"), value.get("settings")] != asked:
        raise RunError(
            f"{str(folder)!r} holds a scan of other inputs or settings: choose another -o, or add "
            "--overwrite"
        )
    del value["images"], value["skipped"]
    return RunInfo(**value)


class Run:
    """A finished run.

    Attributes, all in input order: `paths` (as the user gave them), `scores` float64 [n], `flagged`
    bool [n], `images`. `ranking` int64 [n] orders them from most to least anomalous:
    `run.paths[i] for i in run.ranking`. `skipped` lists the files without a score, `threshold` says
    which scores are flagged and why, `info` is the rest of run.json.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / RUN_FILE).is_file():
            raise RunError(f"{str(folder)!r} is not a run: name the folder that scan -o wrote")
        self.folder = folder
        value = storage.read_json(folder / RUN_FILE)
        try:
            if value["format"] > FORMAT:
                raise RunError(f"{str(folder)!r} is of a newer patchcluster: upgrade to read it")
            if value["state"] != "complete":
                raise RunError(
                    f"the scan of {str(folder)!r} is not finished: run the same scan again, it "
                    "resumes"
                )
            self.images = [ImageRecord(**image) for image in value.pop("images")]
            self.skipped = [Skipped(**skip) for skip in value.pop("skipped")]
            self.info = RunInfo(**value)
            self.threshold = Threshold(**self.info.threshold)
            rows = {row["path"]: row for row in self._read_table(SCORES_FILE)}
            self.paths = [image.path for image in self.images]
            self.scores = np.array([float(rows[path]["score"]) for path in self.paths])
            self.flagged = np.array([rows[path]["flagged"] == "true" for path in self.paths])
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(f"{str(folder)!r} is damaged ({error!r}): scan again") from error
        self.ranking = rank(self.scores)

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return f"<Run {str(self.folder)!r}: {len(self)} images, {self.flagged.sum()} flagged>"

    def index(self, path: str) -> int:
        """Position in `paths` of an image: its path as given, or the end of it if only one fits.

        Raises InputError if none or several fit.
        """
        if path in self._positions:
            return self._positions[path]
        tail = "/" + str(path).replace("\\", "/").lstrip("/")
        fitting = [i for i, p in enumerate(self.paths) if p.replace("\\", "/").endswith(tail)]
        if len(fitting) == 1:
            return fitting[0]
        what = f"fits {len(fitting)} images" if fitting else "is not in this run"
        raise InputError(f"{path!r} {what}: name one of run.paths")

    def grid(self, path: str) -> Floats:
        """Score grid float32 [h, w] of one image, one score a patch."""
        file = map_path(self.folder, self.images[self.index(path)].id)
        try:
            values: Floats = np.load(file, allow_pickle=False).astype(np.float32)
        except (OSError, ValueError) as error:
            raise RunError(f"cannot read {str(file)!r} ({error}): scan again") from error
        return values

    def frame_map(self, path: str) -> Floats:
        """Smoothed map float32 [h', w'] on its frame, before it is brought to the image."""
        image = self.images[self.index(path)]
        return maps.smooth(self.grid(path), self.info.settings["frame"], image.width, image.height)

    def map(self, path: str) -> Floats:
        """Anomaly map float32 [height, width] of the original image; larger is more anomalous."""
        image = self.images[self.index(path)]
        return maps.to_image(self.frame_map(path), image.width, image.height)

    def regions(self, path: str) -> list[Region]:
        """Anomalous regions of one image, highest peak first, in pixels of the original."""
        return self._regions.get(self.paths[self.index(path)], [])

    def neighbours(self, path: str, x: float, y: float) -> list[Neighbour]:
        """The places in other images that the place at pixel (x, y) was compared with.

        Nearest first, from different images where the method compares image by image: what the
        place should have looked like. Raises InputError if (x, y) lies outside the image.
        """
        image = self.images[self.index(path)]
        if not (0 <= x < image.width and 0 <= y < image.height):
            raise InputError(
                f"({x}, {y}) lies outside {path!r}, which is {image.width} x {image.height} pixels"
            )
        height, width = self._patch_grid_shape(image.id)
        row = min(height - 1, int(y * height / image.height))
        column = min(width - 1, int(x * width / image.width))
        others, patches, distances = self._neighbour_rows(image.id, row * width + column)
        return [
            self._neighbour(int(other), int(patch), float(distance))
            for other, patch, distance in zip(others, patches, distances, strict=True)
        ]

    def _neighbour(self, image_id: int, patch: int, distance: float) -> Neighbour:
        image = self._by_id[image_id]
        height, width = self._patch_grid_shape(image_id)
        row, column = divmod(patch, width)
        x, y = (column + 0.5) * image.width / width, (row + 0.5) * image.height / height
        return Neighbour(image.path, x, y, distance)

    def _neighbour_rows(self, image_id: int, patch: int) -> Iterator[Any]:
        tensors = self._neighbour_tensors
        position = int(torch.searchsorted(tensors["ids"], image_id))
        at = int(tensors["offsets"][position]) + patch
        return (tensors[name][at] for name in ("image", "patch", "distance"))

    def _patch_grid_shape(self, image_id: int) -> tuple[int, int]:
        image = self._by_id[image_id]
        grid = np.load(map_path(self.folder, image.id), mmap_mode="r", allow_pickle=False)
        return grid.shape[0], grid.shape[1]

    @functools.cached_property
    def _positions(self) -> dict[str, int]:
        return {path: i for i, path in enumerate(self.paths)}

    @functools.cached_property
    def _by_id(self) -> dict[int, ImageRecord]:
        return {image.id: image for image in self.images}

    @functools.cached_property
    def _neighbour_tensors(self) -> dict[str, Tensor]:
        return storage.read_tensors(self.folder / NEIGHBOURS_FILE)[0]

    @functools.cached_property
    def _regions(self) -> dict[str, list[Region]]:
        regions: dict[str, list[Region]] = {}
        for row in self._read_table(REGIONS_FILE):
            x, y, width, height, area = (
                int(row[name]) for name in ("x", "y", "width", "height", "area")
            )
            region = Region(x, y, width, height, area, float(row["peak"]))
            regions.setdefault(row["path"], []).append(region)
        return regions

    def _read_table(self, name: str) -> list[dict[str, str]]:
        try:
            with open(
                self.folder / name, encoding="utf-8", errors="surrogateescape", newline=""
            ) as file:
                return list(csv.DictReader(file))
        except OSError as error:
            raise RunError(
                f"cannot read {str(self.folder / name)!r} ({error}): scan again"
            ) from error


def rank(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """Indices [n] from the largest score to the smallest; equal scores in input order."""
    return np.argsort(-scores, kind="stable")
