"""Label Studio: tasks with predictions, and the labelling interface that these fit."""

import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .. import __version__
from ..images.inputs import is_url
from ..runs import storage
from ..runs.storage import clean
from .areas import Area, run_lengths
from .contents import CATEGORY, Contents, Item

_LOCAL_FILES = "/data/local-files/?d="
_TAGS = {"polygon": "PolygonLabels", "rle": "BrushLabels", "box": "RectangleLabels"}
_INTERFACE = """<View>
  <Image name="image" value="$image" zoom="true"/>
  <{tag} name="region" toName="image">
    <Label value="{category}" background="#ff3300"/>
  </{tag}>
</View>
"""
# Run-length encoding: bits of a value, and the four possible numbers of bits of a length.
_WORD, _SIZES = 8, (3, 4, 8, 16)
_CHANNELS = 4  # a mask is encoded as an RGBA image


def write(contents: Contents, folder: Path, segmentation: str, image_prefix: str | None) -> None:
    """Write tasks.json and interface.xml.

    image_prefix: put before the name of each image; None: the URL of an image at a URL, else the
    address at which Label Studio serves local files.
    """
    tasks = [_task(contents, item, segmentation, image_prefix) for item in contents]
    storage.write_json(folder / "tasks.json", tasks)
    interface = _INTERFACE.format(tag=_TAGS[segmentation], category=CATEGORY)
    storage.write_bytes(folder / "interface.xml", interface.encode())


def _task(contents: Contents, item: Item, kind: str, prefix: str | None) -> dict[str, Any]:
    results = [_result(n, area, item, kind) for n, area in enumerate(contents.areas(item), start=1)]
    data = {
        "image": _address(item, prefix),
        "path": clean(item.image.path),
        "score": item.score,
        "flagged": item.flagged,
    }
    prediction = {
        "model_version": f"patchcluster {__version__}",
        "score": item.probability or 0.0,  # it takes none but 0 to 1
        "result": results,
    }
    return {"data": data, "predictions": [prediction]}


def _address(item: Item, prefix: str | None) -> str:
    if prefix is None and is_url(item.image.path):
        return clean(item.image.path)
    return (_LOCAL_FILES if prefix is None else prefix) + urllib.parse.quote(clean(item.name))


def _result(number: int, area: Area, item: Item, kind: str) -> dict[str, Any]:
    tag = _TAGS[kind].lower()
    return {
        "id": f"region-{number}",
        "type": tag,
        "from_name": "region",
        "to_name": "image",
        "original_width": item.image.width,
        "original_height": item.image.height,
        "image_rotation": 0,
        "meta": {"text": [f"peak {area.region.peak:.4g}, group {area.region.group}"]},
        "value": _value(area, item, kind) | {tag: [CATEGORY]},
    }


def _value(area: Area, item: Item, kind: str) -> dict[str, Any]:
    """Return the shape of a region, in percent of width and height."""
    region, width, height = area.region, item.image.width, item.image.height
    if kind == "polygon":
        points = (area.polygon * 100 / [width, height]).tolist()
        return {"points": points, "closed": True}
    if kind == "box":
        box = (area.box * 100 / [width, height, width, height]).tolist()
        return dict(zip(("x", "y", "width", "height"), box, strict=True)) | {"rotation": 0}
    counts = run_lengths(area.mask, region.x, region.y, width, height)
    return {"format": "rle", "rle": encode_rle(counts)}


def encode_rle(counts: Sequence[int]) -> list[int]:
    """Encode run lengths of a mask (False first) as the bytes of Label Studio's own format.

    Bits: 32: number of values; 5: bits of a value - 1; 4 each: the four sizes of a length - 1; then
    for each run 1 (repeated), 2: which size, the length - 1, the value.
    """
    total = sum(counts) * _CHANNELS
    bits = [f"{total:032b}{_WORD - 1:05b}", *(f"{size - 1:04b}" for size in _SIZES)]
    for value, length in _runs(counts):
        which = next(i for i, size in enumerate(_SIZES) if length <= 1 << size)
        bits.append(f"1{which:02b}{length - 1:0{_SIZES[which]}b}{value:0{_WORD}b}")
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))


def _runs(counts: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield values and lengths of runs, split to fit the largest size."""
    most = 1 << _SIZES[-1]
    for i, count in enumerate(counts):
        left = count * _CHANNELS
        while left:
            yield 255 * (i % 2), min(left, most)
            left -= min(left, most)
