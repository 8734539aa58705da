"""A set's patches on disk -> the fitted method, and every image's score grid.

Comparisons go to disk in batches, so that a later start can take them up again. Patches and
comparisons are read from there when they are needed: what is in memory at a time is a batch, and
the bank.
"""

import copy
import functools
import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from . import runfolder, storage
from .errors import RunError
from .halving import in_halves
from .labels import Label, Labels
from .lazy import Grids, Lazy
from .maps import Floats, ImageScore
from .methods import Comparison, Method, PatchClusterPlus
from .methods.base import NEIGHBOURS_KEPT, join, make_batches
from .methods.tracing import BankChange, Trace
from .roi import Packing
from .runinfo import ImageRecord
from .workers import Workers

# Patches float16 [h, w, c] of each content of a set, packed if it has a mask; and how they are.
Loaded = tuple[Grids, list[Packing | None]]


@dataclass(frozen=True)
class ImageSet:
    """The images of a set, each content once, in an order that only the contents decide."""

    records: dict[str, list[ImageRecord]]  # sha256 and mask, ascending -> the files that share them

    @classmethod
    def of(cls, images: Sequence[ImageRecord]) -> Self:
        """Of images in input order."""
        records: dict[str, list[ImageRecord]] = {}
        for image in images:
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
    explanations: Sequence[Explanations]
    method: Method  # fitted
    patches: Grids
    image_scores: list[float] | None  # by a rule of the method's own, if one was asked for
    packings: list[Packing | None]
    near_duplicates: list[list[int]]  # groups of images, ascending
    settled: bool  # whether images that an earlier run had have the grids that they had there

    def describe(self, image: int) -> Tensor | None:
        """See `groups.Describe`."""
        return describe_whole(self.method, self.patches, image, self.packings[image])


def read_comparison(path: Path) -> Comparison:
    """The comparison of a batch of images. Raises RunError."""
    return Comparison.of_tensors(storage.read_tensors(path)[0])


_EXPLAINS = ("neighbours", "neighbour_distances")


def name_basis(common: str, method: Method, contents: Sequence[str]) -> str:
    """A name for all that the comparison of an image with a fitted method depends on.

    common: what it depends on whatever the set; contents: of the images of the set.
    """
    return _name(common, method.basis(contents))


def _name(*values: Any) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def name_batch(basis: str, contents: Sequence[str]) -> str:
    """What a file says that has the comparisons of images with these contents."""
    return _name(basis, contents)


@dataclass(frozen=True)
class Comparisons:
    """The comparisons of a set's patches, in files of a batch of images each.

    counts: number of patches of each image. members: the images that all are compared with. A file
    depends on these and on its own images alone: it tells images by their places among either.
    """

    paths: Sequence[Path]
    batches: Sequence[Sequence[int]]
    counts: Sequence[int]
    members: Sequence[int]

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
        return Comparison.of_tensors(found)

    def near_duplicates(self) -> Tensor:
        """As in `Comparison`, of all images."""
        members, parts = torch.tensor(self.members), []
        for path, batch in zip(self.paths, self.batches, strict=True):
            here, there = storage.read_tensor(path, "near_duplicates").unbind(1)
            parts.append(torch.stack([torch.tensor(batch)[here], members[there]], 1))
        return torch.cat(parts)

    def write(self, number: int, comparison: Comparison, note: str) -> None:
        """Write the comparison of a batch, with what its file says of it."""
        image, other = comparison.near_duplicates.T.contiguous()
        here = torch.searchsorted(torch.tensor(self.batches[number]), image)
        there = torch.searchsorted(torch.tensor(self.members), other)
        placed = replace(comparison, near_duplicates=torch.stack([here, there], 1))
        storage.write_tensors(self.paths[number], placed.tensors(), note)

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


