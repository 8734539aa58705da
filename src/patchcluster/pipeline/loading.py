"""Load what a run keeps besides results: its fitted method, its network, its patches.

They are read back for labels, flags, updates and new images; the patches also by the scan itself.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import RunError
from ..images.raster import Bools, cover
from ..methods import Method
from ..methods.grids import Grids
from ..network.backbones import Backbone, load_backbone
from ..network.patches import block_side, grid_stride
from ..runs import runfolder, storage
from ..runs.info import ImageRecord
from ..runs.run import Run
from ..settings import resolve
from .image_set import ImageSet
from .job import Job
from .survey import input_shapes


@dataclass(frozen=True)
class Packing:
    """The blocks of one image's grid that are inside its mask, side by side.

    shape: (h, w) of the grid; blocks int64 [m, 2]: row and column of each, in blocks; cells int64
    [side * side * m]: where in the grid (row-major) each patch of the packed grid [side, side * m]
    lies.
    """

    shape: tuple[int, int]
    side: int
    blocks: Tensor
    cells: Tensor

    @classmethod
    def of(cls, mask: Bools, shape: tuple[int, int], side: int) -> Self:
        """mask: bool [height, width] of the image; side: of a block, in patches."""
        inside = cover(mask, (shape[0] // side, shape[1] // side))
        blocks = torch.from_numpy(np.argwhere(inside))
        within = torch.arange(side)
        rows = blocks[:, 0] * side + within[:, None]  # [side, m]
        columns = (blocks[:, 1, None] * side + within).flatten()  # [m * side]
        cells = rows.repeat_interleave(side, 1) * shape[1] + columns
        return cls(shape, side, blocks, cells.flatten())

    @property
    def packed_shape(self) -> tuple[int, int]:
        return self.side, self.side * len(self.blocks)

    def pack(self, grid: Tensor) -> Tensor:
        """Pack patches [h, w, c]: those inside, [side, side * m, c]."""
        return grid.flatten(0, 1)[self.cells].view(self.side, -1, grid.shape[-1])

    def unpack_rows(self, values: Tensor) -> Tensor:
        """Unpack vectors float [side * side * m, d] to [h * w, d], NaN outside."""
        rows = values.new_full((self.shape[0] * self.shape[1], values.shape[1]), torch.nan)
        rows[self.cells] = values
        return rows

    def unpack(self, scores: Tensor) -> NDArray[np.float32]:
        """Unpack scores [side * side * m] to float32 [h, w], NaN outside."""
        grid = torch.full((self.shape[0] * self.shape[1],), torch.nan)
        grid[self.cells] = scores.float()
        return grid.view(self.shape).numpy()


# Patches float16 [h, w, c] of each content of a set, packed if it has a mask; and how they are.
Loaded = tuple[Grids, list[Packing | None]]


def load_method(
    run: Run | Job, size: int | None = None, device: torch.device | str = "cpu"
) -> Method:
    """The method of one of a run's network sizes, the largest by default, as it was fitted.

    Raises RunError if the bank is missing or damaged.
    """
    settings = resolve(**run.info.settings)
    state = _read_state(run, max(settings.size) if size is None else size)
    backbone = run.info.backbone
    method = settings.make_method(backbone["channels"], backbone["strides"])
    state = {name: tensor.to(device) for name, tensor in state.items()}
    try:
        return type(method).from_state(state, **method.parameters())
    except (LookupError, TypeError, ValueError, RuntimeError) as error:  # tensors of another kind
        raise _damaged(run, f"not of {method.name}: {error!r}") from error


def load_network(
    run: Run | Job, weights: str | None = None, device: torch.device | str = "cpu"
) -> Backbone:
    """The network that a run was scanned with; weights: where their file lies now.

    Raises WeightsError, or RunError if the weights are others.
    """
    settings = resolve(**run.info.settings)
    strides = settings.strides
    backbone = load_backbone(settings.backbone, weights or settings.weights, device, strides)
    if backbone.weights_hash != run.info.backbone["sha256"]:
        raise RunError(
            f"the weights of {backbone.name} are not those that {str(run.folder)!r} was scanned "
            "with: name their file with --weights, or scan again"
        )
    return backbone


def load_patches(run: Run | Job, image_set: ImageSet, size: int) -> Loaded:
    """Patches and packings of each content of a set: of files that the folder has, or of the bank.

    Raises RunError if neither has all.
    """
    if not runfolder.kept_paths(run.folder) and not runfolder.batch_paths(run.folder):
        in_bank = load_bank(run, image_set, size)
        if in_bank is not None:
            return in_bank
    return _load_files(run, image_set, size)


def load_bank(run: Run | Job, image_set: ImageSet, size: int) -> Loaded | None:
    """Load patches and packings from the bank of a run; None if it does not hold all patches."""
    method = load_method(run, size)
    if not method.whole:
        return None
    settings, strides = resolve(**run.info.settings), run.info.backbone["strides"]
    which, stride = settings.size.index(size), grid_stride(strides, settings.layout)
    packings = []
    for image in image_set.firsts:
        height, width = input_shapes(image.width, image.height, settings, strides)[which]
        packings.append(find_packing(run, image, (height // stride, width // stride)))
    counts = torch.bincount(method.bank_image_).tolist()
    rows = zip(torch.split(method.bank_, counts), method.state()["shapes"].tolist(), strict=True)
    return Grids.of([part.view(*shape, -1) for part, shape in rows]), packings


def _load_files(run: Run | Job, image_set: ImageSet, size: int) -> Loaded:
    """Patches and packings of each content, of files. Raises RunError if some are missing."""
    folder = run.folder
    firsts = image_set.firsts
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
        packing = find_packing(run, one, (shape[0], shape[1]))
        packings.append(packing)
        shapes_.append(shape if packing is None else (*packing.packed_shape, shape[2]))

    def read(image: int) -> Tensor:
        path, name, _ = places[firsts[image].id]
        grid, packing = storage.read_tensor(path, name), packings[image]
        return grid if packing is None else packing.pack(grid)

    return Grids(shapes_, read), packings


def find_packing(run: Run | Job, image: ImageRecord, shape: tuple[int, int]) -> Packing | None:
    """How an image's grid of patches of a shape (h, w) is packed; None: it is whole."""
    mask = runfolder.read_mask_of(run.folder, image)
    if mask is None:
        return None
    layout = resolve(**run.info.settings).layout
    return Packing.of(mask, shape, block_side(run.info.backbone["strides"], layout))


