"""Draw a small set of machined flanges with known defects.

Lengths are in units of 1/512 of the image side, so a part looks the same at every image size.
The image plane is x to the right, y downwards and z towards the camera; the origin is the part's
centre. The part is a height map, so a dent or a scratch changes the shading as it would in metal.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from .images.raster import encode
from .runs import storage

Floats = NDArray[np.floating[Any]]  # float32 throughout, for speed
Bools = NDArray[np.bool_]
Points = list[tuple[float, float]]

DEFECTS = ("scratch", "dent", "stain", "chip")

FIELD = 512.0
RIM_RADIUS = 205.0
BORE_RADIUS = 62.0
HUB_RADIUS = 96.0
GROOVE_RADIUS = 180.0
HOLE_COUNT = 6
HOLE_RADIUS = 14.0
BOLT_CIRCLE_RADIUS = 142.0
KEYWAY_WIDTH = 20.0
KEYWAY_LENGTH = 76.0  # from the centre of the bore
CHAMFER = 4.0

TABLE_COLOUR = np.array([0.23, 0.26, 0.27], np.float32)
STAIN_COLOUR = np.array([0.72, 0.55, 0.36], np.float32)


@dataclass(frozen=True)
class Defect:
    """Where a defect is and what it changes; each is [size, size], or one number for all pixels.

    The change of height, the opacity of a stain, and the signed distance to metal that has broken
    away (negative within it).
    """

    mask: Bools
    height: Floats | float = 0.0
    stain: Floats | float = 0.0
    broken: Floats | float = FIELD


def draw_part(
    rng: np.random.Generator, defect: str | None = None, size: int = 512
) -> tuple[NDArray[np.uint8], Bools]:
    """Draw one part: image uint8 [size, size, 3] and defect mask bool [size, size]."""
    if defect is not None and defect not in DEFECTS:
        raise ValueError(f"unknown defect {defect!r}; choose from {', '.join(DEFECTS)}")
    pixel = FIELD / size
    axis = ((np.arange(size) + 0.5) * pixel - FIELD / 2).astype(np.float32)
    frame_x, frame_y = np.meshgrid(axis, axis)
    x, y = frame_x - rng.uniform(-12, 12), frame_y - rng.uniform(-12, 12)
    turn = rng.uniform(0, 2 * math.pi)
    light_angle = rng.normal(-2.2, 0.12)
    brightness = rng.normal(1, 0.03)
    marks = _turning_marks(rng, x, y)
    # Faint clouds and a fine grain on a matt work table.
    table = 1 + 0.03 * _smooth_noise(rng, size, 6) + 0.05 * _smooth_noise(rng, size, 200)
    holes = _hole_centres(turn, first=int(rng.integers(HOLE_COUNT)))
    flaw = _make_defect(rng, defect, x, y, holes)

    whole = _part_distance(x, y, turn, holes)
    distance = np.maximum(whole, -flaw.broken)
    height = _part_height(x, y, distance) + flaw.height
    metal = _shade_metal(x, y, height, marks, light_angle, pixel)[..., None]
    metal = metal * (1 - np.asarray(flaw.stain, np.float32)[..., None] * (1 - STAIN_COLOUR))
    table = (table * _table_light(x, y, turn, holes, light_angle))[..., None] * TABLE_COLOUR
    coverage = np.clip(0.5 - distance / pixel, 0, 1)[..., None]
    vignette = 1 - 0.16 * (frame_x**2 + frame_y**2) / (FIELD / 2) ** 2
    scene = (table + coverage * (metal - table)) * (brightness * vignette[..., None])
    return _photograph(rng, scene, pixel), flaw.mask & (whole < 0)


def write_parts(
    folder: Path,
    good: int = 48,
    defective: int = 12,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Write the parts in the MVTec AD layout and return the paths of the images.

    `defective` is the total over all kinds of defect. Image i depends on (seed, i) only.
    """
    paths = []
    for index in range(good + defective):
        number, kind = index, None
        if index >= good:
            number, kind_index = divmod(index - good, len(DEFECTS))
            kind = DEFECTS[kind_index]
        image, mask = draw_part(np.random.default_rng([seed, index]), kind)
        paths.append(folder / "test" / (kind or "good") / f"{number:03d}.png")
        _save(paths[-1], image)
        if kind is not None:
            mask_path = folder / "ground_truth" / kind / f"{number:03d}_mask.png"
            _save(mask_path, mask.astype(np.uint8) * 255)
        if progress is not None:
            progress(index + 1, good + defective)
    return paths


def _save(path: Path, image: NDArray[np.uint8]) -> None:
    """Save an image [size, size] or [size, size, 3] in a folder that may not exist yet."""
    data = encode(image, compress_level=3)  # noise hardly packs better at 6
    storage.write_bytes(path, data, durable=False)