@dataclass(frozen=True)
class Earlier:
    """What is known of a set from a run of which it was a part, or whose part it is.

    method: as it was fitted then; contents: the images of that set; comparisons: of these; basis:
    what their files must be of (`name_basis`).
    """

    method: PatchClusterPlus
    contents: Sequence[str]
    comparisons: Comparisons
    basis: str

    def places(self, contents: Sequence[str]) -> list[int]:
        """Where images were in that set; -1: nowhere."""
        place = {content: i for i, content in enumerate(self.contents)}
        return [place.get(content, -1) for content in contents]

    def find_change(self, method: Method, contents: Sequence[str]) -> BankChange | None:
        """How the bank of a method fitted on a set came from the earlier one; None: in no way."""
        assert isinstance(method, PatchClusterPlus)  # as it was then
        if method.chosen_ is None or self.method.chosen_ is None:
            return None
        new = {contents[image]: column for column, image in enumerate(method.chosen_.tolist())}
        old = [self.contents[image] for image in self.method.chosen_.tolist()]
        return method.change_from(self.method, torch.tensor([new.get(one, -1) for one in old]))

    def read(self, image: int) -> Trace | None:
        """The trace of the comparison of an image of that set; None: it is not kept."""
        number = self.comparisons.places[image][0]
        path, batch = self.comparisons.paths[number], self.comparisons.batches[number]
        if self._notes(path) != self._names[number]:
            return None
        trace, at = self._read(number), image - batch[0]
        if trace is None:
            return None
        bounds = [np.cumsum([0, *of_stage]).tolist() for of_stage in self._rows(batch)]
        return trace.part(slice(at, at + 1), [slice(b[at], b[at + 1]) for b in bounds])

    def find(self, name: str) -> Path | None:
        """The file that has the comparisons with that name; None: there is none that can be it."""
        number = self._numbers.get(name)
        if number is None or self._notes(self.comparisons.paths[number]) != name:
            return None
        return self.comparisons.paths[number] if self._read(number) is not None else None

    @property
    def is_whole(self) -> bool:
        """Whether all files say what they must: those of another version do not."""
        pairs = zip(self.comparisons.paths, self._names, strict=True)
        return all(self._notes(path) == name for path, name in pairs)

    @functools.cached_property
    def _names(self) -> list[str]:
        """What the file of each batch must say."""
        return [
            name_batch(self.basis, [self.contents[image] for image in batch])
            for batch in self.comparisons.batches
        ]

    @functools.cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self._names)}

    def _rows(self, batch: Sequence[int]) -> list[tuple[int, ...]]:
        """Rows of each stage that the images of a batch have."""
        counts = (self.method.trace_rows(self.comparisons.counts[image]) for image in batch)
        return list(zip(*counts, strict=True))

    @functools.cached_property
    def _read(self) -> Callable[[int], Trace | None]:
        """The trace of a batch; None: there is none, or none that can be of it."""

        def read(number: int) -> Trace | None:
            batch = self.comparisons.batches[number]
            try:
                found = read_comparison(self.comparisons.paths[number])
            except (KeyError, TypeError):  # tensors of other names
                return None
            rows, bank = [sum(of_stage) for of_stage in self._rows(batch)], len(self.method.shapes_)
            trace, patches = found.trace, sum(self.comparisons.counts[i] for i in batch)
            sound = (
                trace is not None
                and trace.is_sound(len(batch), rows, bank)
                and found.is_sound(patches, len(rows), len(self.method.bank_))
                and _lie_within(found.near_duplicates, len(batch), bank)
            )
            return trace if sound else None

        return functools.lru_cache(maxsize=2)(read)

    @functools.cached_property
    def _notes(self) -> Callable[[Path], Any]:
        return functools.cache(storage.read_note)


def _is_there(path: Path, name: str, earlier: Earlier | None) -> bool:
    """Whether a file has the comparisons with a name; if an earlier run has them, it gets them."""
    if storage.read_note(path) == name:
        return True
    same = None if earlier is None else earlier.find(name)
    if same is not None:
        storage.share(same, path)
    return same is not None


def _lie_within(pairs: Tensor, *limits: int) -> bool:
    """Whether pairs int64 [d, 2] can be of places among so many of either kind."""
    return (
        pairs.dtype == torch.int64
        and pairs.shape[1:] == (2,)
        and bool(((pairs >= 0) & (pairs < torch.tensor(limits))).all())
    )


def _restore(blank: Method, state: Mapping[str, Any]) -> "Search":
    with warnings.catch_warnings():
        # Shared arrays cannot be written to; nor does anything write to what was learned.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        tensors = {name: torch.from_numpy(values) for name, values in state.items()}
    return Search(copy.copy(blank).restore(tensors), blank, torch.device("cpu"))


@dataclass(frozen=True)
class Query:
    """An image of the set: its patches, where its blocks lie, how it was compared before."""

    image: int
    grid: Tensor
    blocks: Tensor | None
    earlier: Trace | None = None


