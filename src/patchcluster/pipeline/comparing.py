"""A set's patches on disk -> the fitted method, and every image's score grid.

Comparisons go to disk in batches, so that a later start can take them up again. Patches and
comparisons are read from there when they are needed: what is in memory at a time is a batch, and
the bank.
"""

import functools
import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from ..images.roi import Packing
from ..methods import Comparison, Method
from ..methods.base import NEIGHBOURS_KEPT, join
from ..methods.grids import Grids, Lazy, make_batches
from ..network.out_of_memory import in_halves
from ..runs import runfolder, storage
from ..scores import ImageScore
from ..scores.labels import Labels
from ..scores.maps import Floats
from .image_set import ImageSet
from .patch_files import Loaded, describe_whole
from .stage import Batch, run_stage
from .workers import Workers


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
    explanations: Sequence[Explanations]
    method: Method  # fitted
    patches: Grids
    image_scores: list[float] | None  # by a rule of the method's own, if one was asked for
    packings: list[Packing | None]
    near_duplicates: list[list[int]]  # groups of images, ascending

    def describe(self, image: int) -> Tensor | None:
        """See `groups.Describe`."""
        return describe_whole(self.method, self.patches, image, self.packings[image])


def read_comparison(path: Path) -> Comparison:
    """The comparison of a batch of images. Raises RunError."""
    return Comparison(**storage.read_tensors(path)[0])


_EXPLAINS = ("neighbours", "neighbour_distances")


@dataclass(frozen=True)
class Comparisons:
    """The comparisons of a set's patches, in files of a batch of images each.

    counts: number of patches of each image.
    """

    paths: Sequence[Path]
    batches: Sequence[Sequence[int]]
    counts: Sequence[int]

    def __iter__(self) -> Iterator[Comparison]:
        for path in self.paths:
            yield read_comparison(path)

    def select(self, rows: Tensor) -> Comparison:
        """The comparisons of some of all patches, as `Comparison.select` gives them."""
        ordered = rows.sort()
        bounds = torch.tensor([0, *(sum(self.counts[i] for i in b) for b in self.batches)]).cumsum(
            0
        )
        places = torch.searchsorted(ordered.values, bounds).tolist()
        found: dict[str, Tensor] = {}
        for part, start, (first, last) in zip(
            self, bounds.tolist(), pairwise(places), strict=False
        ):
            these, at = ordered.values[first:last] - start, ordered.indices[first:last]
            for name in ("distances", "neighbours", "neighbour_distances"):
                values = getattr(part, name)
                if name not in found:
                    found[name] = values.new_empty(len(rows), values.shape[1])
                found[name][at] = values[these]
        return Comparison(**found)

    def near_duplicates(self) -> Tensor:
        """Return the pairs of near-duplicates of all images, int64 [d, 2]."""
        return torch.cat([storage.read_tensor(path, "near_duplicates") for path in self.paths])

    def explained(self, image: int) -> tuple[Tensor, Tensor]:
        """Rows of the bank, and their distances, that explain an image's patches, [p, j] each."""
        batch, start = self.places[image]
        neighbours, distances = self._explained(batch)
        rows = slice(start, start + self.counts[image])
        return neighbours[rows], distances[rows]

    @functools.cached_property
    def _explained(self) -> Callable[[int], tuple[Tensor, Tensor]]:
        """The same of a batch; who asks for one image after the other reads each file once."""

        def read(batch: int) -> tuple[Tensor, Tensor]:
            both = (storage.read_tensor(self.paths[batch], name) for name in _EXPLAINS)
            neighbours, distances = (values[:, :NEIGHBOURS_KEPT] for values in both)
            return neighbours, distances

        return functools.lru_cache(maxsize=1)(read)

    @functools.cached_property
    def places(self) -> list[tuple[int, int]]:
        """The batch of each image, and where its patches begin there."""
        places = []
        for number, batch in enumerate(self.batches):
            sizes = [self.counts[image] for image in batch]
            places += [(number, start) for start in np.cumsum([0, *sizes[:-1]]).tolist()]
        return places


def _from_arrays(
    kind: type[Method], parameters: Mapping[str, Any], state: Mapping[str, Any]
) -> "Search":
    with warnings.catch_warnings():
        # Shared arrays cannot be written to; nor does anything write to what was learned.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        tensors = {name: torch.from_numpy(values) for name, values in state.items()}
    return Search(kind.from_state(tensors, **parameters), torch.device("cpu"))


@dataclass(frozen=True)
class Query:
    """An image of the set: its patches, and where its blocks lie."""

    image: int
    grid: Tensor
    blocks: Tensor | None


@dataclass(frozen=True)
class Search:
    """Patches against the bank of a fitted method; the work of a batch of images (see `Work`)."""

    method: Method
    device: torch.device
    prefetch: ClassVar[int] = 0  # a batch at a time: the patches of large images take memory

    def prepare(self, item: Query) -> Query:
        return item

    def finish(self, ready: Sequence[Query]) -> Comparison:
        return join(in_halves(self._compare, ready, "search"))

    def _compare(self, queries: Sequence[Query]) -> Comparison:
        grids = [query.grid.to(self.device) for query in queries]
        images = [query.image for query in queries]
        blocks = [query.blocks for query in queries if query.blocks is not None]  # of all or none
        part = self.method.compare(grids, images, blocks or None)
        return Comparison(**{name: tensor.cpu() for name, tensor in part.tensors().items()})

    def on(self, device: torch.device) -> Self:
        state = {name: tensor.to(device) for name, tensor in self.method.state().items()}
        return type(self)(type(self.method).from_state(state, **self.method.parameters()), device)

    def __reduce__(self) -> tuple[Any, ...]:
        """By arrays, which workers of one node can share, and without what follows from them."""
        state = {name: tensor.cpu().numpy() for name, tensor in self.method.state().items()}
        return _from_arrays, (type(self.method), self.method.parameters(), state)


