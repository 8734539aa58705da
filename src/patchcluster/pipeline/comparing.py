"""A set's patches on disk -> the fitted method, and every image's score grid.

Comparisons go to disk in batches, so that a later start can take them up again. Patches and
comparisons are read from there when they are needed: what is in memory at a time is a batch, and
the bank.
"""

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from .. import __version__
from ..methods import Comparison, Method
from ..methods.base import NEIGHBOURS_KEPT, join
from ..methods.grids import Grids, Lazy, batch_by_patches
from ..network.devices import in_halves
from ..runs import runfolder, storage
from ..runs.info import RunInfo
from ..scores.groups import Describe
from ..scores.maps import Floats
from .image_set import ImageSet
from .job import Job
from .loading import Packing, describe_whole, load_patches
from .workers import Batch, Workers, run_stage

_FORMAT = 6  # of the files of comparisons


@dataclass(frozen=True)
class Explanations:
    """For each patch of an image the three places of other images that it was compared with.

    image int32 [p, 3] is an index in the set, patch int32 [p, 3] a place in that image's grid
    (row-major), distance float32 [p, 3]; nearest first. Patches that are not scored have image -1.
    """

    image: Tensor
    patch: Tensor
    distance: Tensor

    @classmethod
    def of(
        cls,
        images: Tensor,
        places: Tensor,
        rows: Tensor,
        distances: Tensor,
        packing: Packing | None,
    ) -> Self:
        """Explain the patches of an image by rows [p, 3] of the bank, at distances [p, 3].

        images, places int64 [m]: of which image, and where in its grid, each row of the bank is.
        """
        rows, distances = rows.to(images.device), distances.cpu()
        image, patch = images[rows].int().cpu(), places[rows].int().cpu()
        if packing is None:
            return cls(image, patch, distances)
        count = packing.shape[0] * packing.shape[1]
        unpacked = []
        for values, filler in ((image, -1), (patch, -1), (distances, torch.nan)):
            whole = values.new_full((count, values.shape[1]), filler)
            whole[packing.cells] = values
            unpacked.append(whole)
        return cls(*unpacked)


@dataclass(frozen=True)
class Compared:
    """The comparison at one network size; lists are in the order of the set."""

    size: int
    grids: list[Floats]  # scores float32 [h, w]; NaN where a patch is not scored
    explanations: Sequence[Explanations]
    method: Method  # fitted
    image_scores: list[float] | None  # by a rule of the method's own, if one was asked for
    near_duplicates: list[list[int]]  # groups of images, ascending
    describe: Describe  # what the patches of an image look like


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
            yield Comparison(**storage.read_tensors(path)[0])

    def select(self, rows: Tensor) -> Comparison:
        """The comparisons of some of all patches, as `Comparison.select` gives them."""
        ordered = rows.sort()
        sizes = [sum(self.counts[image] for image in batch) for batch in self.batches]
        starts = torch.tensor([0, *sizes]).cumsum(0)
        places = torch.searchsorted(ordered.values, starts).tolist()
        found: dict[str, Tensor] = {}
        for part, start, (first, last) in zip(self, starts, pairwise(places), strict=False):
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
        """Rows of the bank, and their distances, that explain an image's patches, [p, 3] each."""
        path, start = self._places[image]
        rows = slice(start, start + self.counts[image])
        neighbours, distances = (
            storage.read_tensor(path, name, rows) for name in ("neighbours", "neighbour_distances")
        )
        return neighbours[:, :NEIGHBOURS_KEPT], distances[:, :NEIGHBOURS_KEPT]

    @cached_property
    def _places(self) -> list[tuple[Path, int]]:
        """The file of each image, and where its patches begin there."""
        places = []
        for path, batch in zip(self.paths, self.batches, strict=True):
            ends = accumulate(self.counts[image] for image in batch)
            places += [(path, e - self.counts[i]) for i, e in zip(batch, ends, strict=True)]
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
    """Patches against the bank of a fitted method, a task (see `workers.Task`)."""

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


def compare_all(job: Job, image_set: ImageSet, workers: Workers) -> list[Compared]:
    """Compare the images of a set with each other, at each network size."""
    key = _key(job.info, image_set)
    compared = []
    for size in job.settings.size:
        with job.timed("compare"):
            compared.append(_compare_at(job, image_set, size, key, workers))
    groups = max(compared, key=lambda result: result.size).near_duplicates
    job.info.near_duplicates = image_set.name_groups(groups)
    return compared


