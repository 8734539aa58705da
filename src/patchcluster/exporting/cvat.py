"""CVAT for images 1.1: one XML file, to be uploaded as annotations of a task."""

import re
from functools import partial
from pathlib import Path
from xml.sax.saxutils import quoteattr

from markupsafe import Markup

from ..runs.pages import load_template
from ..runs.storage import clean
from .areas import Area, run_lengths
from .contents import CATEGORY, Contents

FLAGGED = "flagged"  # tag of a flagged image
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_TYPES = {"polygon": "polygon", "rle": "mask", "box": "rectangle"}  # of labels
_TAGS = {"polygon": "polygon", "rle": "mask", "box": "box"}


def write(contents: Contents, file: Path, segmentation: str) -> None:
    """Write regions as polygons, masks or boxes, and a tag for each flagged image.

    The labels are described, so that a task with the same labels can be created.
    """
    text = load_template("exporting/cvat.xml.j2").render(
        contents=contents,
        name=_plain(str(contents.run.folder)),
        labels=[(CATEGORY, _TYPES[segmentation], ("peak", "group")), (FLAGGED, "tag", ("score",))],
        category=CATEGORY,
        flagged=FLAGGED,
        tag=_TAGS[segmentation],
        shape=partial(_describe_shape, segmentation),
        quote=_quote,
    )
    file.write_bytes(text.encode())


def _describe_shape(segmentation: str, area: Area) -> dict[str, str]:
    """Return the XML attributes of a region."""
    region = area.region
    if segmentation == "polygon":
        return {"points": ";".join(f"{x:.2f},{y:.2f}" for x, y in area.polygon)}
    if segmentation == "box":
        corners = [*area.box[:2], *area.box[:2] + area.box[2:]]
        named = zip(("xtl", "ytl", "xbr", "ybr"), corners, strict=True)
        return {name: f"{value:.2f}" for name, value in named}
    counts = run_lengths(area.mask, 0, 0, region.width, region.height)
    sides = zip(("left", "top", "width", "height"), map(str, area.box), strict=True)
    return {"rle": ", ".join(map(str, counts)), **dict(sides)}


def _quote(text: str) -> Markup:
    """Write an XML attribute with its quotes; line ends in it survive."""
    return Markup(quoteattr(_plain(text)))


def _plain(text: str) -> str:
    """Replace characters that XML does not allow by question marks."""
    return _NOT_XML.sub("?", clean(text))
