"""A set's patches on disk -> the fitted method, and every image's score grid.

Comparisons go to disk in batches, so that a later start can take them up again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from . import runfolder, storage
from .extraction import patches_name
from .halving import in_halves
from .labels import Label, Labels
from .maps import Floats, ImageScore
from .methods import Comparison, Method
from .methods.base import NEIGHBOURS_KEPT, join, make_batches
from .roi import Packing
from .runinfo import ImageRecord

# Patches float16 [h, w, c] of each content of a set, packed if it has a mask; and how they are.
Loaded = tuple[list[Tensor], list[Packing | None]]


@dataclass(frozen=True)
class ImageSet:
    """The images of a set, each content once, in an order that only the contents decide."""

    records: dict[str, list[ImageRecord]]  # sha256 and mask, ascending -> the files that share them

    @classmethod
    def of(cls, images: Sequence[ImageRecord]) -> Self:
        records: dict[str, list[ImageRecord]] = {}
        for image in sorted(images, key=lambda image: (image.sha256, image.id)):
            records.setdefault(image.sha256 + image.roi, []).append(image)
        return cls(dict(sorted(records.items())))

    @property
    def shas(self) -> list[str]:
        return list(self.records)

    def labels(self, by_path: Labels) -> list[Label | None]:
        """What is said of each content by a label of one of its files; anomalous goes first."""
        said = [{by_path.get(one.path) for one in copies} for copies in self.records.values()]
        order: tuple[Label, ...] = ("anomalous", "normal")
        return [next((label for label in order if label in of), None) for of in said]

    @property
    def keys(self) -> list[int]:
        """What seeds the random choices about each image: its content."""
        return [int(sha[:16], 16) for sha in self.records]


@dataclass(frozen=True)
class Explanations:
    """For each patch of an image the three places of other images that it was compared with.

    image int32 [p, 3] is an index in the set, patch int32 [p, 3] a place in that image's grid
    (row-major), distance float32 [p, 3]; nearest first. Patches that are not scored have image -1.
    """

    image: Tensor
    patch: Tensor
    distance: Tensor

    def unpack(self, packing: Packing) -> "Explanations":
        """The same for all patches of the image's grid."""
        count = packing.shape[0] * packing.shape[1]
        image, patch, distance = (
            torch.full((count, values.shape[1]), filler, dtype=values.dtype)
            for values, filler in ((self.image, -1), (self.patch, -1), (self.distance, torch.nan))
        )
        image[packing.cells], patch[packing.cells] = self.image, self.patch
        distance[packing.cells] = self.distance
        return Explanations(image, patch, distance)


@dataclass(frozen=True)
class Compared:
    """What the comparison at one network size gave; lists are in the order of the set."""

    size: int
    grids: list[Floats]  # scores float32 [h, w]; NaN where a patch is not scored
    explanations: list[Explanations]
    method: Method  # fitted
    image_scores: list[float] | None  # by a rule of the method's own, if one was asked for
    packings: list[Packing | None]
    near_duplicates: list[list[int]]  # groups of images, ascending

    def describe(self, image: int) -> Tensor | None:
        """See `groups.Describe`."""
        return describe_whole(self.method, image, self.packings[image])


