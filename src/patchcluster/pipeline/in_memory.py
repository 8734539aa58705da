"""A set that fits in memory: files -> patches -> scores and maps, with nothing on disk."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from ..images.decode import Header, load_image, survey
from ..methods import Method
from ..network.backbones import Backbone
from ..scores.feedback import learn
from ..scores.finish import Finished, finish
from ..scores.labels import Label
from ..scores.levels import describe_levels
from ..scores.maps import Floats, round_as_stored
from ..settings import Settings
from .extraction import extract
from .survey import input_shapes


def extract_files(
    paths: Sequence[str], network: Backbone, settings: Settings
) -> tuple[list[Tensor], list[Header]]:
    """Make the patches float16 [h, w, c] of image files of 8 bits, at the first network size.

    Raises UnreadableImage for a file that is no image.
    """
    headers = [survey(path) for path in paths]
    grids: list[Tensor] = []
    with torch.inference_mode():
        for path, header in zip(paths, headers, strict=True):
            shapes = input_shapes(header.width, header.height, settings, network.strides)
            pixels = load_image(path, header, shapes, {}).pixels
            grids += extract(pixels[:1], network, settings, settings.size[0])
    return grids, headers


def score_set(
    grids: Sequence[Tensor],
    headers: Sequence[Header],
    method: Method,
    settings: Settings,
    labels: Sequence[Label | None] | None = None,
) -> list[Finished]:
    """Score a set blindly, as a scan does: patches [h, w, c] of each image.

    labels: what a person said of each image. Raises SettingError as `Method.fit_score`.
    """
    with torch.inference_mode():
        scores = [round_as_stored(grid.numpy()) for grid in method.fit_score(grids, labels)]
        finished = _finish_all(scores, headers, settings)
        if labels is None or not any(labels):
            return finished
        learnt = learn(scores, [one.score for one in finished], method.describe, labels)
    # What labels add raises the level of an image too: that is not taken off again.
    rule = finished[0].rule
    again = (finish(g, h.width, h.height, rule) for g, h in zip(learnt, headers, strict=True))
    return [
        dataclasses.replace(one, known_level=before.level)
        for one, before in zip(again, finished, strict=True)
    ]


def _finish_all(
    scores: Sequence[Floats], headers: Sequence[Header], settings: Settings
) -> list[Finished]:
    rule = settings.map_rule({})
    alone = [finish(g, h.width, h.height, rule) for g, h in zip(scores, headers, strict=True)]
    if settings.image_score != "contrast":
        return alone
    levels = describe_levels([one.level for one in alone])
    rule = dataclasses.replace(rule, levels=levels)
    return [dataclasses.replace(one, rule=rule) for one in alone]
