"""The images of a set, each content once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from ..errors import InputError
from ..images.inputs import natural_key
from ..runs.info import ImageRecord, RunInfo
from ..scores.labels import Label, Labels


@dataclass(frozen=True)
class ImageSet:
    """The images of a set, each content once, in an order that only the contents decide."""

    records: dict[str, list[ImageRecord]]  # sha256 and mask, ascending -> the files that share them

    @classmethod
    def of(cls, images: Sequence[ImageRecord]) -> Self:
        """Group images, given in input order, by content."""
        records: dict[str, list[ImageRecord]] = {}
        for image in images:
            records.setdefault(image.sha256 + image.roi, []).append(image)
        return cls(dict(sorted(records.items())))

    @property
    def firsts(self) -> list[ImageRecord]:
        """The first file of each content."""
        return [copies[0] for copies in self.records.values()]

    @property
    def shas(self) -> list[str]:
        return list(self.records)

    def labels(self, by_path: Labels) -> list[Label | None]:
        """Return the label of each content, from those of its files; anomalous wins over normal."""
        said = [{by_path.get(one.path) for one in copies} for copies in self.records.values()]
        order: tuple[Label, ...] = ("anomalous", "normal")
        return [next((label for label in order if label in of), None) for of in said]

    @property
    def keys(self) -> list[int]:
        """Seeds for random choices about each image, from its content."""
        return [int(sha[:16], 16) for sha in self.records]

    def name_groups(self, groups: Sequence[Sequence[int]]) -> list[list[str]]:
        """Paths of groups of images, in input order; of copies the first."""
        paths = [image.path for image in self.firsts]
        named = [sorted((paths[image] for image in group), key=natural_key) for group in groups]
        return sorted(named, key=lambda group: natural_key(group[0]))


def join_images(images: Sequence[ImageRecord], info: RunInfo) -> ImageSet:
    """Make a set of images, and say in run.json which have one content.

    Raises InputError if there is a single content.
    """
    image_set = ImageSet.of(images)
    if len(image_set.shas) < 2:
        raise InputError(
            f"{len(images)} of the files are images that can be read, and "
            f"{len(image_set.shas)} differ: a blind scan compares images with each other, give "
            "at least 2"
        )
    contents = image_set.records.values()
    info.duplicates = [[one.path for one in copies] for copies in contents if len(copies) > 1]
    return image_set