def describe_whole(
    method: Method, patches: Grids | None, image: int, packing: Packing | None
) -> Tensor | None:
    """Describe the patches of an image's whole grid by a fitted method; None: it cannot.

    patches: of all images, for a bank that has only some.
    """
    if method.bounded and patches is not None:
        vectors: Tensor | None = method.describe_grid(patches[image].to(method.bank_.device))
    else:
        vectors = method.describe(image)
    if vectors is None or packing is None:
        return vectors
    return packing.unpack_rows(vectors) if len(vectors) == len(packing.cells) else None


def _read_state(run: Run | Job, size: int) -> dict[str, Tensor]:
    """The learned values of the method of one network size. Raises RunError."""
    tensors, _ = storage.read_tensors(run.folder / runfolder.BANK_FILE)
    prefix = f"{size}."
    state = {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
    count, places = state.get("image_count"), state.get("bank_image")
    if count is None or count.numel() != 1:
        raise _damaged(run, f"no image_count of size {size}")
    if places is not None and len(places):  # a method without rows of images has none
        rows = {len(state[name]) for name in ("bank", "bank_patch") if name in state}
        if rows != {len(places)} or not bool(((places >= 0) & (places < count)).all()):
            raise _damaged(run, "its rows do not belong together")
    return state


def _damaged(run: Run | Job, why: str) -> RunError:
    file = run.folder / runfolder.BANK_FILE
    return RunError(f"{str(file)!r} is damaged ({why}): scan again")
