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
from ..images.inputs import PathFinder, find_images, hash_file, is_url, local_path, natural_key
from ..network.backbones import Backbone, take_stages
from ..network.patches import block_side
from ..runs import runfolder
from ..runs.info import ImageRecord, Skipped
from ..runs.run import Run, hold_run
from ..runs.storage import write_tensors
from ..settings import Settings
from . import costs
from .costs import Limits
from .extract import input_shapes
from .extraction import Extracted, patches_name
from .image_set import ImageSet
from .job import Job, Progress, describe_versions
from .patch_files import Loaded, load_batches
from .planning import Network, Planner, check_sizes
from .reflagging import load_bank
from .rescoring import finish_held
from .steps import compare_all, extract_all, join_images, keep_masks, replace_results
from .survey import Candidate, Regions, area_inside, make_batches, survey_files, take_regions

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
            info = dataclasses.replace(found.info, seconds={}, predicted_seconds={}, memory={})
            job = Job(folder, info, step, tell)
            change_set(job, found, change, Limits.of(max_memory, since))
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


def change_set(job: Job, before: Run, change: Change, limits: Limits) -> None:
    """Make a finished run one of another set, for who holds it.

    job: on the run's record, without what was measured for it.
    """
    info, folder = job.info, job.folder
    surveyed = _survey_change(job, before, change)
    planner, added = surveyed.planner, surveyed.added
    info.memory["predicted"] = planner.check(limits.memory)
    memory = costs.format_bytes(info.memory["predicted"])
    job.tell(
        f"{len(added)} images to add, {len(change.gone)} to remove: "
        f"{len(planner.candidates)} in all; about {memory} of memory"
    )
    keep_masks(job, planner.regions)
    with job.workers() as workers:
        extracted = Extracted([], {})
        if surveyed.backbone is not None and added:
            extracted = extract_all(job, surveyed.backbone, added, workers)
        every = sorted([*change.kept, *extracted.images], key=lambda one: natural_key(one.path))
        image_set = join_images(job, every)
        _open_bank(job, before, change.kept, len(make_batches(added)))
        side = block_side(planner.backbone.strides, job.settings.layout)
        load = functools.partial(load_batches, folder, image_set, side)
        paths = {image.path for image in every}
        info.removed = sorted({*info.removed, *change.gone} - paths, key=natural_key)
        info.labels = {p: label for p, label in info.labels.items() if p in paths}
        info.inputs += [item for item in change.inputs if item not in info.inputs]
        compared = compare_all(job, image_set, load, planner.device, workers)
    skips = [*change.skipped, *surveyed.skipped, *extracted.skipped.values()]
    skips.sort(key=lambda skip: natural_key(skip.path))
    replace_results(job, image_set, compared, every, skips)


@dataclass(frozen=True)
class _Surveyed:
    """A change once the headers of what is added are read. backbone: None if nothing is."""

    planner: Planner
    backbone: Backbone | None
    added: list[Candidate]
    skipped: list[Skipped]


def _survey_change(job: Job, before: Run, change: Change) -> _Surveyed:
    """Read the headers of what is added; what can be refused without work is refused."""
    job.begin()
    settings = job.settings
    backbone, network = _find_network(job, before, change)
    with job.timed("survey"):
        found, unread = survey_files(
            change.files, settings, network.strides, job.threads, job.step("survey")
        )
        first = 1 + max(image.id for image in before.images)
        found = [dataclasses.replace(one, id=first + one.id) for one in found]
        regions = Regions()
        if settings.roi is not None:
            _check_mask(job, settings.roi)
            regions = take_regions(found, settings.roi)
            found = regions.candidates
        _check_depths(job, before, change.kept, [one.header for one in found])
    kept = [_as_candidate(image, settings, network.strides) for image in change.kept]
    every = [*kept, *found]
    if every:
        check_sizes(every, settings.method)
    describe_versions(job.info, settings)
    memory = costs.resident_memory()
    all_regions = _join_regions(job, regions, kept, change.kept)
    planner = Planner(every, all_regions, settings, network, job.threads, memory)
    return _Surveyed(planner, backbone, found, [*unread.values(), *regions.skipped.values()])


