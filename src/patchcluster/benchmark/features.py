"""The images of one category -> stages of the network and masks, made once for all methods.

The paper's input rule (section 5, implementation details): the image is resized to 256 x 256, which
does not keep its aspect, and its centre of 224 x 224 is cut out; masks go the same way.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..datasets import Category, Sample, count_pixels, read_truth
from ..errors import InputError, UnreadableImage
from ..images.decode import Header, Pixels, deep_range, load_image, survey
from ..images.inputs import stamp
from ..network.backbones import Backbone
from ..network.patches import Layout, patch_grid
from ..runs import storage

_BATCH = 16  # images


@dataclass(frozen=True)
class InputRule:
    """Images become size x size pixels; `crop`: the centre of a picture 8/7 as large."""

    size: int
    crop: bool

    @property
    def resized(self) -> int:
        return round(self.size * 8 / 7) if self.crop else self.size

    @property
    def window(self) -> slice:
        margin = (self.resized - self.size) // 2
        return slice(margin, margin + self.size)

    def __str__(self) -> str:
        cut = f", centre cropped to {self.size} x {self.size}" if self.crop else ""
        return f"resized to {self.resized} x {self.resized}{cut}"


@dataclass(frozen=True)
class ImageInfo:
    """What is known of one image of a category."""

    path: str
    sha256: str
    train: bool
    anomalous: bool
    has_mask: bool
    pixels: int  # of the original
    anomalous_pixels: int


@dataclass(frozen=True)
class Features:
    """All images of a category, in the order of their contents.

    stages float16 [n, c, h, w], one tensor for each of `strides`; masks bool [n, size, size], as
    cropped.
    """

    category: Category
    images: list[ImageInfo]
    strides: Sequence[int]
    stages: list[Tensor]
    masks: Tensor
    ranges: dict[str, list[float]]  # of deep images, see `images.deep_range`

    def patches(
        self, layout: Layout, strides: Sequence[int], indices: Sequence[int]
    ) -> list[Tensor]:
        """Patches float16 [h, w, c] of some images, of the stages of some strides."""
        stages = [self.stages[self.strides.index(stride)] for stride in strides]
        parts = []
        for i in range(0, len(indices), _BATCH):
            batch = torch.tensor(indices[i : i + _BATCH])
            parts += list(patch_grid([stage[batch] for stage in stages], layout).half())
        return parts


class FeatureStore:
    """Features of categories on disk, one file each."""

    def __init__(self, folder: Path, backbone: Backbone, rule: InputRule, threads: int) -> None:
        self.folder = folder
        self.backbone = backbone
        self.rule = rule
        self.threads = threads

    def load(self, category: Category, done: Callable[[int, int], None]) -> Features:
        """Features of a category, from the disk if they are there."""
        path = self.folder / f"{category.name}.safetensors"
        identity = self._features_identity(category)
        if (storage.read_note(path) or {}).get("identity") != identity:
            self._make(category, path, identity, done)
        tensors, note = storage.read_tensors(path)
        return Features(
            Category(category.name, [category.samples[i] for i in note["order"]]),
            [ImageInfo(**image) for image in note["images"]],
            self.backbone.wanted,
            [tensors[f"stage{i}"] for i in range(len(self.backbone.channels))],
            tensors["masks"].bool(),
            note["ranges"],
        )

    def identity(self, category: Category) -> str:
        """Names the images of a category and their state."""
        files = [[s.path, *stamp(s.path), *map(str, s.truth.masks)] for s in category.samples]
        return hashlib.sha256(json.dumps(files).encode()).hexdigest()

    def _features_identity(self, category: Category) -> str:
        rule, network = asdict(self.rule), [self.backbone.weights_hash, self.backbone.strides]
        return json.dumps([self.identity(category), rule, network])

    def _make(
        self, category: Category, path: Path, identity: str, done: Callable[[int, int], None]
    ) -> None:
        samples = category.samples
        parts: list[list[Tensor]] = []
        images: list[ImageInfo] = []
        masks: list[NDArray[np.bool_]] = []
        with ThreadPoolExecutor(self.threads, "decode") as pool:
            headers = list(pool.map(_survey, samples))
            ranges = deep_range(headers)
            loaded = pool.map(lambda s, h: self._load(s, h, ranges), samples, headers)
            for i in range(0, len(samples), _BATCH):
                batch = [next(loaded) for _ in samples[i : i + _BATCH]]
                stages = self.backbone.features([pixels for pixels, _, _ in batch])
                parts.append([stage.half().cpu() for stage in stages])
                images += [info for _, info, _ in batch]
                masks += [mask for _, _, mask in batch]
                done(len(images), len(samples))
        # Methods see a set in an order that only the contents decide.
        order = sorted(range(len(images)), key=lambda i: (images[i].sha256, images[i].path))
        tensors = {
            f"stage{s}": torch.cat([part[s] for part in parts])[order]
            for s in range(len(self.backbone.channels))
        }
        tensors["masks"] = torch.from_numpy(np.stack([masks[i] for i in order])).to(torch.uint8)
        note = {
            "identity": identity,
            "order": order,
            "ranges": ranges,
            "images": [asdict(images[i]) for i in order],
        }
        storage.write_tensors(path, tensors, note)

    def _load(
        self, sample: Sample, header: Header, ranges: dict[str, list[float]]
    ) -> tuple[Pixels, ImageInfo, NDArray[np.bool_]]:
        side, window = self.rule.resized, self.rule.window
        with _naming(sample):
            image = load_image(sample.path, header, [(side, side)], ranges)
        mask = read_truth(sample.truth)
        info = ImageInfo(
            sample.path,
            image.sha256,
            sample.train,
            sample.truth.anomalous,
            mask is not None,
            *count_pixels(header, mask),
        )
        resized = np.zeros((side, side), bool)
        if mask is not None:
            shown = Image.fromarray(mask)
            resized = np.asarray(shown.resize((side, side), Image.Resampling.NEAREST))
        return image.pixels[0][window, window], info, resized[window, window]


def _survey(sample: Sample) -> Header:
    with _naming(sample):
        return survey(sample.path)


@contextmanager
def _naming(sample: Sample) -> Iterator[None]:
    try:
        yield
    except UnreadableImage as error:
        raise InputError(f"cannot read {sample.path!r}: {error}. Mend or remove it") from error


def read_shown(path: str, rule: InputRule, ranges: dict[str, list[float]]) -> NDArray[np.uint8]:
    """An image as the network sees it, uint8 [size, size, 3], for figures."""
    side = rule.resized
    pixels: Any = load_image(path, survey(path), [(side, side)], ranges).pixels[0]
    return np.rint(pixels[rule.window, rule.window]).astype(np.uint8)  # type: ignore[no-any-return]
