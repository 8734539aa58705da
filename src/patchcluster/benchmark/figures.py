"""What the paper's figures show, for this data and network.

    figure1.png            anomalies, and where PatchCluster-25% finds them
    figure3.png            image, mask, map of each method side by side: objects
    figure4.png            the same for textures (MVTec AD's)
    figure5-CATEGORY.png   a normal and an anomalous patch, and the nearest patches in other images

Everything is of the test setting. Each category adds its own rows; the first three are put together
from them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage
from torch import Tensor

from ..datasets import select
from ..network.backbones import STRIDES
from ..runs import storage
from ..scores.colours import colours
from ..scores.maps import Floats
from ..search.neighbors import nearest
from .cells import CellStore, smooth
from .features import Features, InputRule, read_shown
from .plan import Plan
from .tables import DETECTED_BY, SHOWN_VARIANTS, TEXTURES

Picture = NDArray[np.uint8]  # [height, width, 3]

_EXAMPLES = 3  # of a category
_GAP = 6  # pixels between pictures
_LABEL = 18  # height of a line of text
_HEAT_OPACITY = 0.65
_NEIGHBOURS = (1, 2, 3, 5, 10, 25, 50, 100)  # which are shown
_CONTEXT = 60  # pixels around the centre of a patch
_TEXT, _PAPER, _MARK = (20, 20, 20), (255, 255, 255), (0, 220, 120)


@dataclass(frozen=True)
class Example:
    """An anomalous image with its mask, [size, size], and one map for each variant."""

    title: str
    shown: Picture
    mask: NDArray[np.bool_]
    heats: dict[str, Picture]


def write_figures(folder: Path, features: Features, cells: CellStore, plan: Plan) -> None:
    """Write a category's part of the figures; the common ones hold all categories so far."""
    if "test" not in plan.settings:
        return
    name = features.category.name
    examples = _choose_examples(features, cells, plan)
    if examples:
        columns = list(examples[0].heats)
        _save(folder / "parts" / f"methods-{name}.png", _side_by_side(examples, columns))
        if DETECTED_BY.name in columns:
            found = _side_by_side(examples, [DETECTED_BY.name])
            _save(folder / "parts" / f"found-{name}.png", found)
    patches = _draw_neighbours(features, plan.rule)
    if patches is not None:
        _save(folder / f"figure5-{name}.png", patches)
    names = [category.name for category in plan.categories]
    _join(folder, "figure1", [f"found-{n}" for n in names])
    _join(folder, "figure3", [f"methods-{n}" for n in names if n not in TEXTURES])
    _join(folder, "figure4", [f"methods-{n}" for n in names if n in TEXTURES])


def _side_by_side(examples: Sequence[Example], columns: Sequence[str]) -> Picture:
    rows = [
        [e.shown, _outline(e.shown, e.mask), *(e.heats[column] for column in columns)]
        for e in examples
    ]
    return _grid(rows, ["image", "mask", *columns], [e.title for e in examples])


def _join(folder: Path, figure: str, parts: Sequence[str]) -> None:
    """Put the parts that are there below each other."""
    paths = [folder / "parts" / f"{part}.png" for part in parts]
    pictures = [np.asarray(Image.open(path)) for path in paths if path.is_file()]
    if pictures:
        _save(folder / f"{figure}.png", _stack(pictures))


