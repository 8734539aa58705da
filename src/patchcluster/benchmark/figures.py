"""The paper's figures, for this data and network.

    figure1.png            anomalies, and where PatchCluster-25% finds them
    figure3.png            image, mask, map of each method side by side: objects
    figure4.png            the same for textures (MVTec AD's)
    figure5-CATEGORY.png   a normal and an anomalous patch, and the nearest patches in other images

Everything is of the test setting. Each category adds its own rows; the first three are put together
from them.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage
from torch import Tensor

from ..datasets import select
from ..images.raster import encode
from ..runs import storage
from ..scores import maps
from ..scores.colours import colours
from ..search.neighbors import nearest
from .cells import CellStore
from .features import Images
from .tables import DETECTED_BY, SHOWN_VARIANTS, TEXTURES, Plan

Picture = NDArray[np.uint8]  # [height, width, 3]

_EXAMPLES = 3  # of a category
_GAP = 6  # pixels between pictures
_LABEL = 18  # height of a line of text
_HEAT_OPACITY = 0.65
_NEIGHBOURS = (1, 2, 3, 5, 10, 25, 50, 100)  # which are shown
_CONTEXT = 60  # pixels around the centre of a patch
_TEXT, _PAPER, _MARK = (20, 20, 20), (255, 255, 255), (0, 220, 120)


def write_figures(folder: Path, images: Images, cells: CellStore, plan: Plan) -> None:
    """Write a category's part of the figures; the common ones hold all categories so far."""
    if "test" not in plan.settings:
        return
    name = images.category.name
    columns, titles, rows = _draw_examples(images, cells)
    if rows:
        _save(folder / "parts" / f"methods-{name}.png", _grid(rows, columns, titles))
        if DETECTED_BY.name in columns:
            at = columns.index(DETECTED_BY.name)
            only = [[*row[:2], row[at]] for row in rows]
            found = _grid(only, [*columns[:2], DETECTED_BY.name], titles)
            _save(folder / "parts" / f"found-{name}.png", found)
    patches = _draw_neighbours(images, plan)
    if patches is not None:
        _save(folder / f"figure5-{name}.png", patches)
    names = [category.name for category in plan.categories]
    _join(folder, "figure1", [f"found-{n}" for n in names])
    _join(folder, "figure3", [f"methods-{n}" for n in names if n not in TEXTURES])
    _join(folder, "figure4", [f"methods-{n}" for n in names if n in TEXTURES])


def _join(folder: Path, figure: str, parts: Sequence[str]) -> None:
    """Put the parts that are there below each other."""
    paths = [folder / "parts" / f"{part}.png" for part in parts]
    pictures = [np.asarray(Image.open(path)) for path in paths if path.is_file()]
    if pictures:
        _save(folder / f"{figure}.png", _stack(pictures))


def _draw_examples(
    images: Images, cells: CellStore
) -> tuple[list[str], list[str], list[list[Picture]]]:
    """Draw image, mask and the map of each variant: names of the columns, titles, and the rows.

    One image of each of the first kinds of defect, whose mask is of the kind's median area.
    """
    name, scored = images.category.name, select(images.category, "test").scored
    found = {v.name: cells.read_grids(name, "test", v) for v in SHOWN_VARIANTS}
    grids = {variant: kept for variant, kept in found.items() if kept is not None}
    kinds: dict[str, list[int]] = {}  # kind -> places in the split
    for place, i in enumerate(scored):
        if images.masks[i].any():
            kinds.setdefault(Path(images.infos[i].path).parent.name, []).append(place)
    titles, rows = [], []
    for kind in sorted(kinds)[:_EXAMPLES]:
        by_area = sorted(kinds[kind], key=lambda place: int(images.masks[scored[place]].sum()))
        place = by_area[len(by_area) // 2]
        shown, mask = images.shown(scored[place]), images.masks[scored[place]]
        heats = [_heat(shown, kept, place) for kept in grids.values()]
        titles.append(f"{name}, {kind}")
        rows.append([shown, _outline(shown, mask), *heats])
    return ["image", "mask", *grids], titles, rows


# --- figure 5 -----------------------------------------------------------------------------------


def _draw_neighbours(images: Images, plan: Plan) -> Picture | None:
    """A normal and an anomalous patch of one image, each with its nearest patches in the others."""
    scored = select(images.category, "test").scored
    marked = [i for i in scored if images.masks[i].any()]
    if not marked or len(scored) < 2:
        return None
    query = max(marked, key=lambda i: int(images.masks[i].sum()))
    others = [i for i in scored if i != query]
    settings = plan.scan_settings(DETECTED_BY)
    own, *rest = (grid.float() for grid in images.patches(settings, [query, *others]))
    bank = torch.stack(rest).flatten(0, 2)
    height, width = own.shape[:2]
    parts = []
    for kind, cell in _query_cells(images.masks[query], height, width).items():
        count = min(_NEIGHBOURS[-1], len(bank))
        found = nearest(own[cell][None], bank, count)
        distances, indices = (torch.as_tensor(value)[0].tolist() for value in found)
        row, labels = [_cut(images.shown(query), cell, height)], [f"{kind} patch"]
        for n in (n for n in _NEIGHBOURS if n <= count):
            image, patch = divmod(indices[n - 1], height * width)
            row.append(_cut(images.shown(others[image]), divmod(patch, width), height))
            labels.append(f"{n}: {distances[n - 1]:.2f}")
        parts.append(_grid([row], labels, [""]))
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


def _heat(shown: Picture, grids: Tensor, place: int) -> Picture:
    """An image under its map; the colours are one scale for all images of the method."""
    size = len(shown)
    chosen = [grids[place], *grids[:: max(1, len(grids) // 50)]]
    frame, *frames = (maps.smooth(grid.numpy(), size, size, size) for grid in chosen)
    pixels = np.concatenate([one[::4, ::4].ravel() for one in frames])
    low, high = np.quantile(pixels, 0.5), np.quantile(pixels, 0.998)
    share = np.clip((frame - low) / max(high - low, 1e-9), 0, 1)
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
    storage.write_bytes(path, encode(picture), durable=False)
