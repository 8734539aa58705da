"""What the page says of a run's images: one list, most anomalous first, that report.js shows."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image

from ..runs import runfolder, storage
from ..runs.pictures import (
    colour_bounds,
    crop_jpeg,
    data_url,
    draw_top,
    has_note,
    heat_note,
    heat_png,
    open_thumbnail,
    read_thumbnail,
    shrink,
)
from ..runs.run import Run
from ..runs.threads import map_in_threads
from ..scores.labels import Label
from ..scores.maps import Floats

MOST_COMPARED = 100  # images next to places that look as they should
_COMPARED_WITH = 3
_LEAST_CROP = 0.2  # of an image's shorter side
_CROP_MARGIN = 1.6  # times the longer side of the region
_THUMBNAILS = 64  # that are kept decoded: many places are near to one image

Entry = dict[str, Any]
Step = Callable[[int, int], None]  # done, total
Given = TypeVar("Given")


def list_images(run: Run, step: Step) -> tuple[list[Entry], float, float]:
    """All images, most anomalous first; the map values at which colour begins and is strongest.

    Writes the heat maps that are not embedded. Raises RunError if the run lacks a file.
    """
    order = [int(i) for i in run.ranking]
    entries = _describe(run, order)
    frames = draw_top(run)
    low, high = colour_bounds(run, frames)
    for entry, pictures in zip(entries, _embed(run, order, frames, low, high), strict=False):
        entry |= pictures
    step(len(frames), len(order))
    _write_beside(run, order[len(frames) :], entries[len(frames) :], low, high, step)
    # The flagged ones first, which labels can set apart from the highest scores.
    marked = sorted(
        (n for n, entry in enumerate(entries) if entry["regions"]),
        key=lambda n: not entries[n]["flagged"],
    )
    places = {image: n for n, image in enumerate(order)}
    thumbnails = functools.lru_cache(_THUMBNAILS)(lambda i: open_thumbnail(run, run.images[i]))
    compared = _spread(
        lambda n: _compare(run, order[n], places, thumbnails), marked[:MOST_COMPARED]
    )
    for n, crops in zip(marked, compared, strict=False):
        entries[n]["similar"] = crops
    return entries, low, high


def clean(path: str) -> str:
    """A path as it can be written in UTF-8: bytes that are not become question marks."""
    return path.encode("utf-8", "replace").decode()


def _describe(run: Run, order: Sequence[int]) -> list[Entry]:
    said: dict[str, Label] = {}  # by content, as a scan takes it
    for image in run.images:
        label = run.info.labels.get(image.path)
        if label is not None and said.get(image.sha256) != "anomalous":
            said[image.sha256] = label
    seen: set[str] = set()
    entries = []
    for i in order:
        image = run.images[i]
        entries.append(
            {
                "path": clean(image.path),
                "score": float(run.scores[i]),
                "flagged": bool(run.flagged[i]),
                "label": said.get(image.sha256, ""),
                "copy": image.sha256 in seen,
                "width": image.width,
                "height": image.height,
                "regions": [
                    [r.x, r.y, r.width, r.height, r.group] for r in run.regions(image.path)
                ],
            }
        )
        seen.add(image.sha256)
    return entries


def _embed(
    run: Run, order: Sequence[int], frames: Sequence[Floats], low: float, high: float
) -> Iterator[Entry]:
    """The pictures of the first images, whose maps are `frames`."""

    def embed(n: int) -> Entry:
        thumbnail = read_thumbnail(run, run.images[order[n]])
        heat = heat_png(frames[n], low, high)
        return {"thumbnail": data_url("jpeg", thumbnail), "heat": data_url("png", heat)}

    return _spread(embed, range(len(frames)))


def _spread(work: Callable[[int], Given], items: Sequence[int]) -> Iterator[Given]:
    return map_in_threads(work, items, torch.get_num_threads())


def _write_beside(
    run: Run,
    order: Sequence[int],
    entries: Sequence[Entry],
    low: float,
    high: float,
    step: Step,
) -> None:
    """Write heat maps next to the page, name them and the thumbnails, remove those of earlier."""
    written = set()

    def write(n: int) -> None:
        image, entry = run.images[order[n]], entries[n]
        path = runfolder.heat_path(run.folder, image.id)
        note = heat_note(run.grid(image.path), low, high)
        if not has_note(path, note):  # that of an earlier page may
            heat = heat_png(shrink(run.frame_map(image.path)), low, high, note)
            storage.write_bytes(path, heat, durable=False)
        written.add(path)
        thumbnail = runfolder.thumbnail_path(run.folder, image.id)
        entry["thumbnail"] = thumbnail.relative_to(run.folder).as_posix()
        entry["heat"] = path.relative_to(run.folder).as_posix()

    for done, _ in enumerate(_spread(write, range(len(order))), start=1):
        step(len(run) - len(order) + done, len(run))
    for path in (run.folder / runfolder.HEAT_FOLDER).glob("*.png"):
        if path not in written:
            path.unlink()


def _compare(
    run: Run, i: int, places: Mapping[int, int], thumbnails: Callable[[int], Image.Image]
) -> list[Entry]:
    """The place of an image's highest value, then the places it was compared with, as crops.

    Those in images that are not flagged come first. places: of images in the page, by index;
    thumbnails: of images, by index.
    """
    image = run.images[i]
    frame = run.frame_map(image.path)
    row, column = np.unravel_index(int(np.nanargmax(frame)), frame.shape)
    x, y = (column + 0.5) / frame.shape[1], (row + 0.5) / frame.shape[0]
    region = run.regions(image.path)[0]
    side = _CROP_MARGIN * max(region.width, region.height)
    share = min(1.0, max(_LEAST_CROP, side / min(image.width, image.height)))
    near = [
        (run.index(place.path), place)
        for place in run.neighbours(image.path, x * image.width, y * image.height)
    ]
    near = sorted(near[:_COMPARED_WITH], key=lambda one: bool(run.flagged[one[0]]))
    if not near:  # the method does not say
        return []
    crops = [(i, x, y)]
    for j, place in near:
        crops.append((j, place.x / run.images[j].width, place.y / run.images[j].height))
    return [
        {
            "image": places[j],
            "crop": data_url("jpeg", crop_jpeg(thumbnails(j), at_x, at_y, share)),
        }
        for j, at_x, at_y in crops
    ]