def _find_network(job: Job, before: Run, change: Change) -> tuple[Backbone | None, Network]:
    """Load the network if there are images for it; and what a plan needs of it."""
    recorded = before.info.backbone
    if not change.files:
        wanted, device = job.settings.strides, job.devices[0]
        return None, _Recorded(wanted, recorded["channels"], recorded["strides"], device)
    backbone = job.load_network()
    if backbone.weights_hash != recorded["sha256"]:
        raise RunError(
            f"the weights of {backbone.name} are not those that {str(job.folder)!r} was "
            "scanned with: scan again"
        )
    return backbone, backbone


def _check_mask(job: Job, masks: str) -> None:
    """Raise RunError if the one mask of all images has changed; a folder of masks may grow."""
    found = roi.hash_masks(masks)
    if os.path.isfile(masks) and found != job.info.roi_sha256:
        raise RunError(
            f"the mask {masks!r} has changed since {str(job.folder)!r} was scanned: scan again"
        )
    job.info.roi_sha256 = found


def _check_depths(
    job: Job, before: Run, kept: Sequence[ImageRecord], added: Sequence[Header]
) -> None:
    """Raise RunError if the scale of deep images would be another one for this set."""
    known = job.info.deep_range
    if not known and all(header.depth == "byte" for header in added):
        return
    paths, strides = [image.path for image in kept], before.info.backbone["strides"]
    there, unread = survey_files(paths, job.settings, strides, job.threads, lambda *_: None)
    for skip in unread.values():
        raise RunError(
            f"{skip.path!r} cannot be read ({skip.reason}), and images of more than 8 bits "
            "need the scale of all: scan again"
        )
    if deep_range([*(one.header for one in there), *added]) != known:
        raise RunError(
            "images of more than 8 bits would be scaled in another way with this set: scan again"
        )


def _as_candidate(image: ImageRecord, settings: Settings, strides: Sequence[int]) -> Candidate:
    header = Header(image.width, image.height, "byte")
    inputs = input_shapes(image.width, image.height, settings, strides)
    return Candidate(image.id, image.path, header, [image.bytes, 0], inputs, image.roi)


def _join_regions(
    job: Job, added: Regions, kept: Sequence[Candidate], images: Sequence[ImageRecord]
) -> Regions:
    """Join the masks of what is added with those of the images that stay, for the plan."""
    areas = dict(added.areas)
    for candidate, image in zip(kept, images, strict=True):
        mask = runfolder.read_mask_of(job.folder, image)
        if mask is not None:
            areas[image.id] = [area_inside(mask, shape) for shape in candidate.inputs]
    return dataclasses.replace(added, candidates=[*kept, *added.candidates], areas=areas)


def _open_bank(job: Job, before: Run, kept: Sequence[ImageRecord], first: int) -> None:
    """Write patches that only the bank has to files like those of a scan, from a number on."""
    if runfolder.kept_paths(job.folder):
        return
    records = ImageSet.of(before.images)
    loaded = {size: load_bank(before, records, size) for size in job.settings.size}
    wanted = {image.id for image in kept}
    contents = list(records.records.values())
    places = [i for i, copies in enumerate(contents) if any(c.id in wanted for c in copies)]
    for start in range(0, len(places), _AT_A_TIME):
        tensors = {
            patches_name(size, one.id): _unpacked(patches, i)
            for size, patches in loaded.items()
            if patches is not None  # or `load_batches` says what is missing
            for i in places[start : start + _AT_A_TIME]
            for one in contents[i]
        }
        write_tensors(runfolder.batch_path(job.folder, first + start), tensors)


def _unpacked(loaded: Loaded, image: int) -> torch.Tensor:
    """Patches [h, w, c] of an image; 0 outside its mask, where nobody looks."""
    grids, packings = loaded
    grid: torch.Tensor = grids[image]
    packing = packings[image]
    if packing is None:
        return grid
    rows = packing.unpack_rows(grid.flatten(0, 1).float()).nan_to_num(0)
    return rows.half().view(*packing.shape, -1)
