"""A place of the image as it is displayed, in the network's input and in the regions of a run.

Whatever the size, aspect and EXIF orientation of a file, and however it is brought to the network:
its pixels are where they are displayed, and a score is where the pixels are that it is of.
"""

import io

import numpy as np
import pytest
import tifffile
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from conftest import exif_of
from patchcluster.images.decode import load_image, read_header
from patchcluster.images.raster import encode
from patchcluster.images.shapes import network_size
from patchcluster.network.tiling import native_size
from patchcluster.scores.finish import MapRule, finish
from patchcluster.scores.maps import find_regions, fuse, round_as_stored
from png_files import deep_png, insert_chunk

CELL = 16  # pixels of the network's input along a cell of a score grid
RANGES = {"integer": [0.0, 65_535.0], "float": [0.0, 1.0]}
EXIF_ORIENTATION = 0x0112
# How a displayed picture is stored, by its orientation, which says (EXIF 2.32) on which sides of
# what is displayed the first row and the first column are.
STORED = {
    1: lambda shown: shown,
    2: lambda shown: shown[:, ::-1],
    3: lambda shown: shown[::-1, ::-1],
    4: lambda shown: shown[::-1],
    5: lambda shown: shown.swapaxes(0, 1),
    6: lambda shown: shown[:, ::-1].swapaxes(0, 1),  # first row: right side, from the top
    7: lambda shown: shown[::-1, ::-1].swapaxes(0, 1),
    8: lambda shown: shown[::-1].swapaxes(0, 1),  # first row: left side, from the bottom
}
WAYS = {
    "one size": lambda width, height: [network_size(width, height, 64)],
    "two sizes": lambda width, height: [network_size(width, height, size) for size in (64, 96)],
    "tiles": lambda width, height: [native_size(width, height, 64, 32)],
}
SIDES = st.integers(20, 400)
SHARES = st.floats(0, 1, exclude_max=True)


def pillow(format_, **options):
    def write(shown, orientation):
        stored = np.ascontiguousarray(STORED[orientation](shown)).astype(np.uint8)
        return encode(stored, format_, exif=exif_of(orientation), **options)

    return write


def deep_colour_png(shown, orientation):
    stored = np.repeat(STORED[orientation](shown)[..., None], 3, 2).astype(np.uint16) * 257
    raw = exif_of(orientation).tobytes().removeprefix(b"Exif\0\0")
    return insert_chunk(deep_png(stored), b"eXIf", raw, behind_pixels=False)


def deep_colour_tiff(shown, orientation):
    stored = np.repeat(STORED[orientation](shown)[..., None], 3, 2).astype(np.uint16) * 257
    buffer = io.BytesIO()
    tag = (EXIF_ORIENTATION, "H", 1, orientation, True)
    tifffile.imwrite(buffer, stored, photometric="rgb", extratags=[tag])
    return buffer.getvalue()


def deep_grey_tiff(shown, orientation):
    stored = np.ascontiguousarray(STORED[orientation](shown)).astype(np.uint16) * 257
    return encode(stored, "TIFF", exif=exif_of(orientation))


WRITERS = {
    "png": pillow("PNG"),
    "jpeg": pillow("JPEG", quality=95),
    "webp": pillow("WEBP", lossless=True),
    "tiff": pillow("TIFF"),
    "tiff-lzw": pillow("TIFF", compression="tiff_lzw"),
    "deep grey tiff": deep_grey_tiff,
    "deep colour png": deep_colour_png,
    "deep colour tiff": deep_colour_tiff,
}


def dot_at(width, height, x, y):
    """A dark picture with a bright dot of 3 x 3 pixels, uint8 [height, width], and its centre."""
    shown = np.zeros((height, width), np.uint8)
    shown[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2] = 255
    return shown, [float(at.mean()) + 0.5 for at in np.nonzero(shown)]


def check_dot(data, width, height, centre, sizes):
    """The dot is in the input where it is displayed, and so is the light of the thumbnail."""
    header = read_header(data)
    assert (header.width, header.height) == (width, height)
    loaded = load_image(data, header, sizes, RANGES)
    with Image.open(io.BytesIO(loaded.thumbnail)) as thumbnail:
        pictures = [
            *(pixels[..., 1] for pixels in loaded.pixels),
            np.asarray(thumbnail.convert("L")),
        ]
    for picture, size in zip(pictures, [*sizes, pictures[-1].shape], strict=True):
        assert picture.shape == size
        light = picture.astype(np.float64)
        light[light < light.max() / 3] = 0  # what JPEG and the resizing spread
        for axis, (side, of) in enumerate(zip((height, width), size, strict=True)):
            found = np.average(np.arange(of) + 0.5, weights=light.sum(1 - axis))
            scale = of / side
            assert abs(found - centre[axis] * scale) <= 1 + scale


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("orientation", STORED)
@settings(max_examples=5, derandomize=True, database=None)
@given(SIDES, SIDES, SHARES, SHARES)
@example(400, 20, 0.99, 0.5)
@example(20, 400, 0.0, 0.99)
def test_pixels_are_where_they_are_displayed(kind, orientation, width, height, across, down):
    shown, centre = dot_at(width, height, int(across * width), int(down * height))
    data = WRITERS[kind](shown, orientation)
    for way in WAYS.values():
        check_dot(data, width, height, centre, way(width, height))


def find_boxes(width, height, x, y, way):
    """Regions of an image one cell of which has a score: that which sees the pixel (x, y)."""
    grids = []
    for high, wide in WAYS[way](width, height):
        grid = np.zeros((high // CELL, wide // CELL), np.float32)
        row, column = (
            int((at + 0.5) * cells / side)
            for at, cells, side in zip((y, x), grid.shape, (height, width), strict=True)
        )
        grid[row, column] = 3
        grids.append(grid)
    rule = MapRule(256, 64 if way == "tiles" else None, "max")
    image_map = finish(round_as_stored(fuse(grids)), width, height, rule).map()
    assert image_map.shape == (height, width)
    # Half way to the next cell, along both sides, there is a quarter of the score.
    return find_regions(image_map, 0.15 * float(image_map.max())), grids[0].shape


@settings(max_examples=250, deadline=None, derandomize=True, database=None)
@given(SIDES, SIDES, SHARES, SHARES, st.sampled_from(list(WAYS)))
@example(400, 20, 0.99, 0.5, "one size")
@example(20, 400, 0.5, 0.0, "two sizes")
@example(400, 400, 0.5, 0.5, "tiles")
@example(20, 20, 0.99, 0.99, "tiles")
def test_a_region_contains_the_place_that_its_score_is_of(width, height, across, down, way):
    x, y = int(across * width), int(down * height)
    (region,), (rows, columns) = find_boxes(width, height, x, y, way)
    assert region.x <= x < region.x + region.width
    assert region.y <= y < region.y + region.height
    # It goes no further than the next cells, and what the Gaussian and the pixels add.
    growth = max(1.0, (width * height) ** 0.5 / 64) if way == "tiles" else 1.0
    frame_pixel = (width * height) ** 0.5 / (256 * growth)  # in pixels of the image
    for start, length, at, side, cells in (
        (region.x, region.width, x, width, columns),
        (region.y, region.height, y, height, rows),
    ):
        reach = 2 * side / cells + 12 * frame_pixel + 2
        assert at - reach <= start
        assert start + length <= at + reach + 1
