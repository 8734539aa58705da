"""report.html: a run in one page that opens from disk, with no server and no network.

content.py     the images as the page lists them, with their pictures
report.html.j2, report.css, report.js    the page; style and script are inserted into it
"""

import base64
import hashlib
import shlex
from collections.abc import Callable
from importlib.resources import files
from typing import Any

from markupsafe import Markup

from ..runs import runfolder, storage
from ..runs.pages import load_template
from ..runs.pictures import MOST_DRAWN, data_url, scale_png
from ..runs.run import Run
from ..runs.storage import clean
from .content import list_images

__all__ = ["write_report"]


def write_report(run: Run, step: Callable[[int, int], None] = lambda *_: None) -> None:
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
