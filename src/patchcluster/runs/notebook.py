"""A run in a notebook: its most anomalous images as HTML."""

from .pages import load_template
from .pictures import colour_bounds, data_url, heat_png, read_thumbnail, shrink
from .run import Run
from .storage import clean

_SHOWN = 10


def cards_html(run: Run) -> str:
    """Return the most anomalous images as small cards. Raises RunError if the run lacks a file."""
    top = run.ranking[:_SHOWN].tolist()
    frames = [shrink(run.frame_map(run.paths[i])) for i in top]
    low, high = colour_bounds(run, frames)
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
