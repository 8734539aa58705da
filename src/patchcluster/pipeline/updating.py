"""A finished run with images added or removed: patches that it has are not made again."""

import dataclasses
import fnmatch
import functools
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch

from ..errors import InputError, RunError
from ..images import roi
from ..images.decode import Header, deep_range
from ..images.inputs import (
    PathFinder,
    find_images,
    hash_file,
    is_url,
    local_path,
    natural_key,
)
from ..images.masks import read_mask_file
from ..network.backbones import take_stages
from ..network.patches import block_side
from ..runs import runfolder
from ..runs.info import ImageRecord, Skipped
from ..runs.run import Run, hold_run
from ..runs.storage import write_tensors
from . import costs
from .comparing import ImageSet, Loaded, load_batches
from .extract import input_shapes
from .extraction import (
    Candidate,
    Extracted,
    Regions,
    area_inside,
    make_batches,
    patches_name,
    survey_files,
    take_regions,
)
from .finishing import name_near_duplicates
from .planning import Network, Planner, check_sizes
from .reflagging import load_bank
from .scanning import Limits, Progress, Scan, finish_held

_AT_A_TIME = 8  # images a file of patches that were in the bank

Inputs = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def update(
    run: Run | str | os.PathLike[str],
    *,
    add: Inputs = (),
    remove: str | Sequence[str] = (),
    max_memory: int | str | None = None,
    since: float | None = None,
    progress: Progress | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Run:
    """Change the set of a finished run; scores equal those of a fresh scan of the same set.

    run: or its folder. add: folders, files, globs or fsspec URLs; a file that the run has is
    left as it is, unless its content has changed. remove: paths as the run has them, or the end of
    one if only one fits, or patterns with * ? [. Only the added images go through the network;
    those that are removed leave no patches behind. Labels of the others stay. An interruption
    before the new scores are there leaves the old ones; the same call goes on where it stopped.
    max_memory, since, progress and tell: as in `scan`.

    Raises InputError, SettingError, WeightsError or RunError.
    """
    folder = run.folder if isinstance(run, Run) else local_path(run)
    step = progress or (lambda *_: None)
    with hold_run(folder):
        found = Run(folder, half_changed=True)
        if found.info.state != "complete":  # an earlier change
            finish_held(folder, step)
            found = Run(folder)
        change = find_change(found, _listed(add), _listed(remove))
        if change.files or change.gone:
            limits = Limits.of(max_memory, since)
            Update(found, limits, step, tell).run_change(change)
        return Run(folder)


def _listed(items: Inputs) -> list[str]:
    if isinstance(items, str | os.PathLike):
        items = [items]
    return [os.fspath(item) for item in items]


@dataclass(frozen=True)
class Change:
    """What becomes of the images of a run; in input order."""

    inputs: list[str]  # that were named
    kept: list[ImageRecord]
    skipped: list[Skipped]  # of those that the run knows
    files: list[str]  # to be added
    gone: list[str]  # paths of images that are removed


def find_change(run: Run, add: Sequence[str], remove: Sequence[str]) -> Change:
    """What is to be done. Raises InputError if something to add or remove is not there."""
    known = [*run.paths, *(skip.path for skip in run.skipped)]
    gone = {path for name in remove for path in _matching(name, known, run.info.removed)}
    records = {_absolute(image.path): image for image in run.images}
    files = []
    for file in find_images(add, runfolder.is_run, runfolder.find_runs) if add else []:
        image = records.get(_absolute(file))
        if file in gone or (image is not None and image.path in gone):
            continue
        if image is not None and hash_file(file) == image.sha256:
            continue
        if image is not None:  # another content under the same name
            gone.add(image.path)
        files.append(file)
    again = set(files)
    kept = [image for image in run.images if image.path not in gone]
    skipped = [skip for skip in run.skipped if skip.path not in gone | again]
    left = {image.path for image in kept}
    return Change(list(add), kept, skipped, files, [p for p in run.paths if p not in left])


def _absolute(path: str) -> str:
    return path if is_url(path) else os.path.abspath(path)


def _matching(name: str, paths: Sequence[str], removed: Sequence[str]) -> list[str]:
    """The paths that a name or pattern means; none if it means some that were removed before.

    Raises InputError if it means nothing.
    """
    if name not in paths and any(character in name for character in "*?["):
        found = _fitting(name, paths)
        if not found and not _fitting(name, removed):
            raise InputError(f"no image of the run matches {name!r}: see scores.csv for its paths")
        return found
    try:
        return [paths[PathFinder(paths).find(name)]]
    except InputError:
        with suppress(InputError):
            PathFinder(removed).find(name)
            return []
        raise


def _fitting(pattern: str, paths: Sequence[str]) -> list[str]:
    return fnmatch.filter(paths, pattern) or fnmatch.filter(paths, f"*/{pattern}")


@dataclass(frozen=True)
class _Recorded:
    """The network of a run, from run.json: one that is not asked for anything need not be loaded.

    channels and strides: of the stages that stand for the strides that were wanted.
    """

    wanted: Sequence[int]
    channels: list[int]
    strides: list[int]
    device: torch.device

    def stages(self, strides: Sequence[int]) -> tuple[list[int], list[int]]:
        """As of `Backbone`."""
        return take_stages(self.wanted, self.channels, self.strides, strides)


class Update(Scan):
    """One change of the set of one run."""

    def __init__(
        self, run: Run, limits: Limits, progress: Progress, tell: Callable[[str], None]
    ) -> None:
        info = dataclasses.replace(run.info, seconds={}, predicted_seconds={}, memory={})
        super().__init__(run.folder, info, limits, progress, tell)
        self.before = run

    def run_change(self, change: Change) -> None:
        """Do what is to be done."""
        planner, added, skipped = self._survey_change(change)
        self.info.memory["predicted"] = planner.check(self.limits.memory)
        memory = costs.format_bytes(self.info.memory["predicted"])
        self.tell(
            f"{len(added)} images to add, {len(change.gone)} to remove: "
            f"{len(planner.candidates)} in all; about {memory} of memory"
        )
        for name, file in self.regions.files.items():
            runfolder.write_region(self.folder, name, read_mask_file(file))
        batches = make_batches(added)
        extracted = self._extract_batches(batches) if batches else Extracted([], {})
        every = sorted([*change.kept, *extracted.images], key=lambda one: natural_key(one.path))
        image_set = self._image_set(every)
        self._open_bank(change.kept, len(batches))
        side = block_side(planner.backbone.strides, self.settings.layout)
        load = functools.partial(load_batches, self.folder, image_set, side)
        paths = {image.path for image in every}
        gone = {*self.info.removed, *change.gone} - paths
        self.info.removed = sorted(gone, key=natural_key)
        self.info.labels = {p: label for p, label in self.info.labels.items() if p in paths}
        self.info.inputs += [item for item in change.inputs if item not in self.info.inputs]
        compared = self._compare(image_set, load, planner.device)
        self.info.near_duplicates = name_near_duplicates(image_set, compared)
        skips = [*change.skipped, *skipped, *extracted.skipped.values()]
        skips.sort(key=lambda skip: natural_key(skip.path))
        self.replace_results(image_set, compared, every, skips)

    def _survey_change(self, change: Change) -> tuple[Planner, list[Candidate], list[Skipped]]:
        """Read the headers of what is added; what can be refused without work is refused."""
        self._begin()
        backbone = self._find_network(change)
        with self._timed("survey"):
            found, unread = survey_files(
                change.files, self.settings, backbone.strides, self.threads, self._step("survey")
            )
            first = 1 + max(image.id for image in self.before.images)
            found = [dataclasses.replace(one, id=first + one.id) for one in found]
            if self.settings.roi is not None:
                self._check_mask()
                self.regions = take_regions(found, self.settings.roi)
                found = self.regions.candidates
            self._check_depths(change.kept, [one.header for one in found])
        kept = [self._as_candidate(image, backbone.strides) for image in change.kept]
        regions = self._regions_of(kept, change.kept)
        every = [*kept, *found]
        if every:
            check_sizes(every, self.settings.method)
        self._describe_versions()
        memory = costs.resident_memory()
        planner = Planner(every, regions, self.settings, backbone, self.threads, memory)
        return planner, found, [*unread.values(), *self.regions.skipped.values()]

    def _find_network(self, change: Change) -> Network:
        """What a plan needs of the network; loaded if there are images for it."""
        recorded = self.before.info.backbone
        if not change.files:
            wanted, device = self.settings.strides, self.devices[0]
            return _Recorded(wanted, recorded["channels"], recorded["strides"], device)
        self.backbone = self._load_network()
        if self.backbone.weights_hash != recorded["sha256"]:
            raise RunError(
                f"the weights of {self.backbone.name} are not those that {str(self.folder)!r} was "
                "scanned with: scan again"
            )
        return self.backbone

    def _check_mask(self) -> None:
        """Raise RunError if the one mask of all images has changed; a folder of masks may grow."""
        assert self.settings.roi is not None
        now = roi.hash_masks(self.settings.roi)
        if os.path.isfile(self.settings.roi) and now != self.info.roi_sha256:
            raise RunError(
                f"the mask {self.settings.roi!r} has changed since {str(self.folder)!r} was "
                "scanned: scan again"
            )
        self.info.roi_sha256 = now

    def _check_depths(self, kept: Sequence[ImageRecord], added: Sequence[Header]) -> None:
        """Raise RunError if the scale of deep images would be another one for this set."""
        if not self.info.deep_range and all(header.depth == "byte" for header in added):
            return
        paths = [image.path for image in kept]
        strides = self.before.info.backbone["strides"]
        there, unread = survey_files(paths, self.settings, strides, self.threads, lambda *_: None)
        for skip in unread.values():
            raise RunError(
                f"{skip.path!r} cannot be read ({skip.reason}), and images of more than 8 bits "
                "need the scale of all: scan again"
            )
        if deep_range([*(one.header for one in there), *added]) != self.info.deep_range:
            raise RunError(
                "images of more than 8 bits would be scaled in another way with this set: scan "
                "again"
            )

    def _as_candidate(self, image: ImageRecord, strides: Sequence[int]) -> Candidate:
        header = Header(image.width, image.height, "byte")
        inputs = input_shapes(image.width, image.height, self.settings, strides)
        return Candidate(image.id, image.path, header, [image.bytes, 0], inputs, image.roi)

    def _regions_of(self, kept: list[Candidate], images: Sequence[ImageRecord]) -> Regions:
        """The masks of all images, for the plan."""
        areas = dict(self.regions.areas)
        for candidate, image in zip(kept, images, strict=True):
            mask = runfolder.read_mask_of(self.folder, image)
            if mask is not None:
                areas[image.id] = [area_inside(mask, shape) for shape in candidate.inputs]
        every = [*kept, *self.regions.candidates]
        return dataclasses.replace(self.regions, candidates=every, areas=areas)

    def _open_bank(self, kept: Sequence[ImageRecord], first: int) -> None:
        """Write patches that only the bank has to files like those of a scan, from a number on."""
        if runfolder.kept_paths(self.folder):
            return
        before = ImageSet.of(self.before.images)
        loaded = {size: load_bank(self.before, before, size) for size in self.settings.size}
        wanted = {image.id for image in kept}
        contents = list(before.records.values())
        places = [i for i, copies in enumerate(contents) if any(c.id in wanted for c in copies)]
        for start in range(0, len(places), _AT_A_TIME):
            tensors = {
                patches_name(size, one.id): _unpacked(patches, i)
                for size, patches in loaded.items()
                if patches is not None  # or `load_batches` says what is missing
                for i in places[start : start + _AT_A_TIME]
                for one in contents[i]
            }
            write_tensors(runfolder.batch_path(self.folder, first + start), tensors)


def _unpacked(loaded: Loaded, image: int) -> torch.Tensor:
    """Patches [h, w, c] of an image; 0 outside its mask, where nobody looks."""
    grids, packings = loaded
    grid: torch.Tensor = grids[image]
    packing = packings[image]
    if packing is None:
        return grid
    rows = packing.unpack_rows(grid.flatten(0, 1).float()).nan_to_num(0)
    return rows.half().view(*packing.shape, -1)
