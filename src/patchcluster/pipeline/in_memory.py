"""A set that fits in memory: files -> patches -> scores and maps, with nothing on disk."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from ..images.decode import Header, load_image, read_header
from ..methods import Method
from ..network.backbones import Backbone
from ..scores.finish import Finished, SetBaseline, finish
from ..scores.groups import Describe
from ..scores.labels import Label
from ..scores.maps import Floats, round_as_stored
from ..settings import Settings
from .extraction import extract
from .results import score_grids
from .survey import input_shapes


def extract_files(
    paths: Sequence[str], network: Backbone, settings: Settings
) -> tuple[list[Tensor], list[Header]]:
    """Make the patches float16 [h, w, c] of image files of 8 bits, at the first network size.

    Raises UnreadableImage for a file that is no image.
    """
    headers = [read_header(path, settings.max_pixels) for path in paths]
    grids: list[Tensor] = []
    with torch.inference_mode():
        for path, header in zip(paths, headers, strict=True):
            shapes = input_shapes(header.width, header.height, settings, network.strides)
            pixels = load_image(path, header, shapes, {}).pixels
            grids += extract(pixels[:1], network, settings, settings.size[0])
    return grids, headers


def score_set(
    patches: Sequence[Tensor],
    headers: Sequence[Header],
    method: Method,
    settings: Settings,
    labels: Sequence[Label | None] | None = None,
) -> tuple[list[float], list[Finished]]:
    """Score a set blindly, as a scan does: patches [h, w, c] of each image -> image scores, maps.

    labels: what a person said of each image. Raises SettingError as `Method.fit_score`.
    """

    with torch.inference_mode():
        grids = [round_as_stored(grid.numpy()) for grid in method.fit_score(patches, labels)]
        return finish_set(grids, headers, settings, method.describe, labels or [])


def finish_set(
    blind: list[Floats],
    headers: Sequence[Header],
    settings: Settings,
    describe: Describe,
    labels: Sequence[Label | None] = (),
) -> tuple[list[float], list[Finished]]:
    """Make image scores and maps of the score grids [h, w] of a set, as a scan does.

    describe: what the patches of an image look like, for the labels.
    """

    def bring(grids: Sequence[Floats], baseline: SetBaseline | None = None) -> list[Finished]:
        rule = dataclasses.replace(settings.map_rule({}), baseline=baseline)
        return [finish(g, h.width, h.height, rule) for g, h in zip(grids, headers, strict=True)]

    found = score_grids(
        blind,
        lambda grids: [one.measure() for one in bring(grids)],
        settings.image_score,
        None,
        describe,
        labels,
    )
    return found.scores, bring(found.grids, found.baseline)