@dataclass(frozen=True)
class Search:
    """Patches against the bank of a fitted method; the work of a batch of images (see `Work`).

    blank: the method before it was fitted. change: how its bank came from an earlier one.
    """

    method: Method
    blank: Method
    device: torch.device
    change: BankChange | None = None
    ahead: ClassVar[int] = 0  # a batch at a time: the patches of large images take memory

    @property
    def beside(self) -> bool:
        return self.change is not None

    def prepare(self, item: Query) -> Query:
        return item

    def finish(self, ready: Sequence[Query]) -> Comparison:
        return join(in_halves(self._compare, ready, "search"))

    def _compare(self, queries: Sequence[Query]) -> Comparison:
        grids = [query.grid.to(self.device) for query in queries]
        images = [query.image for query in queries]
        blocks = [query.blocks for query in queries if query.blocks is not None]  # of all or none
        earlier = [query.earlier for query in queries]
        if self.change is not None and any(trace is not None for trace in earlier):
            assert isinstance(self.method, PatchClusterPlus)
            part = self.method.compare_again(grids, images, blocks or None, earlier, self.change)
        else:
            part = self.method.compare(grids, images, blocks or None)
        return Comparison.of_tensors({n: tensor.cpu() for n, tensor in part.tensors().items()})

    def on(self, device: torch.device) -> Self:
        state = {name: tensor.to(device) for name, tensor in self.method.state().items()}
        return type(self)(copy.copy(self.blank).restore(state), self.blank, device)

    def __reduce__(self) -> tuple[Any, ...]:
        """By arrays, which workers of one node can share, and without what follows from them."""
        state = {name: tensor.cpu().numpy() for name, tensor in self.method.state().items()}
        return _restore, (self.blank, state)


@dataclass(frozen=True)
class Comparer:
    """Compares every image of a set with the set.

    load: network size -> patches of each content, in the order of the set (see `Loaded`). common
    names all that the result depends on beside the contents.
    """

    folder: Path
    image_set: ImageSet
    load: Callable[[int], Loaded]
    device: torch.device
    common: str
    progress: Callable[[str, int, int], None]
    workers: Workers
    earlier: Mapping[int, Earlier] = field(default_factory=dict)  # of network sizes

    def run(self, size: int, method: Method, rule: ImageScore) -> Compared:
        """Fit the method on the patches of one network size and score every image."""
        patches, packings = self.load(size)
        blank = copy.copy(method)
        self._fit(size, method, patches)
        counts = patches.counts
        known = self.earlier.get(size)
        change = None if known is None else known.find_change(method, self.image_set.shas)
        search = Search(method, blank, self.device, change)
        basis = name_basis(self.common, method, self.image_set.shas)
        compared = self._compare(size, search, basis, patches, packings)
        method.calibrate(compared.select(method.bank_rows(counts)))
        scores: list[Tensor] = []
        for part, batch in zip(compared, compared.batches, strict=True):
            scores += torch.split(method.grade(part), [counts[image] for image in batch])
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
            known is not None and known.basis == basis and known.is_whole,
        )

    def _fit(self, size: int, method: Method, patches: Grids) -> None:
        path = runfolder.fitted_path(self.folder, size)
        name = _name(self.common, self.image_set.shas)
        if storage.read_note(path) == name:
            state, _ = storage.read_tensors(path)
        else:
            if size in self.earlier:
                known = self.earlier[size]
                method.recall(known.method, known.places(self.image_set.shas))
            method.fit(
                Grids(patches.shapes, lambda image: patches[image].to(self.device)),
                self.image_set.keys,
                lambda done, total: self.progress("bank", done, total),
            )
            state = method.state()
            storage.write_tensors(path, state, name)
            return
        method.restore({name: tensor.to(self.device) for name, tensor in state.items()})

    def _compare(
        self,
        size: int,
        search: Search,
        basis: str,
        patches: Grids,
        packings: list[Packing | None],
    ) -> Comparisons:
        contents, earlier = self.image_set.shas, self.earlier.get(size)
        batches = list(make_batches(patches.counts, self.image_set.keys))
        paths = [runfolder.comparison_path(self.folder, size, n) for n in range(len(batches))]
        compared = Comparisons(paths, batches, patches.counts, search.method.members)
        names = [name_batch(basis, [contents[image] for image in batch]) for batch in batches]
        pending = [n for n, path in enumerate(paths) if not _is_there(path, names[n], earlier)]
        finished = len(patches) - sum(len(batches[n]) for n in pending)
        self.progress("compare", finished, len(patches))

        places = [-1] * len(patches)
        if search.change is not None:
            places = self.earlier[size].places(contents)

        def queries(batch: Sequence[int]) -> list[Query]:
            masks = [packings[i] for i in batch]  # of all images, or of none
            blocks = [None if mask is None else mask.blocks for mask in masks]
            known = [self.earlier[size].read(places[i]) if places[i] >= 0 else None for i in batch]
            return [
                Query(i, patches[i], b, k) for i, b, k in zip(batch, blocks, known, strict=True)
            ]

        jobs = ((n, queries(batches[n])) for n in pending)
        for n, comparison in self.workers.map(search, jobs):
            compared.write(n, comparison, names[n])
            finished += len(batches[n])
            self.progress("compare", finished, len(patches))
        return compared

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