def _key(info: RunInfo, image_set: ImageSet) -> str:
    """Name all that the files of a comparison depend on."""
    labels = image_set.labels(info.labels)
    identity = [
        __version__,
        _FORMAT,
        info.settings,
        info.backbone["sha256"],
        labels if any(labels) else [],
        image_set.shas,
    ]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def _compare_at(job: Job, image_set: ImageSet, size: int, key: str, workers: Workers) -> Compared:
    """Fit the method on the patches of one network size and score every image."""
    patches, packings = load_patches(job, image_set, size)
    method, counts = _fit(job, image_set, size, key, patches), patches.counts
    comparisons = _compare(job, size, key, method, patches, packings, workers)
    method.calibrate(comparisons.select(method.bank_rows(counts)))
    scores: list[Tensor] = []
    for part, batch in zip(comparisons, comparisons.batches, strict=True):
        scores += torch.split(method.to_scores(part), [counts[image] for image in batch])
    image_scores = None
    if job.settings.image_score in method.facts.image_scores:
        image_scores = method.score_images(patches, scores, range(len(counts))).tolist()
    return Compared(
        size,
        [
            to_grid(s, shape[:2], packing)
            for s, shape, packing in zip(scores, patches.shapes, packings, strict=True)
        ],
        _explain(method, comparisons, packings),
        method,
        image_scores,
        _group(comparisons.near_duplicates(), len(counts)),
        lambda image: describe_whole(method, patches, image, packings[image]),
    )


def _fit(job: Job, image_set: ImageSet, size: int, key: str, patches: Grids) -> Method:
    """Fit the method, or take it as it was fitted before."""
    method, device = job.make_method(), job.devices[0]
    path = runfolder.fitted_path(job.folder, size)
    if storage.read_note(path) == key:
        read, _ = storage.read_tensors(path)
        state = {name: tensor.to(device) for name, tensor in read.items()}
        return type(method).from_state(state, **method.parameters())
    method.fit(
        Grids(patches.shapes, lambda image: patches[image].to(device)),
        image_set.keys,
        image_set.labels(job.info.labels),
        job.step("bank"),
    )
    storage.write_tensors(path, method.state(), key)
    return method


def _compare(
    job: Job,
    size: int,
    key: str,
    method: Method,
    patches: Grids,
    packings: list[Packing | None],
    workers: Workers,
) -> Comparisons:
    """Compare every image with the bank, batch by batch."""
    batches = list(batch_by_patches(patches.counts))
    paths = [runfolder.comparison_path(job.folder, size, n) for n in range(len(batches))]

    def queries(batch: Sequence[int]) -> list[Query]:
        masks = [packings[i] for i in batch]  # of all images, or of none
        blocks = [None if mask is None else mask.blocks for mask in masks]
        return [Query(i, patches[i], b) for i, b in zip(batch, blocks, strict=True)]

    run_stage(
        [  # a file says of which images it is too: another version may cut other batches
            Batch(path, f"{key} {batch[0]}-{batch[-1]}", len(batch), partial(queries, batch))
            for path, batch in zip(paths, batches, strict=True)
        ],
        Search(method, job.devices[0]),
        workers,
        lambda _, comparison: (comparison.tensors(), {}),
        job.step("compare"),
    )
    return Comparisons(paths, batches, patches.counts)


def to_grid(scores: Tensor, shape: Sequence[int], packing: Packing | None) -> Floats:
    """Scores of an image's patches -> float32 [h, w]; NaN where its packing has none."""
    return scores.view(*shape).numpy() if packing is None else packing.unpack(scores)


def _explain(
    method: Method, comparisons: Comparisons, packings: list[Packing | None]
) -> Sequence[Explanations]:
    """Explain the patches of every image, by places in the images' own grids."""
    images, places = method.bank_image_.cpu(), method.bank_patch_.cpu()
    masked = [packing for packing in packings if packing is not None]
    if masked:
        places = torch.cat([p.cells for p in masked])[method.bank_rows(comparisons.counts)]
    return Lazy(
        len(packings),
        lambda image: Explanations.of(
            images, places, *comparisons.explained(image), packings[image]
        ),
    )


def _group(pairs: Tensor, images: int) -> list[list[int]]:
    """Pairs of images int64 [d, 2] -> the groups that they make, single images left out."""
    links = coo_array((torch.ones(len(pairs)), pairs.T.numpy()), shape=(images, images))
    groups: dict[int, list[int]] = {}
    for image, group in enumerate(connected_components(links, directed=False)[1].tolist()):
        groups.setdefault(group, []).append(image)
    return [group for group in groups.values() if len(group) > 1]
