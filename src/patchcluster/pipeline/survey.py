"""Files -> what is known of them before any work: headers, masks, what the network will see."""

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import UnreadableImage
from ..images import roi
from ..images.decode import STRIDE, Header, survey
from ..images.inputs import stamp
from ..images.masks import Bools, cover, read_mask_file
from ..runs.info import Skipped
from ..settings import Settings
from .extract import input_shapes

BATCH_PIXELS = 8 * 448 * 448  # of network input, all sizes together

Done = Callable[[int, int], None]  # done, total


@dataclass(frozen=True)
class Candidate:
    """A file that the survey could read. `id` is its place among all files found."""

    id: int
    path: str
    header: Header
    stamp: list[int]
    inputs: tuple[tuple[int, int], ...]  # network input (height, width), one a network size
    roi: str = ""  # name of its mask of what is scored


@dataclass(frozen=True)
class Regions:
    """What the masks of a scan say of its candidates."""

    candidates: list[Candidate] = field(default_factory=list)  # with the names of their masks
    skipped: dict[int, Skipped] = field(default_factory=dict)  # by id: nothing of them is inside
    files: dict[str, Path] = field(default_factory=dict)  # name of a mask -> its file
    # Pixels of the network's input that are scored, by id, one a network size.
    areas: dict[int, list[int]] = field(default_factory=dict)


def survey_files(
    paths: Sequence[str], settings: Settings, strides: Sequence[int], threads: int, done: Done
) -> tuple[list[Candidate], dict[int, Skipped]]:
    """Read the headers of all files; those that cannot be read are skipped with the reason.

    strides: of the network's stages.
    """
    candidates: list[Candidate] = []
    skipped: dict[int, Skipped] = {}
    with ThreadPoolExecutor(threads, "survey") as pool:
        for i, (path, found) in enumerate(zip(paths, pool.map(_survey, paths), strict=True)):
            if isinstance(found, str):
                skipped[i] = Skipped(path, found)
            else:
                header, mark = found
                inputs = input_shapes(header.width, header.height, settings, strides)
                candidates.append(Candidate(i, path, header, mark, inputs))
            done(i + 1, len(paths))
    return candidates, skipped


def _survey(path: str) -> tuple[Header, list[int]] | str:
    try:
        return survey(path), stamp(path)
    except UnreadableImage as error:
        return str(error)


def at_sizes(
    candidates: Sequence[Candidate], regions: Regions, settings: Settings, strides: Sequence[int]
) -> tuple[list[Candidate], Regions]:
    """The same files at other network sizes; what masks leave of them keeps its share."""
    resized, areas = [], {}
    for candidate in candidates:
        header = candidate.header
        inputs = input_shapes(header.width, header.height, settings, strides)
        if candidate.roi:
            height, width = candidate.inputs[0]
            share = regions.areas[candidate.id][0] / (height * width)
            areas[candidate.id] = [round(share * high * wide) for high, wide in inputs]
        resized.append(dataclasses.replace(candidate, inputs=inputs))
    return resized, dataclasses.replace(regions, candidates=resized, areas=areas)


def take_regions(candidates: Sequence[Candidate], masks: str) -> Regions:
    """Give every image its mask: of a file for all, or of a folder.

    Raises InputError if an image has none, or a mask cannot be read.
    """
    regions, last = Regions(), None
    files = roi.find_masks([candidate.path for candidate in candidates], masks)
    for candidate, file in zip(candidates, files, strict=True):
        if file != last:  # a mask for all is read once; those of a set may not fit in memory
            mask, last = read_mask_file(file), file
            name = roi.name_region(mask)
        shown = roi.at_size(mask, candidate.header.width, candidate.header.height)
        if not shown.any():
            reason = "nothing of it is inside its mask"
            regions.skipped[candidate.id] = Skipped(candidate.path, reason)
            continue
        regions.files[name] = file
        regions.areas[candidate.id] = [area_inside(shown, shape) for shape in candidate.inputs]
        regions.candidates.append(dataclasses.replace(candidate, roi=name))
    return regions


def area_inside(mask: Bools, shape: tuple[int, int]) -> int:
    """Pixels of a network input (height, width) that are scored, of an image with such a mask."""
    return int(cover(mask, (shape[0] // STRIDE, shape[1] // STRIDE)).sum()) * STRIDE**2


def make_batches(candidates: Sequence[Candidate]) -> list[list[Candidate]]:
    """Group files by network size, then cut the groups to batches of about equal cost."""
    groups: dict[tuple[tuple[int, int], ...], list[Candidate]] = {}
    for candidate in candidates:
        groups.setdefault(candidate.inputs, []).append(candidate)
    batches = []
    for inputs, group in groups.items():
        most = max(1, BATCH_PIXELS // sum(height * width for height, width in inputs))
        batches += [group[i : i + most] for i in range(0, len(group), most)]
    return batches