def _choose_examples(features: Features, cells: CellStore, plan: Plan) -> list[Example]:
    """One image of each of the first kinds of defect, whose mask is of the kind's median area."""
    split = select(features.category, "test")
    grids = {
        variant.name: kept
        for variant in SHOWN_VARIANTS
        if (kept := cells.read_grids(features.category.name, "test", variant)) is not None
    }
    kinds: dict[str, list[int]] = {}  # kind -> places in the split
    for place, i in enumerate(split.scored):
        if features.masks[i].any():
            kinds.setdefault(Path(features.images[i].path).parent.name, []).append(place)
    examples = []
    for kind in sorted(kinds)[:_EXAMPLES]:
        by_area = sorted(kinds[kind], key=lambda p: int(features.masks[split.scored[p]].sum()))
        place = by_area[len(by_area) // 2]
        i = split.scored[place]
        shown = read_shown(features.images[i].path, plan.rule, features.ranges)
        heats = {name: _heat(shown, kept, place, plan.rule.size) for name, kept in grids.items()}
        title = f"{features.category.name}, {kind}"
        examples.append(Example(title, shown, features.masks[i].numpy(), heats))
    return examples


# --- figure 5 -----------------------------------------------------------------------------------


def _draw_neighbours(features: Features, rule: InputRule) -> Picture | None:
    """A normal and an anomalous patch of one image, each with its nearest patches in the others."""
    split = select(features.category, "test")
    marked = [i for i in split.scored if features.masks[i].any()]
    if not marked or len(split.scored) < 2:
        return None
    query = max(marked, key=lambda i: int(features.masks[i].sum()))
    places = [i for i in split.scored if i != query]
    own = features.patches("fine", STRIDES, [query])[0].float()
    bank = torch.stack(features.patches("fine", STRIDES, places)).float()
    height, width = own.shape[:2]
    rows, labels = [], []
    for kind, cell in _query_cells(features.masks[query].numpy(), height, width).items():
        count = min(_NEIGHBOURS[-1], bank.shape[0] * height * width)
        found = nearest(own[cell][None], bank.flatten(0, 2), count)
        distances, indices = (torch.as_tensor(value)[0].tolist() for value in found)
        shown = read_shown(features.images[query].path, rule, features.ranges)
        row, text = [_cut(shown, cell, height)], [f"{kind} patch"]
        for n in (n for n in _NEIGHBOURS if n <= count):
            image, patch = divmod(indices[n - 1], height * width)
            path = features.images[places[image]].path
            other = read_shown(path, rule, features.ranges)
            row.append(_cut(other, divmod(patch, width), height))
            text.append(f"{n}: {distances[n - 1]:.2f}")
        rows.append(row)
        labels.append(text)
    parts = [_grid([row], text, [""]) for row, text in zip(rows, labels, strict=True)]
    return _stack(parts)


def _query_cells(mask: NDArray[np.bool_], height: int, width: int) -> dict[str, tuple[int, int]]:
    """The cell deepest in the anomaly, and the one nearest to the middle of what is normal."""
    size = mask.shape[0]
    inside = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(int(inside.argmax()), mask.shape)
    far = ndimage.distance_transform_edt(~mask) > size / 8
    rows, columns = np.nonzero(far if far.any() else ~mask)
    middle = int(((rows - size / 2) ** 2 + (columns - size / 2) ** 2).argmin())
    pixels = {"anomalous": (int(y), int(x)), "normal": (int(rows[middle]), int(columns[middle]))}
    return {k: (y * height // size, x * width // size) for k, (y, x) in pixels.items()}


def _cut(shown: Picture, cell: tuple[int, int], cells: int) -> Picture:
    """The surroundings of a patch, with the patch framed."""
    side = shown.shape[0] / cells
    padded = np.pad(shown, ((_CONTEXT, _CONTEXT), (_CONTEXT, _CONTEXT), (0, 0)), "edge")
    y, x = (round((c + 0.5) * side) for c in cell)
    image = Image.fromarray(padded[y : y + 2 * _CONTEXT, x : x + 2 * _CONTEXT])
    low, high = _CONTEXT - side, _CONTEXT + side
    ImageDraw.Draw(image).rectangle((low, low, high, high), outline=_MARK)
    return np.asarray(image)


# --- drawing ------------------------------------------------------------------------------------


def _heat(shown: Picture, grids: Tensor, place: int, size: int) -> Picture:
    """An image under its map; the colours are one scale for all images of the method."""
    frames: list[Floats] = [
        smooth(grid.numpy(), size) for grid in grids[:: max(1, len(grids) // 50)]
    ]
    pixels = np.concatenate([frame[::4, ::4].ravel() for frame in frames])
    low, high = np.quantile(pixels, 0.5), np.quantile(pixels, 0.998)
    share = np.clip((smooth(grids[place].numpy(), size) - low) / max(high - low, 1e-9), 0, 1)
    grey = shown.mean(2, keepdims=True).repeat(3, 2)
    mixed = (1 - _HEAT_OPACITY) * grey + _HEAT_OPACITY * colours(share)
    picture: Picture = np.rint(mixed).astype(np.uint8)
    return picture


def _outline(shown: Picture, mask: NDArray[np.bool_]) -> Picture:
    """An image dimmed outside its mask, whose edge is marked."""
    edge = ndimage.binary_dilation(mask, iterations=2) & ~mask
    picture: Picture = np.where(mask[..., None], shown, shown // 2 + 96).astype(np.uint8)
    picture[edge] = _MARK
    return picture


def _grid(
    rows: Sequence[Sequence[Picture]], columns: Sequence[str], titles: Sequence[str]
) -> Picture:
    """Pictures of one size in rows, with a label over each column and a title over each row."""
    height, width = rows[0][0].shape[:2]
    title = _LABEL if any(titles) else 0
    full = (
        _LABEL + len(rows) * (height + title + _GAP),
        max(len(row) for row in rows) * (width + _GAP),
    )
    image = Image.new("RGB", full[::-1], _PAPER)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(12)
    for c, label in enumerate(columns):
        draw.text((c * (width + _GAP) + 2, 2), label, _TEXT, font)
    for r, (row, heading) in enumerate(zip(rows, titles, strict=True)):
        top = _LABEL + r * (height + title + _GAP)
        if title:
            draw.text((2, top + 2), heading, _TEXT, font)
        for c, picture in enumerate(row):
            image.paste(Image.fromarray(picture), (c * (width + _GAP), top + title))
    return np.asarray(image)


def _stack(pictures: Sequence[Picture]) -> Picture:
    """Pictures below each other."""
    width = max(picture.shape[1] for picture in pictures)
    wide = [
        np.pad(p, ((0, _GAP), (0, width - p.shape[1]), (0, 0)), constant_values=255)
        for p in pictures
    ]
    return np.concatenate(wide)


def _save(path: Path, picture: Picture) -> None:
    import io

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    storage.write_bytes(path, buffer.getvalue(), durable=False)
