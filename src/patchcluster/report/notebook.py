"""A run in a notebook: its most anomalous images, as HTML or as a figure of matplotlib."""

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..errors import PatchclusterError
from ..runs.pictures import colour_bounds, data_url, heat_png, read_thumbnail, shrink
from ..runs.run import Run
from ..scores.colours import colours
from .content import clean
from .templates import load_template

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = 5


def cards_html(run: Run, count: int) -> str:
    """The most anomalous images as small cards; raises RunError if the run lacks a file."""
    top = [int(i) for i in run.ranking[:count]]
    frames = [shrink(run.frame_map(run.paths[i])) for i in top]
    low, high = colour_bounds(run, frames)
    cards = [
        {
            "path": clean(run.paths[i]),
            "score": run.scores[i],
            "flagged": run.flagged[i],
            "aspect": run.images[i].width / run.images[i].height,
            "thumbnail": data_url("jpeg", read_thumbnail(run, run.images[i])),
            "heat": data_url("png", heat_png(frame, low, high)),
        }
        for i, frame in zip(top, frames, strict=True)
    ]
    return load_template("notebook.html.j2").render(run=run, cards=cards)


def draw_figure(run: Run, count: int) -> "Figure":
    """The most anomalous images with their heat maps on one scale, five in a row."""
    try:
        import matplotlib.pyplot as plt  # also has notebooks draw figures
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PatchclusterError(
            "run.show draws with matplotlib, which is not installed: pip install matplotlib"
        ) from error
    top = [int(i) for i in run.ranking[:count]]
    frames = [shrink(run.frame_map(run.paths[i])) for i in top]
    low, high = colour_bounds(run, frames)
    columns = min(_COLUMNS, len(top))
    rows = -(-len(top) // columns)
    with plt.style.context("default"):
        figure = Figure((3 * columns, 3.4 * rows), layout="constrained")
        for place, (i, frame) in enumerate(zip(top, frames, strict=True), start=1):
            image = run.images[i]
            axes = figure.add_subplot(rows, columns, place)
            extent = (0.0, float(image.width), float(image.height), 0.0)
            with Image.open(io.BytesIO(read_thumbnail(run, image))) as thumbnail:
                axes.imshow(np.asarray(thumbnail.convert("RGB")), extent=extent)
            share = np.clip((np.nan_to_num(frame, nan=low) - low) / (high - low), 0, 1)
            heat = np.dstack([colours(share) / 255, 0.85 * share**0.7])
            axes.imshow(heat, extent=extent)
            flag = ", flagged" if run.flagged[i] else ""
            name = clean(image.path).replace("\\", "/").split("/")[-1].replace("$", r"\$")
            axes.set_title(f"{name}\n{run.scores[i]:.4g}{flag}", fontsize=9)
            axes.set_axis_off()
    return figure