@dataclass(frozen=True)
class Comparer:
    """Compares every image of a set with the set.

    load: network size -> patches of each content, in the order of the set (see `Loaded`). digest
    names all that the result depends on.
    """

    folder: Path
    image_set: ImageSet
    load: Callable[[int], Loaded]
    device: torch.device
    digest: str
    progress: Callable[[str, int, int], None]

    def run(self, size: int, method: Method, rule: ImageScore) -> Compared:
        """Fit the method on the patches of one network size and score every image."""
        patches, packings = self.load(size)
        self._fit(size, method, patches)
        counts = [grid.shape[0] * grid.shape[1] for grid in patches]
        comparison = self._compare(size, method, patches, packings)
        method.calibrate(comparison.select(method.bank_rows(counts)))
        scores = torch.split(method.grade(comparison), counts)
        image_scores = None
        if rule in method.image_scores:
            image_scores = method.score_images(rule, patches, scores, range(len(counts))).tolist()
        return Compared(
            size,
            [
                s.view(g.shape[:2]).numpy() if p is None else p.unpack(s)
                for s, g, p in zip(scores, patches, packings, strict=True)
            ],
            self._explain(method, comparison, counts, packings),
            method,
            image_scores,
            packings,
            _group(comparison.near_duplicates, len(counts)),
        )

    def _fit(self, size: int, method: Method, patches: list[Tensor]) -> None:
        path = runfolder.fitted_path(self.folder, size)
        if storage.read_note(path) == self.digest:
            state, _ = storage.read_tensors(path)
        else:
            method.fit(
                [grid.to(self.device) for grid in patches],
                self.image_set.keys,
                lambda done, total: self.progress("bank", done, total),
            )
            state = method.state()
            storage.write_tensors(path, state, self.digest)
            return
        method.restore({name: tensor.to(self.device) for name, tensor in state.items()})

    def _compare(
        self,
        size: int,
        method: Method,
        patches: list[Tensor],
        packings: list[Packing | None],
    ) -> Comparison:
        masked = [packing for packing in packings if packing is not None]
        blocks = [packing.blocks for packing in masked]  # of all images, or of none
        parts = []
        batches = list(make_batches([grid.shape[0] * grid.shape[1] for grid in patches]))
        for number, batch in enumerate(batches):
            path = runfolder.comparison_path(self.folder, size, number)
            if storage.read_note(path) == self.digest:
                tensors, _ = storage.read_tensors(path)
            else:

                def compare(images: Sequence[int]) -> Comparison:
                    part = method.compare(
                        [patches[i].to(self.device) for i in images],
                        images,
                        [blocks[i] for i in images] if blocks else None,
                    )
                    return Comparison(*(tensor.cpu() for tensor in vars(part).values()))

                tensors = vars(join(in_halves(compare, batch, "search")))
                storage.write_tensors(path, tensors, self.digest)
            parts.append(Comparison(**tensors))
            self.progress("compare", batch[-1] + 1, len(patches))
        return join(parts)

    def _explain(
        self,
        method: Method,
        comparison: Comparison,
        counts: list[int],
        packings: list[Packing | None],
    ) -> list[Explanations]:
        rows = comparison.neighbours[:, :NEIGHBOURS_KEPT]
        image = method.bank_image_.cpu()[rows].int()
        patch = method.bank_patch_.cpu()[rows].int()
        distance = comparison.neighbour_distances[:, :NEIGHBOURS_KEPT]
        masked = [packing for packing in packings if packing is not None]
        if masked:  # places in packed grids -> in the images' own
            starts = torch.tensor([0, *counts[:-1]]).cumsum(0)
            patch = torch.cat([p.cells for p in masked])[starts[image.long()] + patch].int()
        parts = (torch.split(t, counts) for t in (image, patch, distance))
        explained = [Explanations(*part) for part in zip(*parts, strict=True)]
        if not masked:
            return explained
        return [e.unpack(p) for e, p in zip(explained, masked, strict=True)]


def _group(pairs: Tensor, images: int) -> list[list[int]]:
    """Pairs of images int64 [d, 2] -> the groups that they make, single images left out."""
    links = coo_array((torch.ones(len(pairs)), pairs.T.numpy()), shape=(images, images))
    groups: dict[int, list[int]] = {}
    for image, group in enumerate(connected_components(links, directed=False)[1].tolist()):
        groups.setdefault(group, []).append(image)
    return [group for group in groups.values() if len(group) > 1]


def describe_whole(method: Method, image: int, packing: Packing | None) -> Tensor | None:
    """What a fitted method says of the patches of an image's whole grid; None: not of all."""
    vectors = method.describe(image)
    if vectors is None or packing is None:
        return vectors
    return packing.unpack_rows(vectors) if len(vectors) == len(packing.cells) else None


def load_batches(folder: Path, image_set: ImageSet, block_side: int, size: int) -> Loaded:
    """Patches and packings of each content, from the batches of a scan in progress.

    block_side: of the smallest part of a grid that is scored or not, in patches.
    """
    wanted = {records[0].id: records[0] for records in image_set.records.values()}
    found: dict[int, tuple[Tensor, Packing | None]] = {}
    for path in runfolder.batch_paths(folder):
        tensors, note = storage.read_tensors(path)
        for image in note["images"]:
            if image["id"] in wanted:
                grid = tensors[patches_name(size, image["id"])]
                shape = (grid.shape[0], grid.shape[1])
                packing = find_packing(folder, wanted[image["id"]], shape, block_side)
                found[image["id"]] = (grid if packing is None else packing.pack(grid), packing)
    both = [found[image_id] for image_id in wanted]
    return [grid for grid, _ in both], [packing for _, packing in both]


def find_packing(
    folder: Path, image: ImageRecord, shape: tuple[int, int], block_side: int
) -> Packing | None:
    """How an image's grid of patches of a shape (h, w) is packed; None: it is whole."""
    mask = runfolder.read_mask_of(folder, image)
    return None if mask is None else Packing.of(mask, shape, block_side)