@dataclass(frozen=True)
class Comparer:
    """Compares every image of a set with the set.

    load: network size -> patches of each content, in the order of the set (see `Loaded`). labels:
    by path. common names all that the result depends on besides the contents.
    """

    folder: Path
    image_set: ImageSet
    load: Callable[[int], Loaded]
    labels: Labels
    device: torch.device
    common: str
    progress: Callable[[str, int, int], None]
    workers: Workers

    def run(self, size: int, method: Method, rule: ImageScore) -> Compared:
        """Fit the method on the patches of one network size and score every image."""
        patches, packings = self.load(size)
        method = self._fit(size, method, patches)
        counts = patches.counts
        search = Search(method, self.device)
        compared = self._compare(size, search, patches, packings)
        method.calibrate(compared.select(method.bank_rows(counts)))
        scores: list[Tensor] = []
        for part, batch in zip(compared, compared.batches, strict=True):
            scores += torch.split(method.to_scores(part), [counts[image] for image in batch])
        image_scores = None
        if rule in method.image_scores:
            image_scores = method.score_images(rule, patches, scores, range(len(counts))).tolist()
        return Compared(
            size,
            [
                s.view(shape[:2]).numpy() if p is None else p.unpack(s)
                for s, shape, p in zip(scores, patches.shapes, packings, strict=True)
            ],
            self._explain(method, compared, packings),
            method,
            patches,
            image_scores,
            packings,
            _group(compared.near_duplicates(), len(counts)),
        )

    @functools.cached_property
    def _key(self) -> str:
        """What the files of this comparison are named by: all that they depend on."""
        contents = json.dumps([self.common, self.image_set.shas])
        return hashlib.sha256(contents.encode()).hexdigest()

    def _fit(self, size: int, method: Method, patches: Grids) -> Method:
        """Fit a method, or take it as it was fitted before."""
        path = runfolder.fitted_path(self.folder, size)
        if storage.read_note(path) == self._key:
            read, _ = storage.read_tensors(path)
            state = {name: tensor.to(self.device) for name, tensor in read.items()}
            return type(method).from_state(state, **method.parameters())
        method.fit(
            Grids(patches.shapes, lambda image: patches[image].to(self.device)),
            self.image_set.keys,
            self.image_set.labels(self.labels),
            lambda done, total: self.progress("bank", done, total),
        )
        storage.write_tensors(path, method.state(), self._key)
        return method

    def _compare(
        self, size: int, search: Search, patches: Grids, packings: list[Packing | None]
    ) -> Comparisons:
        batches = list(make_batches(patches.counts))
        paths = [runfolder.comparison_path(self.folder, size, n) for n in range(len(batches))]
        # A file says of which images it is too: another version may cut other batches.
        keys = [f"{self._key} {batch[0]}-{batch[-1]}" for batch in batches]

        def queries(batch: Sequence[int]) -> list[Query]:
            masks = [packings[i] for i in batch]  # of all images, or of none
            blocks = [None if mask is None else mask.blocks for mask in masks]
            return [Query(i, patches[i], b) for i, b in zip(batch, blocks, strict=True)]

        run_stage(
            [
                Batch(path, key, len(batch), functools.partial(queries, batch))
                for path, key, batch in zip(paths, keys, batches, strict=True)
            ],
            search,
            self.workers,
            lambda _, comparison: (comparison.tensors(), {}),
            lambda done, total: self.progress("compare", done, total),
        )
        return Comparisons(paths, batches, patches.counts)

    def _explain(
        self,
        method: Method,
        compared: Comparisons,
        packings: list[Packing | None],
    ) -> Sequence[Explanations]:
        images, patches = method.bank_image_.cpu(), method.bank_patch_.cpu()
        masked = [packing for packing in packings if packing is not None]
        if masked:  # places in packed grids -> in the images' own
            patches = torch.cat([p.cells for p in masked])[method.bank_rows(compared.counts)]

        def explain(image: int) -> Explanations:
            rows, distances = compared.explained(image)
            explained = Explanations(images[rows].int(), patches[rows].int(), distances)
            packing = packings[image]
            return explained if packing is None else explained.unpack(packing)

        return Lazy(len(packings), explain)


def _group(pairs: Tensor, images: int) -> list[list[int]]:
    """Pairs of images int64 [d, 2] -> the groups that they make, single images left out."""
    links = coo_array((torch.ones(len(pairs)), pairs.T.numpy()), shape=(images, images))
    groups: dict[int, list[int]] = {}
    for image, group in enumerate(connected_components(links, directed=False)[1].tolist()):
        groups.setdefault(group, []).append(image)
    return [group for group in groups.values() if len(group) > 1]