def _hole_centres(turn: float, first: int) -> Points:
    """Centres (x, y) of the bolt holes; the keyway lies midway between two of them."""
    angles = [turn + (first + i + 0.5) * 2 * math.pi / HOLE_COUNT for i in range(HOLE_COUNT)]
    return [(BOLT_CIRCLE_RADIUS * math.cos(a), BOLT_CIRCLE_RADIUS * math.sin(a)) for a in angles]


def _part_distance(x: Floats, y: Floats, turn: float, holes: Points) -> Floats:
    """Signed distance [size, size] to the outline of the part, negative inside the metal."""
    radius = np.sqrt(x**2 + y**2)
    along = x * math.cos(turn) + y * math.sin(turn) - KEYWAY_LENGTH / 2
    across = y * math.cos(turn) - x * math.sin(turn)
    keyway = np.maximum(np.abs(across) - KEYWAY_WIDTH / 2, np.abs(along) - KEYWAY_LENGTH / 2)
    opening = np.minimum(radius - BORE_RADIUS, keyway)
    for hole_x, hole_y in holes:
        hole = np.sqrt((x - hole_x) ** 2 + (y - hole_y) ** 2) - HOLE_RADIUS
        opening = np.minimum(opening, hole)
    distance: Floats = np.maximum(radius - RIM_RADIUS, -opening)
    return distance


def _part_height(x: Floats, y: Floats, distance: Floats) -> Floats:
    """Height [size, size] of the surface: chamfered edges, a raised hub and an engraved ring."""
    radius = np.sqrt(x**2 + y**2)
    chamfer = -0.45 * np.clip(CHAMFER + distance, 0, CHAMFER)
    hub = 2.5 * (1 - np.tanh((radius - HUB_RADIUS) / 3))
    groove = -1.4 * np.exp(-(((radius - GROOVE_RADIUS) / 1.8) ** 2))
    height: Floats = chamfer + hub + groove
    return height


def _turning_marks(rng: np.random.Generator, x: Floats, y: Floats) -> Floats:
    """Concentric tool marks [size, size], mean 0: noise that is fine in radius, long in angle."""
    angle_cells, radius_cells = 40, int(FIELD)
    rings = rng.normal(0, 0.8, radius_cells)
    grid = (rings + rng.normal(0, 0.6, (angle_cells, radius_cells))).astype(np.float32)
    angle = (np.arctan2(y, x) / (2 * math.pi) + 0.5) * angle_cells
    radius = np.sqrt(x**2 + y**2)
    row, column = np.floor(angle).astype(np.intp), np.floor(radius).astype(np.intp)
    # Bilinear interpolation, periodic in the angle so that no seam shows.
    here, following = row % angle_cells, (row + 1) % angle_cells
    inner = grid[here, column] + (angle - row) * (grid[following, column] - grid[here, column])
    column1 = column + 1
    outer = grid[here, column1] + (angle - row) * (grid[following, column1] - grid[here, column1])
    marks: Floats = (inner + (radius - column) * (outer - inner)).astype(np.float32)
    return marks


def _shade_metal(
    x: Floats, y: Floats, height: Floats, marks: Floats, light_angle: float, pixel: float
) -> Floats:
    """Grey level [size, size] of turned metal under a key light and a weaker second light."""
    slope_y, slope_x = np.gradient(height, np.float32(pixel))
    normal_z = 1 / np.sqrt(1 + slope_x**2 + slope_y**2)
    radius = np.sqrt(x**2 + y**2) + 1  # never 0
    grey: Floats = 0.15 + 0.15 * normal_z + 0.012 * marks
    lights = ((light_angle, 0.75, 0.17), (light_angle + 1.9, 0.40, 0.22))
    for angle, power, width in lights:
        # The half vector between the light and the camera.
        half_x, half_y, half_z = 0.32 * math.cos(angle), 0.32 * math.sin(angle), 0.947
        along_normal = (half_z - half_x * slope_x - half_y * slope_y) * normal_z
        # The marks run along the tangent and scatter light across it (Ward's anisotropic model).
        along_tangent = (half_y * x - half_x * y) / radius
        across = np.clip(1 - along_normal**2 - along_tangent**2, 0, 1)
        lobe = np.exp(-((along_tangent / width) ** 2 + across / 0.16) / along_normal**2)
        grey = grey + power * lobe * (1 + 0.09 * marks)
    return grey


