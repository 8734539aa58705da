"""A finished run with images added or removed: patches that it has are not made again."""

import dataclasses
import fnmatch
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch

from ..errors import InputError, RunError
from ..images.decode import Header
from ..images.finding import find_images
from ..images.inputs import PathFinder, hash_file, is_url, local_path, natural_key
from ..images.masks import hash_masks
from ..images.window import choose_windows
from ..network.backbones import Backbone
from ..runs import runfolder
from ..runs.info import ImageRecord, Skipped
from ..runs.run import Run, hold_run
from ..runs.storage import write_tensors
from .comparing import compare_all
from .costs import Planner, format_bytes, parse_limit
from .extraction import extract_all, make_batches, patches_name
from .flagging import finish_held
from .image_set import ImageSet, join_images
from .job import Job, Progress, describe_versions
from .loading import Loaded, load_bank
from .results import replace_results
from .sources import Paths, list_paths
from .survey import (
    Candidate,
    Survey,
    check_sizes,
    input_shapes,
    keep_masks,
    read_headers,
    share_inside,
    survey_files,
    tell_several,
)

_AT_A_TIME = 8  # images a file of patches that were in the bank


def update(
    run: Run | str | os.PathLike[str],
    *,
    add: Paths = (),
    remove: str | Sequence[str] = (),
    max_memory: int | str | None = None,
    progress: Progress | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Run:
    """Change the set of a finished run; scores equal those of a fresh scan of the same set.

    run: or its folder. add: folders, files, globs or fsspec URLs; a file that the run has is
    left as it is, unless its content has changed. remove: paths as the run has them, or the end of
    one if only one fits, or patterns with * ? [. Only the added images go through the network;
    those that are removed leave no patches behind. Labels of the others stay. An interruption
    before the new scores are there leaves the old ones; the same call goes on where it stopped.
    max_memory, progress and tell: as in `scan`.

    Raises InputError, SettingError, WeightsError or RunError.
    """
    folder = run.folder if isinstance(run, Run) else local_path(run)
    step, limit = progress or (lambda *_: None), parse_limit(max_memory)
    with hold_run(folder):
        finish_held(folder, step)  # an earlier change
        before = Run(folder)
        change = find_change(before, list_paths(add), list_paths(remove), tell)
        if change.files or change.gone:
            info = dataclasses.replace(before.info, seconds={}, predicted_seconds={}, memory={})
            change_set(Job(folder, info, step, tell, max_memory=limit), before, change)
    return Run(folder)


@dataclass(frozen=True)
class Change:
    """The images that a run keeps, adds and removes, in input order."""

    inputs: list[str]  # that were named
    kept: list[ImageRecord]
    skipped: list[Skipped]  # of those that the run knows
    files: list[str]  # to be added
    gone: list[str]  # paths of images that are removed


def find_change(
    run: Run, add: Sequence[str], remove: Sequence[str], tell: Callable[[str], None]
) -> Change:
    """Find the images to add and remove. Raises InputError if one of them does not exist."""
    known = [*run.paths, *(skip.path for skip in run.skipped)]
    gone = {path for name in remove for path in _matching(name, known, run.info.removed)}
    records = {_absolute(image.path): image for image in run.images}
    files = []
    for file in find_images(add, runfolder.is_run, runfolder.find_runs, tell) if add else []:
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


def change_set(job: Job, before: Run, change: Change) -> None:
    """Replace the images of a finished run; the caller holds its lock.

    job: on the run's record, without what was measured for it.
    """
    info, folder = job.info, job.folder
    backbone, added = _survey_change(job, before, change)
    tell_several(added.candidates, job.tell)
    candidates = [*(_as_candidate(job, image) for image in change.kept), *added.candidates]
    check_sizes(candidates, job.settings.method)
    info.memory["predicted"] = Planner.of(job, candidates).check(job.max_memory)
    job.tell(
        f"{len(added.candidates)} images to add, {len(change.gone)} to remove: "
        f"{len(candidates)} in all; about {format_bytes(info.memory['predicted'])} of memory"
    )
    keep_masks(folder, added.masks)
    with job.workers() as workers:
        images: list[ImageRecord] = []
        unreadable: dict[int, Skipped] = {}
        if backbone is not None and added.candidates:
            images, unreadable = extract_all(job, backbone, added.candidates, workers)
        every = sorted([*change.kept, *images], key=lambda one: natural_key(one.path))
        image_set = join_images(every, info)
        _open_bank(job, before, change.kept, len(make_batches(added.candidates)))
        paths = {image.path for image in every}
        info.removed = sorted({*info.removed, *change.gone} - paths, key=natural_key)
        info.labels = {p: label for p, label in info.labels.items() if p in paths}
        info.inputs += [item for item in change.inputs if item not in info.inputs]
        compared = compare_all(job, image_set, workers)
    skips = [*change.skipped, *added.skipped.values(), *unreadable.values()]
    skips.sort(key=lambda skip: natural_key(skip.path))
    replace_results(job, image_set, compared, every, skips)


def _survey_change(job: Job, before: Run, change: Change) -> tuple[Backbone | None, Survey]:
    """Read the headers of what is added, and load the network if there are images for it.

    What can be refused without work is refused.
    """
    job.begin()
    settings, recorded, backbone = job.settings, before.info.backbone, None
    if change.files:
        backbone = job.load_network()
        if backbone.weights_hash != recorded["sha256"]:
            raise RunError(
                f"the weights of {backbone.name} are not those that {str(job.folder)!r} was "
                "scanned with: scan again"
            )
    if settings.roi is not None:
        _check_mask(job, settings.roi)
    with job.timed("survey"):
        added = survey_files(
            change.files,
            settings,
            recorded["strides"],
            job.threads,
            job.step("survey"),
            first=1 + max(image.id for image in before.images),
        )
        _check_windows(job, change.kept, [one.header for one in added.candidates])
    describe_versions(job)
    return backbone, added


def _check_mask(job: Job, masks: str) -> None:
    """Raise RunError if the one mask of all images has changed; a folder of masks may grow."""
    found = hash_masks(masks)
    if os.path.isfile(masks) and found != job.info.roi_sha256:
        raise RunError(
            f"the mask {masks!r} has changed since {str(job.folder)!r} was scanned: scan again"
        )
    job.info.roi_sha256 = found


def _check_windows(job: Job, kept: Sequence[ImageRecord], added: Sequence[Header]) -> None:
    """Raise RunError if the window of deep images would be another one for this set."""
    known, given = job.info.windows, job.settings.window
    if given is not None:
        known |= choose_windows((header.spread for header in added), given)
        return
    if not known and all(header.depth == "byte" for header in added):
        return
    headers, paths = list(added), [image.path for image in kept]
    found_headers = read_headers(paths, job.settings.max_pixels, job.threads)
    for path, found in zip(paths, found_headers, strict=True):
        if isinstance(found, str):
            raise RunError(
                f"{path!r} cannot be read ({found}), and images of more than 8 bits need the "
                "window of all: scan again"
            )
        headers.append(found[0])
    if choose_windows(header.spread for header in headers) != known:
        raise RunError(
            "images of more than 8 bits would have another window with this set: scan again, with "
            "--window to choose one that stays"
        )


def _as_candidate(job: Job, image: ImageRecord) -> Candidate:
    """An image of the run as the survey would find it, as far as a plan needs it."""
    header = Header(image.width, image.height)
    strides = job.info.backbone["strides"]
    inputs = input_shapes(image.width, image.height, job.settings, strides)
    mask = runfolder.read_mask_of(job.folder, image)
    share = 1.0 if mask is None else share_inside(mask, inputs[0])
    return Candidate(image.id, image.path, header, [image.bytes, 0], inputs, image.roi, share)


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
            if patches is not None  # or `load_patches` says what is missing
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
