"""The images of one category as the network sees them, made once for all methods.

The paper's input rule (section 5, implementation details): the image is resized to 256 x 256, which
does not keep its aspect, and its centre of 224 x 224 is cut out; masks go the same way.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..datasets import Category, read_shown
from ..errors import InputError
from ..images.decode import Pixels, load_image, read_header
from ..images.inputs import stamp
from ..images.window import Windows, choose_windows
from ..network.backbones import Backbone
from ..network.patches import patch_grid
from ..pipeline.extraction import Features, Made, make_batches
from ..pipeline.survey import Candidate, survey_files
from ..pipeline.workers import Batch, LocalWorkers, Note, run_stage
from ..runs import storage
from ..settings import Settings

# Its layout of patches keeps what the network gave, of which those of all methods can be made.
_KEEPING_METHOD = "reverse-distillation"


@dataclass(frozen=True)
class InputRule:
    """Images become size x size pixels; `crop`: the centre of a picture 8/7 as large."""

    size: int
    crop: bool

    @property
    def resized(self) -> int:
        return round(self.size * 8 / 7) if self.crop else self.size

    @property
    def centre(self) -> tuple[slice, slice]:
        """Slices of a picture [resized, resized, ...] that the network sees."""
        margin = (self.resized - self.size) // 2
        return slice(margin, margin + self.size), slice(margin, margin + self.size)

    def cut_mask(self, mask: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
        """Bring a mask bool [h, w] to what the network sees, bool [size, size]; None: empty."""
        if mask is None:
            return np.zeros((self.size, self.size), bool)
        side = (self.resized, self.resized)
        resized = Image.fromarray(mask).resize(side, Image.Resampling.NEAREST)
        return np.asarray(resized)[self.centre]

    def __str__(self) -> str:
        cut = f", centre cropped to {self.size} x {self.size}" if self.crop else ""
        return f"resized to {self.resized} x {self.resized}{cut}"


@dataclass(frozen=True)
class ImageInfo:
    """Path, truth and size of one image of a category."""

    path: str
    sha256: str
    anomalous: bool
    has_mask: bool
    pixels: int  # of the original
    covered: float  # share of it that is anomalous


@dataclass(frozen=True)
class Images:
    """All images of a category, in the order of their contents.

    masks bool [size, size], as cut; stages: the file that holds those of each image, and its name
    there.
    """

    category: Category
    infos: list[ImageInfo]
    masks: list[NDArray[np.bool_]]
    stages: list[tuple[Path, str]]
    rule: InputRule
    windows: Windows

    def patches(self, settings: Settings, which: Sequence[int]) -> list[Tensor]:
        """Patches float16 [h, w, c] of some images, as a scan with these settings makes them."""
        grids = []
        for path, name in (self.stages[i] for i in which):
            stages = [storage.read_tensor(path, f"{name}.{s}")[None] for s in settings.strides]
            grids.append(patch_grid(stages, settings.layout)[0].half())
        return grids

    def shown(self, image: int) -> NDArray[np.uint8]:
        """An image as the network sees it, uint8 [size, size, 3]."""
        path, side = self.infos[image].path, self.rule.resized
        pixels = load_image(path, read_header(path), [(side, side)], self.windows).pixels[0]
        return np.rint(pixels[self.rule.centre]).astype(np.uint8)


@dataclass(frozen=True)
class _Cut(Features):
    """Files -> what the network gives of their centres."""

    rule: InputRule

    def patches(self, pixels: Sequence[Pixels], size: int) -> list[Tensor]:
        return super().patches([one[self.rule.centre] for one in pixels], size)


def name_state(category: Category) -> str:
    """Name the images of a category and the state that they are in."""
    files = [[s.path, *stamp(s.path), *map(str, s.truth.masks)] for s in category.samples]
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


def load_images(
    category: Category,
    folder: Path,
    network: Backbone,
    rule: InputRule,
    done: Callable[[int, int], None],
) -> Images:
    """Load a category, and make the stages of its images that a folder does not hold yet.

    done(images, of) is called as they are made. Raises InputError if an image or a mask cannot be
    read.
    """
    candidates = _survey(category, rule, network)
    windows = choose_windows(one.header.spread for one in candidates)
    work = _Cut(network, Settings(method=_KEEPING_METHOD, size=(rule.size,)), windows, rule)
    batches = [
        Batch(folder / f"{number:06d}.safetensors", _key(work, batch), len(batch), batch.copy)
        for number, batch in enumerate(make_batches(candidates))
    ]
    notes = run_stage(
        batches,
        work,
        LocalWorkers(torch.get_num_threads()),
        lambda number, made: _keep(network, batches[number].items(), made),
        done,
    )
    contents = [content for note in notes for content in note["contents"]]
    files = [batch.path for batch in batches for _ in range(batch.images)]
    infos, masks = [], []
    for sample, candidate, content in zip(category.samples, candidates, contents, strict=True):
        header = candidate.header
        mask = read_shown(sample.truth, sample.path, header.width, header.height)
        known = sample.truth.anomalous, mask is not None, header.width * header.height
        covered = 0.0 if mask is None else float(mask.mean())
        infos.append(ImageInfo(sample.path, content, *known, covered))
        masks.append(rule.cut_mask(mask))
    # Methods see a set in an order that only the contents decide.
    order = sorted(range(len(infos)), key=lambda i: (infos[i].sha256, infos[i].path))
    return Images(
        Category(category.name, [category.samples[i] for i in order]),
        [infos[i] for i in order],
        [masks[i] for i in order],
        [(files[i], str(i)) for i in order],
        rule,
        windows,
    )


def _survey(category: Category, rule: InputRule, network: Backbone) -> list[Candidate]:
    paths, threads = [sample.path for sample in category.samples], torch.get_num_threads()
    survey = survey_files(paths, Settings(), network.strides, threads, lambda *_: None)
    for one in survey.skipped.values():
        raise _unreadable(one.path, one.reason)
    shapes = ((rule.resized, rule.resized),)
    return [dataclasses.replace(one, inputs=shapes) for one in survey.candidates]


def _key(work: _Cut, batch: Sequence[Candidate]) -> Any:
    """Name all that the stages of a batch depend on."""
    return {
        "weights": work.backbone.weights_hash,
        "stages": work.backbone.indices,
        "rule": dataclasses.asdict(work.rule),
        "windows": work.windows,
        "files": [[one.path, *one.stamp] for one in batch],
    }


def _keep(
    network: Backbone, batch: Sequence[Candidate], made: Sequence[Made | str]
) -> tuple[dict[str, Tensor], Note]:
    """Name the stages [c, h, w] of each image of a batch, and its content."""
    tensors: dict[str, Tensor] = {}
    contents = []
    for candidate, one in zip(batch, made, strict=True):
        if isinstance(one, str):
            raise _unreadable(candidate.path, one)
        for grid in one.grids or []:
            stages = torch.split(grid.permute(2, 0, 1), network.channels)
            for wanted, stride, stage in zip(network.wanted, network.strides, stages, strict=True):
                step = stride // network.strides[0]  # on the grid of the first, cells are repeated
                tensors[f"{candidate.id}.{wanted}"] = stage[:, ::step, ::step]
        contents.append(one.image.sha256)
    return tensors, {"contents": contents}


def _unreadable(path: str, reason: str) -> InputError:
    return InputError(f"cannot read {path!r}: {reason}. Mend or remove it")
