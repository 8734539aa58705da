import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from patchcluster.errors import SettingError
from patchcluster.scores.maps import (
    SIGMA,
    Region,
    find_regions,
    fuse,
    score_image,
    smooth,
    to_image,
)


def bilinear64(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear interpolation with half-pixel centres and repeated edges, by the definition."""
    h, w = values.shape
    y = np.clip((np.arange(height) + 0.5) * h / height - 0.5, 0, h - 1)
    x = np.clip((np.arange(width) + 0.5) * w / width - 0.5, 0, w - 1)
    y0, x0 = np.floor(y).astype(int), np.floor(x).astype(int)
    y1, x1 = np.minimum(y0 + 1, h - 1), np.minimum(x0 + 1, w - 1)
    fy, fx = (y - y0)[:, None], x - x0
    top = values[y0][:, x0] * (1 - fx) + values[y0][:, x1] * fx
    bottom = values[y1][:, x0] * (1 - fx) + values[y1][:, x1] * fx
    return top * (1 - fy) + bottom * fy


def test_map_is_bilinear_then_gaussian_then_bilinear():
    grid = np.random.default_rng(0).random((7, 7)).astype(np.float32)
    frame = smooth(grid, 64, 200, 200)
    expected = ndimage.gaussian_filter(bilinear64(grid, 64, 64), 4.0, mode="nearest")
    np.testing.assert_allclose(frame, expected, rtol=1e-4)
    np.testing.assert_allclose(
        to_image(frame, 200, 150), bilinear64(frame, 150, 200), rtol=1e-4, atol=1e-5
    )
    assert SIGMA == 4.0  # the paper's


@pytest.mark.parametrize(
    ("width", "height", "shape"),
    [(100, 100, (256, 256)), (400, 100, (128, 512)), (9, 900, (2560, 26))],
)
def test_frame_has_the_aspect_of_the_image_and_a_fixed_area(width, height, shape):
    assert smooth(np.ones((4, 4), np.float32), 256, width, height).shape == shape


def test_image_scores():
    values = np.arange(1000, dtype=np.float32).reshape(20, 50)
    assert score_image(values, "max") == 999
    assert score_image(values, "top1%") == np.mean(range(990, 1000))
    assert score_image(np.array([[3.0]], np.float32), "top1%") == 3
    with pytest.raises(SettingError, match="top1%"):
        score_image(values, "median")  # type: ignore[arg-type]


def test_regions_of_a_hand_drawn_map():
    image_map = np.zeros((6, 9), np.float32)
    image_map[1, 1] = 2
    image_map[2, 2] = 3  # touches by a corner: the same region
    image_map[4:6, 5:9] = 1.5
    image_map[0, 8] = 1  # not above the threshold
    assert find_regions(image_map, 1.0) == [
        Region(x=1, y=1, width=2, height=2, area=2, peak=3.0),
        Region(x=5, y=4, width=4, height=2, area=8, peak=1.5),
    ]
    assert find_regions(image_map, 3.0) == []


@given(st.integers(0, 2**31), st.floats(0, 1))
def test_regions_cover_exactly_what_is_above(seed, threshold):
    image_map = np.random.default_rng(seed).random((12, 15)).astype(np.float32)
    regions = find_regions(image_map, threshold)
    assert sum(region.area for region in regions) == (image_map > threshold).sum()
    inside = np.zeros(image_map.shape, bool)
    for region in regions:
        box = np.s_[region.y : region.y + region.height, region.x : region.x + region.width]
        inside[box] = True
        assert (image_map[box] == np.float32(region.peak)).any()
    assert inside[image_map > threshold].all()


def test_fused_grids_are_the_mean_on_the_finest_grid():
    coarse = np.array([[0.0, 2.0]], np.float32)
    fine = np.array([[1.0, 1.0, 1.0, 1.0]], np.float32)
    expected = (bilinear64(coarse, 1, 4) + fine) / 2
    np.testing.assert_allclose(fuse([coarse, fine]), expected)
    np.testing.assert_array_equal(fuse([fine]), fine)
