"""A set's patches on disk -> the fitted method, and every image's score grid.

Comparisons go to disk in batches, so that a later start can take them up again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from . import runfolder, storage
from .extraction import patches_name
from .labels import Label, Labels
from .maps import Floats, ImageScore
from .methods import Comparison, Method
from .methods.base import NEIGHBOURS_KEPT, join, make_batches
from .runfolder import ImageRecord


@dataclass(frozen=True)
class ImageSet:
    """The images of a set, each content once, in an order that only the contents decide."""

    records: dict[str, list[ImageRecord]]  # sha256, ascending -> the files with that content

    @classmethod
    def of(cls, images: Sequence[ImageRecord]) -> Self:
        records: dict[str, list[ImageRecord]] = {}
        for image in sorted(images, key=lambda image: (image.sha256, image.id)):
            records.setdefault(image.sha256, []).append(image)
        return cls(records)

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
    (row-major), distance float32 [p, 3]; nearest first.
    """

    image: Tensor
    patch: Tensor
    distance: Tensor


@dataclass(frozen=True)
class Compared:
    """What the comparison at one network size gave; lists are in the order of the set."""

    size: int
    grids: list[Floats]  # scores float32 [h, w]
    explanations: list[Explanations]
    method: Method  # fitted
    image_scores: list[float] | None  # by a rule of the method's own, if one was asked for


@dataclass(frozen=True)
class Comparer:
    """Compares every image of a set with the set.

    load: network size -> patches [h, w, c] of each content, in the order of the set. digest names
    all that the result depends on.
    """

    folder: Path
    image_set: ImageSet
    load: Callable[[int], list[Tensor]]
    device: torch.device
    digest: str
    progress: Callable[[str, int, int], None]

    def run(self, size: int, method: Method, rule: ImageScore) -> Compared:
        """Fit the method on the patches of one network size and score every image."""
        patches = self.load(size)
        self._fit(size, method, patches)
        counts = [grid.shape[0] * grid.shape[1] for grid in patches]
        comparison = self._compare(size, method, patches)
        method.calibrate(comparison.select(method.bank_rows(counts)))
        scores = torch.split(method.grade(comparison), counts)
        image_scores = None
        if rule in method.image_scores:
            image_scores = method.score_images(rule, patches, scores, range(len(counts))).tolist()
        return Compared(
            size,
            [s.view(g.shape[:2]).numpy() for s, g in zip(scores, patches, strict=True)],
            self._explain(method, comparison, counts),
            method,
            image_scores,
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

    def _compare(self, size: int, method: Method, patches: list[Tensor]) -> Comparison:
        parts = []
        batches = list(make_batches([grid.shape[0] * grid.shape[1] for grid in patches]))
        for number, batch in enumerate(batches):
            path = runfolder.comparison_path(self.folder, size, number)
            if storage.read_note(path) == self.digest:
                tensors, _ = storage.read_tensors(path)
            else:
                part = method.compare([patches[i].to(self.device) for i in batch], batch)
                tensors = {name: tensor.cpu() for name, tensor in vars(part).items()}
                storage.write_tensors(path, tensors, self.digest)
            parts.append(Comparison(**tensors))
            self.progress("compare", batch[-1] + 1, len(patches))
        return join(parts)

    def _explain(
        self, method: Method, comparison: Comparison, counts: list[int]
    ) -> list[Explanations]:
        rows = comparison.neighbours[:, :NEIGHBOURS_KEPT]
        image = method.bank_image_.cpu()[rows].int()
        patch = method.bank_patch_.cpu()[rows].int()
        distance = comparison.neighbour_distances[:, :NEIGHBOURS_KEPT]
        parts = (torch.split(t, counts) for t in (image, patch, distance))
        return [Explanations(*part) for part in zip(*parts, strict=True)]


def load_batches(folder: Path, image_set: ImageSet, size: int) -> list[Tensor]:
    """Patches float16 [h, w, c] of each content, from the batches of a scan in progress."""
    wanted = {records[0].id: sha for sha, records in image_set.records.items()}
    found: dict[str, Tensor] = {}
    for path in runfolder.batch_paths(folder):
        tensors, note = storage.read_tensors(path)
        for image in note["images"]:
            if image["id"] in wanted:
                found[image["sha256"]] = tensors[patches_name(size, image["id"])]
    return [found[sha] for sha in image_set.shas]
