"""report.html: a run in one file that opens from disk, with no server and no network."""

import base64
import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from .. import maps, runfolder, storage
from ..colours import STOPS, colours
from ..errors import RunError
from ..maps import Floats
from ..runs import Run

MOST_SHOWN = 500  # images in the gallery; scores.csv has them all
HEAT_SIDE = 128  # longer side of a heat map in the page, pixels
_LEVELS = 64
_BARS = 60  # of the histogram
_MOST_OPAQUE = 225  # of 255


def write_report(run: Run) -> None:
    """Write RUN/report.html. Raises RunError if it cannot be written."""
    shown = [int(i) for i in run.ranking[:MOST_SHOWN]]
    frames = [_shrink(run.frame_map(run.paths[i])) for i in shown]
    low, high = colour_bounds(run, frames)
    environment = Environment(
        loader=PackageLoader("patchcluster", "report"), autoescape=True, undefined=StrictUndefined
    )
    page = environment.get_template("report.html.j2").render(
        run=run,
        settings=run.info.settings,
        cards=list(_cards(run, shown, frames, low, high)),
        histogram=_histogram(run),
        flagged_paths=[run.paths[int(i)] for i in run.ranking if run.flagged[i]],
        low=low,
        high=high,
        scale=_colour_scale_css(),
    )
    # Names that are not valid UTF-8 are shown with a question mark.
    storage.write_bytes(run.folder / runfolder.REPORT_FILE, page.encode("utf-8", "replace"))


def colour_bounds(run: Run, frames: Sequence[Floats]) -> tuple[float, float]:
    """The map values at which colour begins and is strongest, one pair for the whole set.

    It begins where 1 pixel in 10 lies above, so that ordinary places stay clear, and is strongest
    where 1 in 1,000 does, but never below the threshold.
    """
    pixels = np.concatenate(
        [[run.threshold.value], *(frame[np.isfinite(frame)] for frame in frames)]
    )
    low = float(np.quantile(pixels, 0.9))
    return low, max(float(np.quantile(pixels, 0.999)), run.threshold.value, low + 1e-6)


def heat_png(frame: Floats, low: float, high: float) -> bytes:
    """A map [h, w] as a PNG that is clear below `low` and most opaque from `high` on.

    It is clear where there is no score (NaN).
    """
    share = np.clip((np.nan_to_num(frame, nan=low) - low) / (high - low), 0, 1)
    image = Image.fromarray(np.rint(share * (_LEVELS - 1)).astype(np.uint8), "P")
    levels = np.linspace(0, 1, _LEVELS)
    image.putpalette(colours(levels).astype(np.uint8).tobytes())
    opacity = np.rint(_MOST_OPAQUE * levels**0.7).astype(np.uint8).tobytes()
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=opacity, optimize=True)
    return buffer.getvalue()


def _shrink(frame: Floats) -> Floats:
    """A map [h, w] as large as it is drawn."""
    height, width = frame.shape
    factor = HEAT_SIDE / max(height, width)
    return maps.to_image(frame, max(1, round(width * factor)), max(1, round(height * factor)))


def _cards(
    run: Run, shown: Sequence[int], frames: Sequence[Floats], low: float, high: float
) -> Iterator[dict[str, Any]]:
    """What the page says of each image."""
    for place, (i, frame) in enumerate(zip(shown, frames, strict=True), start=1):
        image = run.images[i]
        path = runfolder.thumbnail_path(run.folder, image.id)
        try:
            thumbnail = path.read_bytes()
        except OSError as error:
            raise RunError(f"cannot read {str(path)!r} ({error}): scan again") from error
        yield {
            "rank": place,
            "path": image.path,
            "name": "/".join(image.path.replace("\\", "/").split("/")[-2:]),
            "score": run.scores[i],
            "flagged": bool(run.flagged[i]),
            "width": image.width,
            "height": image.height,
            "thumbnail": _data_url("jpeg", thumbnail),
            "heat": _data_url("png", heat_png(frame, low, high)),
            "regions": run.regions(image.path),
        }


def _histogram(run: Run) -> dict[str, Any]:
    """Counts of image scores in equal bins, and where the threshold lies; x and y in percent."""
    values = np.append(run.scores, run.threshold.value)
    low, high = float(values.min()), float(values.max())
    span = max(high - low, 1e-9)
    counts, edges = np.histogram(run.scores, bins=_BARS, range=(low, low + span))
    width = 100 / _BARS
    bars = [
        {
            "x": n * width,
            "height": 100 * count / counts.max(),
            "count": int(count),
            "from": edges[n],
            "above": edges[n] >= run.threshold.value,
        }
        for n, count in enumerate(counts)
        if count
    ]
    at = 100 * (run.threshold.value - low) / span
    return {"bars": bars, "bar_width": width, "threshold": at, "low": low, "high": high}


def _colour_scale_css() -> str:
    stops = ", ".join(f"rgb({r} {g} {b})" for r, g, b in STOPS.tolist())
    return f"linear-gradient(to right, {stops})"


def _data_url(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
