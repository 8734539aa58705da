"""Files -> what is known of them before any work: headers, masks, what the network will see."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ..errors import SettingError, UnreadableImage
from ..images.decode import Header, read_header
from ..images.inputs import stamp
from ..images.masks import find_masks, name_region, read_mask_file
from ..images.raster import Bools, at_size, cover, find_turn, orient
from ..images.shapes import STRIDE, network_size
from ..methods import METHODS
from ..network.tiling import find_lattice, native_size
from ..runs import runfolder
from ..runs.info import Skipped
from ..settings import Settings

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
    scored: float = 1.0  # share of the network input that is inside its mask


@dataclass(frozen=True)
class Survey:
    """Headers and masks of some files, and the files that were skipped."""

    candidates: list[Candidate]
    skipped: dict[int, Skipped]  # by id
    masks: dict[str, tuple[Path, int]]  # name of a mask -> its file, and the orientation to apply


def survey_files(
    paths: Sequence[str],
    settings: Settings,
    strides: Sequence[int],
    threads: int,
    done: Done,
    first: int = 0,
) -> Survey:
    """Read the headers of all files, and give every image its mask; ids count from `first`.

    Files that cannot be read, or are all outside their mask, are skipped with the reason. strides:
    of the network's stages. Raises InputError if an image has no mask, or it cannot be read.
    """
    candidates: list[Candidate] = []
    skipped: dict[int, Skipped] = {}
    headers = read_headers(paths, settings.max_pixels, threads)
    for i, (path, found) in enumerate(zip(paths, headers, strict=True)):
        if isinstance(found, str):
            skipped[first + i] = Skipped(path, found)
        else:
            header, mark = found
            inputs = input_shapes(header.width, header.height, settings, strides)
            candidates.append(Candidate(first + i, path, header, mark, inputs))
        done(i + 1, len(paths))
    if settings.roi is None or not candidates:
        return Survey(candidates, skipped, {})
    masked = _take_masks(candidates, settings.roi)
    return Survey(masked.candidates, skipped | masked.skipped, masked.masks)


def tell_several(candidates: Sequence[Candidate], tell: Callable[[str], None]) -> None:
    """Say of how many files the first page or frame stands for several."""
    if several := sum(candidate.header.several for candidate in candidates):
        tell(f"files with several pages or frames: {several} (the first of each is scored)")


def read_headers(
    paths: Sequence[str], max_pixels: int, threads: int
) -> Iterator[tuple[Header, list[int]] | str]:
    """Yield the header and the stamp of each file, or the reason why it cannot be read."""

    def read(path: str) -> tuple[Header, list[int]] | str:
        try:
            return read_header(path, max_pixels), stamp(path)
        except UnreadableImage as error:
            return str(error)

    with ThreadPoolExecutor(threads, "survey") as pool:
        yield from pool.map(read, paths)


def input_shapes(
    width: int, height: int, settings: Settings, strides: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    """Say what the network sees of an image of width x height: (height, width) at each size.

    strides: of the network's stages, which tiles must line up with.
    """
    if not settings.tile:
        return tuple(network_size(width, height, size) for size in settings.size)
    lattice = find_lattice(strides)
    return tuple(native_size(width, height, size, lattice) for size in settings.size)


def _take_masks(candidates: Sequence[Candidate], masks: str) -> Survey:
    """Give every image its mask: of a file for all, or of a folder."""
    found, last = Survey([], {}, {}), None
    files = find_masks([candidate.path for candidate in candidates], masks)
    for candidate, file in zip(candidates, files, strict=True):
        if file != last:  # a mask for all is read once; those of a set may not fit in memory
            mask, last = read_mask_file(file), file
        turn = _find_turn(mask, candidate.header)
        turned = orient(mask, turn)
        shown = at_size(turned, candidate.header.width, candidate.header.height)
        if not shown.any():
            reason = "nothing of it is inside its mask"
            found.skipped[candidate.id] = Skipped(candidate.path, reason)
            continue
        name = name_region(turned)
        found.masks[name] = (file, turn)
        share = share_inside(shown, candidate.inputs[0])
        found.candidates.append(dataclasses.replace(candidate, roi=name, scored=share))
    return found


def _find_turn(mask: Bools, header: Header) -> int:
    return find_turn(mask.shape, header.width, header.height, lambda: header.orientation)


def share_inside(mask: Bools, shape: tuple[int, int]) -> float:
    """Share of a network input (height, width) that is scored, of an image with such a mask."""
    return float(cover(mask, (shape[0] // STRIDE, shape[1] // STRIDE)).mean())


def keep_masks(folder: Path, masks: dict[str, tuple[Path, int]]) -> None:
    """Write the masks of what is scored to a run by name, turned as they are applied."""
    for name, (file, turn) in masks.items():
        runfolder.write_region(folder, name, orient(read_mask_file(file), turn))


def check_sizes(candidates: Sequence[Candidate], method: str) -> None:
    """Raise SettingError if the images' shapes differ and the method cannot take that."""
    sizes = sorted({candidate.inputs[0] for candidate in candidates})
    if METHODS[method].one_size and len(sizes) > 1:
        raise SettingError(
            f"{method} needs images of one shape, and these differ (network inputs of "
            f"{' x '.join(map(str, sizes[0]))} to {' x '.join(map(str, sizes[-1]))} pixels): "
            "choose another method"
        )
