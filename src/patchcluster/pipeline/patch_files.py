"""Patches in files, of a run or of a scan in progress; what a method says of them."""

from pathlib import Path

from torch import Tensor

from ..errors import RunError
from ..images.roi import Packing
from ..methods import Method
from ..methods.grids import Grids
from ..runs import runfolder, storage
from ..runs.info import ImageRecord
from .image_set import ImageSet

# Patches float16 [h, w, c] of each content of a set, packed if it has a mask; and how they are.
Loaded = tuple[Grids, list[Packing | None]]


def describe_whole(
    method: Method, patches: Grids | None, image: int, packing: Packing | None
) -> Tensor | None:
    """What a fitted method says of the patches of an image's whole grid; None: not of all.

    patches: of all images, for a bank that has only some.
    """
    if method.bounded and patches is not None:
        vectors: Tensor | None = method.describe_grid(patches[image].to(method.bank_.device))
    else:
        vectors = method.describe(image)
    if vectors is None or packing is None:
        return vectors
    return packing.unpack_rows(vectors) if len(vectors) == len(packing.cells) else None


def load_batches(folder: Path, image_set: ImageSet, block_side: int, size: int) -> Loaded:
    """Patches and packings of each content, from files of patches: of a run, or of a scan.

    block_side: of the smallest part of a grid that is scored or not, in patches. Raises RunError if
    some are missing.
    """
    firsts = [copies[0] for copies in image_set.records.values()]
    places: dict[int, tuple[Path, str, tuple[int, ...]]] = {}
    for path in (*runfolder.kept_paths(folder), *runfolder.batch_paths(folder)):
        shapes, _ = storage.read_shapes(path)
        for name, shape in shapes.items():
            of_size, _, image_id = name.partition(".")
            if of_size == str(size) and image_id.isdecimal() and len(shape) == 3:
                places[int(image_id)] = path, name, shape
    missing = [one.path for one in firsts if one.id not in places]
    if missing:
        raise RunError(
            f"{str(folder)!r} does not keep the patches of {missing[0]!r}: scan again, without "
            "--no-cache"
        )
    packings, shapes_ = [], []
    for one in firsts:
        shape = places[one.id][2]
        packing = find_packing(folder, one, (shape[0], shape[1]), block_side)
        packings.append(packing)
        shapes_.append(shape if packing is None else (*packing.packed_shape, shape[2]))

    def read(image: int) -> Tensor:
        path, name, _ = places[firsts[image].id]
        grid, packing = storage.read_tensor(path, name), packings[image]
        return grid if packing is None else packing.pack(grid)

    return Grids(shapes_, read), packings


def find_packing(
    folder: Path, image: ImageRecord, shape: tuple[int, int], block_side: int
) -> Packing | None:
    """How an image's grid of patches of a shape (h, w) is packed; None: it is whole."""
    mask = runfolder.read_mask_of(folder, image)
    return None if mask is None else Packing.of(mask, shape, block_side)
