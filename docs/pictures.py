"""Draw the pictures of docs/how-it-works.md from the demo's parts, by what anyone can call.

    python docs/pictures.py [FOLDER]

FOLDER keeps the parts and their run, so that the next call need not scan again.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

import patchcluster
from patchcluster.demo import write_parts
from patchcluster.scores.colours import colours

HERE = Path(__file__).resolve().parent
SIDE = 360  # of a panel, pixels
CROP = 96  # pixels of an image that are shown of a place
GAP = 12
CAPTION = 26
INK, MARK = (40, 40, 40), (255, 60, 30)
FONT = ImageFont.load_default(15)


def main() -> None:
    given = sys.argv[1:]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(given[0] if given else temporary)
        if not (folder / "parts").is_dir():
            write_parts(folder / "parts")
        run = patchcluster.scan(folder / "parts" / "test", folder / "run")
        path = next(run.paths[i] for i in run.ranking if "scratch" in run.paths[i])
        places = {"a place on the scratch": _peak(run, path), "an ordinary place": (150, 330)}
        _save(_draw_patches(run, path, list(places.values())), "patches.jpg")
        _save(_draw_neighbours(run, path, places), "neighbours.jpg")
        _save(_draw_map(run, path), "map.jpg")


def _peak(run: patchcluster.Run, path: str) -> tuple[int, int]:
    """x, y of the most anomalous pixel."""
    heat = run.map(path)
    y, x = np.unravel_index(int(heat.argmax()), heat.shape)
    return int(x), int(y)


def _draw_patches(
    run: patchcluster.Run, path: str, places: Sequence[tuple[int, int]]
) -> Image.Image:
    """The image, its grid of patches, and the vectors' places that the next picture follows."""
    image = _open(path)
    rows, columns = run.grid(path).shape
    grid = image.resize((2 * SIDE, 2 * SIDE))
    draw = ImageDraw.Draw(grid)
    side = 2 * SIDE / columns
    for i in range(columns + 1):
        at = round(i * side)
        draw.line([(at, 0), (at, 2 * SIDE)], fill=(255, 255, 255), width=1)
        draw.line([(0, at), (2 * SIDE, at)], fill=(255, 255, 255), width=1)
    for x, y in places:
        column, row = int(x * columns / image.width), int(y * rows / image.height)
        box = [column * side, row * side, (column + 1) * side, (row + 1) * side]
        draw.rectangle(box, outline=MARK, width=4)
    panels = [image.resize((SIDE, SIDE)), grid.resize((SIDE, SIDE), Image.Resampling.LANCZOS)]
    return _row(panels, ["an image", f"its {rows} x {columns} patches, two of them marked"])


def _draw_neighbours(
    run: patchcluster.Run, path: str, places: dict[str, tuple[int, int]]
) -> Image.Image:
    """Places of an image, and the nearest places in other images."""
    rows = []
    for name, (x, y) in places.items():
        found = run.neighbours(path, x, y)
        crops = [_crop(path, x, y), *(_crop(n.path, n.x, n.y) for n in found)]
        captions = [name, *(f"distance {n.distance:.2f}" for n in found)]
        rows.append(_row(crops, captions))
    return _column(rows)


def _draw_map(run: patchcluster.Run, path: str) -> Image.Image:
    """Score grid, map and regions of an image."""
    image = _open(path)
    grid, heat = run.grid(path), run.map(path)
    high = float(grid.max())
    blocks = Image.fromarray(_paint(grid, high)).resize((SIDE, SIDE), Image.Resampling.NEAREST)
    smooth = Image.fromarray(_paint(heat, float(heat.max()))).resize((SIDE, SIDE))
    marked = image.copy()
    draw = ImageDraw.Draw(marked)
    regions = run.regions(path)
    for region in regions:
        corner = (region.x + region.width, region.y + region.height)
        draw.rectangle([(region.x, region.y), corner], outline=MARK, width=3)
    captions = ["score grid", "map", f"regions: {len(regions)}"]
    return _row([blocks, smooth, marked.resize((SIDE, SIDE))], captions)


def _open(path: str) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def _crop(path: str, x: float, y: float) -> Image.Image:
    """What lies around a place, which is marked."""
    half = CROP // 2
    crop = _open(path).crop((round(x) - half, round(y) - half, round(x) + half, round(y) + half))
    crop = crop.resize((SIDE // 2, SIDE // 2), Image.Resampling.LANCZOS)
    middle, arm = SIDE // 4, 16
    ImageDraw.Draw(crop).rectangle(
        [middle - arm, middle - arm, middle + arm, middle + arm], outline=MARK, width=2
    )
    return crop


def _paint(values: NDArray[Any], high: float) -> NDArray[np.uint8]:
    return colours(np.clip(values / high, 0, 1)).astype(np.uint8)


def _row(panels: Sequence[Image.Image], captions: Sequence[str]) -> Image.Image:
    width = sum(panel.width for panel in panels) + GAP * (len(panels) - 1)
    page = Image.new("RGB", (width, panels[0].height + CAPTION), "white")
    draw, x = ImageDraw.Draw(page), 0
    for panel, caption in zip(panels, captions, strict=True):
        page.paste(panel, (x, CAPTION))
        draw.text((x, 2), caption, fill=INK, font=FONT)
        x += panel.width + GAP
    return page


def _column(rows: Sequence[Image.Image]) -> Image.Image:
    height = sum(row.height for row in rows) + GAP * (len(rows) - 1)
    page = Image.new("RGB", (max(row.width for row in rows), height), "white")
    y = 0
    for row in rows:
        page.paste(row, (0, y))
        y += row.height + GAP
    return page


def _save(picture: Image.Image, name: str) -> None:
    picture.save(HERE / name, quality=85, optimize=True)


if __name__ == "__main__":
    main()
