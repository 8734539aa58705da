"""Score grids -> maps of one run's images: with their frames and regions of interest."""

from dataclasses import dataclass
from pathlib import Path

from . import maps
from .maps import Bools, Floats, ImageScore
from .runfolder import read_mask_of
from .runinfo import ImageRecord


@dataclass(frozen=True)
class Framing:
    """How a run brings its score grids to its images; it holds the masks of what is scored."""

    folder: Path
    frame: int  # frames have about frame x frame pixels,
    native_from: int | None  # but grow with images that are scored at their own resolution

    def smooth(self, image: ImageRecord, grid: Floats) -> Floats:
        """Score grid [h, w] -> map float32 [h', w'] on the image's frame; NaN outside a region."""
        frame = self.frame * self._growth(image)
        return maps.smooth(grid, frame, image.width, image.height, self._mask(image))

    def score(self, image: ImageRecord, grid: Floats, rule: ImageScore) -> float:
        """The image score, by a rule that needs the map alone."""
        return maps.score_image(self.smooth(image, grid), rule, self._growth(image))

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
