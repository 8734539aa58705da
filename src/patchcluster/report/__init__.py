"""report.html: a run in one page that opens from disk, with no server and no network.

pictures.py    heat maps, crops, data URLs
templates.py   loads the templates
content.py     what the page says of each image
notebook.py    a run in a notebook
report.html.j2, report.css, report.js    the page; style and script are put into it
"""

import base64
import hashlib
import json
import shlex
from collections.abc import Callable
from importlib.resources import files
from typing import Any

from markupsafe import Markup

from ..runs import runfolder, storage
from ..runs.pictures import MOST_DRAWN, data_url, scale_png
from ..runs.run import Run
from .content import clean, list_images
from .templates import load_template

__all__ = ["island", "write_report"]


def write_report(run: Run, step: Callable[[int, int], None] = lambda *_: None) -> None:
    """Write RUN/report.html, and the heat maps of all but the first images next to it.

    step: is told how many images are done, of how many. Raises RunError if it cannot be written, or
    the run lacks a file.
    """
    images, low, high = list_images(run, step)
    style, script = _asset("report.css"), _asset("report.js")
    page = load_template("report.html.j2").render(
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
        data=island(
            {
                "images": images,
                "threshold": run.threshold.value,
                "command": clean(f"patchcluster report {shlex.quote(str(run.folder))}"),
            }
        ),
    )
    # Names that are not valid UTF-8 are shown with a question mark.
    storage.write_bytes(run.folder / runfolder.REPORT_FILE, page.encode("utf-8", "replace"))


def island(value: Any) -> Markup:
    """JSON that can stand in a script element: nothing in it can end the element or open one."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for character in "<>&":  # U+2028 and the like are escapes already
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _asset(name: str) -> Markup:
    return Markup((files(__package__) / name).read_text(encoding="utf-8"))


def _hash(text: str) -> str:
    """What a content security policy names an inline style or script by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _settings(run: Run) -> dict[str, str]:
    """Names and values of what was asked for and used; not those left to the method."""
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
