"""Score grids -> maps of one run's images: with their frames and regions of interest."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from . import maps
from .levels import Levels, find_level
from .maps import Floats, ImageScore
from .masks import Bools
from .runfolder import read_mask_of
from .runinfo import ImageRecord
from .settings import Settings


@dataclass(frozen=True)
class Framing:
    """How a run brings its score grids to its images; it holds the masks of what is scored."""

    folder: Path
    frame: int  # frames have about frame x frame pixels,
    native_from: int | None  # but grow with images that are scored at their own resolution
    image_score: ImageScore
    levels: Levels | None = None  # of the set, if image scores depend on them

    @classmethod
    def of(cls, folder: Path, settings: Settings, levels: Mapping[str, float]) -> Self:
        """Of a run with some settings; levels: as run.json has them, empty if not used."""
        found = Levels(**levels) if levels else None
        return cls(folder, settings.frame, settings.native_from, settings.image_score, found)

    def smooth(self, image: ImageRecord, grid: Floats) -> Floats:
        """Score grid [h, w] -> map float32 [h', w'] on the image's frame; NaN outside a region."""
        frame = self.frame * self._growth(image)
        return maps.smooth(grid, frame, image.width, image.height, self._mask(image))

    def measure(self, image: ImageRecord, grid: Floats) -> tuple[float, float]:
        """The image score by its map alone, and the level of the map: see `levels`."""
        smoothed = self.smooth(image, grid)
        return self._map_score(image, smoothed), find_level(smoothed)

    def score(self, image: ImageRecord, grid: Floats) -> float:
        """The image score, by a rule that needs the map and the set's levels."""
        score, level = self.measure(image, grid)
        return score if self.levels is None else score - self.levels.offset(level)

    def map_threshold(
        self, image: ImageRecord, smoothed: Floats, score: float, threshold: float
    ) -> float:
        """What a map must exceed in a region, given the image's score and the scores' threshold."""
        if self.levels is None:
            return threshold
        return threshold + self._map_score(image, smoothed) - score

    def _map_score(self, image: ImageRecord, smoothed: Floats) -> float:
        rule: ImageScore = "top1%" if self.image_score == "contrast" else self.image_score
        return maps.score_image(smoothed, rule, self._growth(image))

    def to_image(
        self, image: ImageRecord, frame_map: Floats, size: tuple[int, int] | None = None
    ) -> Floats:
        """Map on the frame -> float32 [height, width]: of the image, or of another `size`."""
        height, width = size or (image.height, image.width)
        return maps.to_image(frame_map, width, height, self._mask(image, width, height))

    def _growth(self, image: ImageRecord) -> float:
        return maps.frame_growth(image.width, image.height, self.native_from)

    def _mask(
        self, image: ImageRecord, width: int | None = None, height: int | None = None
    ) -> Bools | None:
        return read_mask_of(self.folder, image, width, height)