def _table_light(x: Floats, y: Floats, turn: float, holes: Points, light_angle: float) -> Floats:
    """Share of light [size, size] that reaches the table past the part: its soft shadow."""
    towards_x, towards_y = 9 * math.cos(light_angle), 9 * math.sin(light_angle)
    distance = _part_distance(x + towards_x, y + towards_y, turn, holes)
    light: Floats = 0.62 + 0.38 * np.tanh(distance / 8)
    return light


def _smooth_noise(rng: np.random.Generator, size: int, cells: int) -> Floats:
    """Noise [size, size] of about unit variance, with `cells` random values along each side."""
    grid = rng.normal(size=(cells, cells)).astype(np.float32)
    return np.asarray(Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC))


def _make_defect(
    rng: np.random.Generator, kind: str | None, x: Floats, y: Floats, holes: Points
) -> Defect:
    """Make a defect of the given kind near the first two holes, or an empty one for None."""
    if kind is None:
        return Defect(np.zeros_like(x, bool))
    (x0, y0), (x1, y1) = holes[0], holes[1]
    if kind == "chip":
        return _chip(rng, x, y, math.atan2(y0 + y1, x0 + x1))
    # Near the middle between two holes, so that the defect does not fall into an opening.
    weight0, weight1 = rng.uniform(0.48, 0.66), rng.uniform(0.48, 0.66)
    x, y = x - weight0 * x0 - weight1 * x1, y - weight0 * y0 - weight1 * y1
    return {"scratch": _scratch, "dent": _dent, "stain": _stain}[kind](rng, x, y)


def _chip(rng: np.random.Generator, x: Floats, y: Floats, direction: float) -> Defect:
    """A piece broken out of the rim in a direction from the centre; x and y are [size, size]."""
    radius, turned = rng.uniform(12, 20), direction + rng.uniform(-0.4, 0.4)
    centre = RIM_RADIUS + rng.uniform(-0.1, 0.3) * radius
    from_centre = np.hypot(x - centre * math.cos(turned), y - centre * math.sin(turned))
    broken = from_centre - radius * (1 + 0.12 * _smooth_noise(rng, len(x), 40))
    return Defect(broken < 0, broken=broken.astype(np.float32))


def _scratch(rng: np.random.Generator, x: Floats, y: Floats) -> Defect:
    """A curved groove through the origin that tapers to its ends; x and y are [size, size]."""
    direction = rng.uniform(0, math.pi)
    half_length, width = rng.uniform(32, 70), rng.uniform(0.8, 1.1)
    bend = rng.uniform(-0.25, 0.25) / half_length
    along = x * math.cos(direction) + y * math.sin(direction)
    offset = y * math.cos(direction) - x * math.sin(direction) - bend * along**2
    across = offset / np.sqrt(1 + (2 * bend * along) ** 2)
    taper = np.sqrt(np.clip(1 - (along / half_length) ** 2, 0, 1))
    groove = np.exp(-((across / width) ** 2)) * taper
    return Defect((np.abs(across) < 1.8 * width) & (taper > 0), height=-1.3 * groove)


def _dent(rng: np.random.Generator, x: Floats, y: Floats) -> Defect:
    """A shallow round pit at the origin; x and y are [size, size]."""
    radius = rng.uniform(14, 28)
    pit = np.clip(1 - (x**2 + y**2) / radius**2, 0, 1) ** 2
    return Defect(pit > 0, height=-0.17 * radius * pit)


def _stain(rng: np.random.Generator, x: Floats, y: Floats) -> Defect:
    """A translucent blot around the origin, darker near its border; x and y are [size, size]."""
    radius, size = rng.uniform(20, 45), len(x)
    wobble = 0.14 * _smooth_noise(rng, size, 16) + 0.05 * _smooth_noise(rng, size, 34)
    inside = np.clip(radius * (1 + wobble) - np.sqrt(x**2 + y**2), 0, None)
    cloud = 0.40 + 0.05 * _smooth_noise(rng, size, 24) + 0.25 * np.exp(-inside / 6)
    opacity = np.clip(inside / 6, 0, 1) * cloud
    return Defect(inside > 0, stain=opacity)


def _photograph(rng: np.random.Generator, scene: Floats, pixel: float) -> NDArray[np.uint8]:
    """Blur the scene [size, size, 3] (values 0 to 1) slightly and add sensor noise; uint8."""
    sharp = Image.fromarray((np.clip(scene, 0, 1) * 255).round().astype(np.uint8))
    blurred = np.asarray(sharp.filter(ImageFilter.GaussianBlur(0.7 / pixel)))
    grey_noise = rng.normal(0, 1.3, (*blurred.shape[:2], 1))
    colour_noise = rng.normal(0, 0.5, blurred.shape)
    return np.clip(blurred + grey_noise + colour_noise, 0, 255).round().astype(np.uint8)
