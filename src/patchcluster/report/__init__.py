"""report.html: a run in one page that opens from disk, with no server and no network.

report.html.j2, report.css and report.js are the page; style and script are inserted into it.
"""

import base64
import functools
import hashlib
import shlex
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from ..runs import runfolder, storage
from ..runs.info import ImageRecord
from ..runs.pages import load_template
from ..runs.pictures import (
    MOST_DRAWN,
    colour_bounds,
    crop_jpeg,
    data_url,
    draw_top,
    has_note,
    heat_note,
    heat_png,
    open_thumbnail,
    read_thumbnail,
    scale_png,
    shrink,
)
from ..runs.run import Run
from ..runs.storage import clean
from ..runs.threads import map_in_threads
from ..scores.finish import finish
from ..scores.labels import Label

__all__ = ["write_report"]

MOST_COMPARED = 100  # images that are shown with similar places
_COMPARED_WITH = 3
_LEAST_CROP = 0.2  # of an image's shorter side
_CROP_MARGIN = 1.6  # times the longer side of the region
_THUMBNAILS = 64  # decoded at a time: one image is often similar to many

Entry = dict[str, Any]
Step = Callable[[int, int], None]  # done, total


def write_report(run: Run, step: Step = lambda *_: None) -> None:
    """Write RUN/report.html, and the heat maps that it does not embed in a folder next to it.

    step: called with the number of images done and in total. Raises RunError if it cannot be
    written, or the run lacks a file.
    """
    images, low, high = list_images(run, step)
    style, script = _asset("report.css"), _asset("report.js")
    page = load_template("report/report.html.j2").render(
        run=run,
        settings=_settings(run),
        images=images,
        embedded=MOST_DRAWN,
        flagged=[image["path"] for image in images if image["flagged"]],
        labels={clean(path): label for path, label in run.info.labels.items()},
        low=low,
        high=high,
        scale=data_url("png", scale_png()),
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
        data={
            "images": images,
            "threshold": run.threshold.value,
            "command": clean(f"patchcluster report {shlex.quote(str(run.folder))}"),
        },
    )
    # Bytes of names that are not valid UTF-8 become question marks.
    storage.write_bytes(run.folder / runfolder.REPORT_FILE, page.encode("utf-8", "replace"))


def _asset(name: str) -> Markup:
    return Markup((files(__package__) / name).read_text(encoding="utf-8"))


def _hash(text: str) -> str:
    """Return the hash by which a content security policy allows an inline style or script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _settings(run: Run) -> dict[str, str]:
    """Return names and values of the settings and versions of the run, without those not set."""
    info = run.info
    rows: dict[str, Any] = {
        "inputs": info.inputs,
        **info.settings,
        "flagging": {name: value for name, value in info.flagging.items() if value is not None},
        "backbone": info.backbone["name"],
        "weights": f"{info.backbone['weights']}, SHA-256 {info.backbone['sha256'][:12]}",
        "device": info.device,
        "started": info.started,
        "finished": info.finished,
        "versions": info.versions,
    }
    known = {name: value for name, value in rows.items() if value is not None}
    return {name.replace("_", " "): _words(value) for name, value in known.items()}


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_words(one)}" for name, one in value.items()) or "automatic"
    if isinstance(value, list | tuple):
        return ", ".join(map(_words, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def list_images(run: Run, step: Step) -> tuple[list[Entry], float, float]:
    """List all images, and return the map values at which colour begins and is strongest.

    Writes the heat maps that are not embedded. Raises RunError if the run lacks a file.
    """
    order = run.ranking.tolist()
    entries = _describe(run, order)
    frames = draw_top(run)
    low, high = colour_bounds(run, frames)

    def add_pictures(n: int) -> None:
        image = run.images[order[n]]
        if n < len(frames):
            heat = heat_png(frames[n], low, high)
            entries[n]["thumbnail"] = data_url("jpeg", read_thumbnail(run, image))
            entries[n]["heat"] = data_url("png", heat)
        else:
            thumbnail = runfolder.thumbnail_path(run.folder, image.id)
            heat_file = runfolder.heat_path(run.folder, image.id)
            _write_heat(run, image, low, high)
            entries[n]["thumbnail"] = thumbnail.relative_to(run.folder).as_posix()
            entries[n]["heat"] = heat_file.relative_to(run.folder).as_posix()

    for done, _ in enumerate(map_in_threads(add_pictures, range(len(order))), start=1):
        step(done, len(order))
    _remove_heat(run, order[: len(frames)])
    # Flagged images first: labels may flag images whose scores are not the highest.
    marked = [n for n, entry in enumerate(entries) if entry["regions"]]
    marked.sort(key=lambda n: not entries[n]["flagged"])
    places = {i: n for n, i in enumerate(order)}
    thumbnails = functools.lru_cache(_THUMBNAILS)(lambda i: open_thumbnail(run, run.images[i]))

    def add_similar(n: int) -> None:
        entries[n]["similar"] = _compare(run, order[n], places, thumbnails)

    list(map_in_threads(add_similar, marked[:MOST_COMPARED]))
    return entries, low, high


def _describe(run: Run, order: Sequence[int]) -> list[Entry]:
    labels: dict[str, Label] = {}  # by content, as in a scan
    for image in run.images:
        label = run.info.labels.get(image.path)
        if label is not None and labels.get(image.sha256) != "anomalous":
            labels[image.sha256] = label
    first = {image.sha256: image.id for image in reversed(run.images)}
    return [
        {
            "path": clean(image.path),
            "score": float(run.scores[i]),
            "probability": run.probabilities[i],
            "flagged": bool(run.flagged[i]),
            "label": labels.get(image.sha256, ""),
            "remarks": run.remarks[i],
            "copy": first[image.sha256] != image.id,
            "width": image.width,
            "height": image.height,
            "regions": [[r.x, r.y, r.width, r.height, r.group] for r in run.regions(image.path)],
        }
        for i, image in ((i, run.images[i]) for i in order)
    ]


def _write_heat(run: Run, image: ImageRecord, low: float, high: float) -> None:
    """Write the heat map of an image next to the page, unless an earlier page has the same."""
    path = runfolder.heat_path(run.folder, image.id)
    grid = run.grid(image.path)
    note = heat_note(grid, low, high)
    if not has_note(path, note):
        mask = runfolder.read_mask_of(run.folder, image)
        finished = finish(grid, image.width, image.height, run.map_rule, mask)
        heat = heat_png(shrink(finished.smoothed), low, high, note)
        storage.write_bytes(path, heat, durable=False)


def _remove_heat(run: Run, embedded: Sequence[int]) -> None:
    """Remove the heat maps of an earlier page that are embedded in this one, or of no image."""
    others = {image.id for image in run.images} - {run.images[i].id for i in embedded}
    kept = {runfolder.heat_path(run.folder, number) for number in others}
    for path in (run.folder / runfolder.HEAT_FOLDER).glob("*.png"):
        if path not in kept:
            path.unlink()


def _compare(
    run: Run, i: int, places: Mapping[int, int], thumbnails: Callable[[int], Image.Image]
) -> list[Entry]:
    """Crop the most anomalous place of an image, then the places it was compared with.

    Places in images that are not flagged come first; there are none if the method does not give
    them. places: positions in the page, by index of the image; thumbnails: of images, by index.
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
    if not near:
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
