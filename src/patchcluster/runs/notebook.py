"""A run in a notebook: its most anomalous images as HTML or as a matplotlib figure."""

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..errors import PatchclusterError
from ..scores.maps import Floats
from .pages import load_template
from .pictures import (
    colour_bounds,
    data_url,
    heat_png,
    open_thumbnail,
    read_thumbnail,
    shrink,
)
from .run import Run
from .storage import clean

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = 5


def cards_html(run: Run, count: int) -> str:
    """Return the most anomalous images as small cards. Raises RunError if the run lacks a file."""
    top, frames, low, high = _draw(run, count)
    cards = [
        {
            "path": clean(run.paths[i]),
            "score": run.scores[i],
            "probability": run.probabilities[i],
            "flagged": run.flagged[i],
            "aspect": run.images[i].width / run.images[i].height,
            "thumbnail": data_url("jpeg", read_thumbnail(run, run.images[i])),
            "heat": data_url("png", heat_png(frame, low, high)),
        }
        for i, frame in zip(top, frames, strict=True)
    ]
    return load_template("runs/notebook.html.j2").render(run=run, cards=cards)


def draw_figure(run: Run, count: int) -> "Figure":
    """Draw the most anomalous images with their heat maps on one scale, five in a row."""
    try:
        import matplotlib.pyplot as plt  # notebooks show a figure only once it is loaded
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PatchclusterError(
            "run.show draws with matplotlib, which is not installed: pip install matplotlib"
        ) from error
    top, frames, low, high = _draw(run, count)
    columns = min(_COLUMNS, len(top))
    rows = -(-len(top) // columns)
    with plt.style.context("default"):
        figure = Figure((3 * columns, 3.4 * rows), layout="constrained")
        for place, (i, frame) in enumerate(zip(top, frames, strict=True), start=1):
            image = run.images[i]
            axes = figure.add_subplot(rows, columns, place)
            extent = (0.0, float(image.width), float(image.height), 0.0)
            axes.imshow(np.asarray(open_thumbnail(run, image)), extent=extent)
            heat = Image.open(io.BytesIO(heat_png(frame, low, high)))
            axes.imshow(np.asarray(heat.convert("RGBA")), extent=extent)
            flag = ", flagged" if run.flagged[i] else ""
            name = clean(image.path).replace("\\", "/").split("/")[-1].replace("$", r"\$")
            axes.set_title(f"{name}\n{run.scores[i]:.4g}{flag}", fontsize=9)
            axes.set_axis_off()
    return figure


def _draw(run: Run, count: int) -> tuple[list[int], list[Floats], float, float]:
    """Return the indices of the most anomalous images, their maps, and the colour bounds."""
    top = run.ranking[:count].tolist()
    frames = [shrink(run.frame_map(run.paths[i])) for i in top]
    return top, frames, *colour_bounds(run, frames)
