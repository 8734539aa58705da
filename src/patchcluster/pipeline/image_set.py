"""The images of a set, each content once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from ..runs.info import ImageRecord
from ..scores.labels import Label, Labels


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
