"""CVAT for images 1.1: one XML file, to be uploaded as annotations of a task."""

import re
from pathlib import Path
from xml.etree import ElementTree as ET

from ..runs.storage import clean
from .areas import Area, run_lengths
from .contents import CATEGORY, Contents

FLAGGED = "flagged"  # tag of a flagged image
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_ATTRIBUTES = {CATEGORY: ("peak", "group"), FLAGGED: ("score",)}
_TYPES = {"polygon": "polygon", "rle": "mask", "box": "rectangle"}


def write(contents: Contents, file: Path, segmentation: str) -> None:
    """Write regions as polygons, masks or boxes, and a tag for each flagged image."""
    root = ET.Element("annotations")
    _add(root, "version", "1.1")
    _describe(_add(root, "meta"), contents, segmentation)
    for number, item in enumerate(contents):
        image = ET.SubElement(
            root,
            "image",
            id=str(number),
            name=_text(item.name),
            width=str(item.image.width),
            height=str(item.image.height),
        )
        for area in contents.areas(item):
            shape = _shape(image, area, segmentation)
            _attribute(shape, "peak", f"{area.region.peak:.9g}")
            _attribute(shape, "group", str(area.region.group))
        if item.flagged:
            tag = ET.SubElement(image, "tag", label=FLAGGED, source="auto")
            _attribute(tag, "score", f"{item.score:.9g}")
    ET.indent(root)
    file.write_bytes(ET.tostring(root, "utf-8", xml_declaration=True))


def _describe(meta: ET.Element, contents: Contents, segmentation: str) -> None:
    """Describe the labels, so that a task with the same labels can be created."""
    task = _add(meta, "task")
    _add(task, "name", _text(str(contents.run.folder)))
    _add(task, "size", str(len(contents.items)))
    _add(task, "mode", "annotation")
    labels = _add(task, "labels")
    for name, kind in ((CATEGORY, _TYPES[segmentation]), (FLAGGED, "tag")):
        label = _add(labels, "label")
        _add(label, "name", name)
        _add(label, "type", kind)
        attributes = _add(label, "attributes")
        for attribute in _ATTRIBUTES[name]:
            one = _add(attributes, "attribute")
            _add(one, "name", attribute)
            _add(one, "mutable", "False")
            _add(one, "input_type", "text")
            _add(one, "default_value", "")
            _add(one, "values", "")


def _shape(image: ET.Element, area: Area, segmentation: str) -> ET.Element:
    region = area.region
    common = {"label": CATEGORY, "source": "auto", "occluded": "0", "z_order": "0"}
    if segmentation == "polygon":
        points = ";".join(f"{x:.2f},{y:.2f}" for x, y in area.polygon)
        return ET.SubElement(image, "polygon", common, points=points)
    if segmentation == "box":
        corners = {
            "xtl": region.x,
            "ytl": region.y,
            "xbr": region.x + region.width,
            "ybr": region.y + region.height,
        }
        return ET.SubElement(image, "box", common, **{k: f"{v:.2f}" for k, v in corners.items()})
    sides = {name: str(getattr(region, name)) for name in ("width", "height")}
    counts = ", ".join(map(str, run_lengths(area.mask, 0, 0, region.width, region.height)))
    return ET.SubElement(
        image, "mask", common, rle=counts, left=str(region.x), top=str(region.y), **sides
    )


def _add(parent: ET.Element, name: str, text: str = "") -> ET.Element:
    element = ET.SubElement(parent, name)
    element.text = text or None
    return element


def _attribute(shape: ET.Element, name: str, text: str) -> None:
    ET.SubElement(shape, "attribute", name=name).text = text


def _text(text: str) -> str:
    """Replace characters that XML does not allow by question marks."""
    return _NOT_XML.sub("?", clean(text))
