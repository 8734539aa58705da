"""The window of deep images: what hot pixels, hot images and additions to a set do to it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchcluster.images.window import apply_window, choose_windows, measure_spread


def window_of(images, kind="integer", **given):
    spreads = [measure_spread(np.float32(image), None, kind) for image in images]
    return choose_windows(spreads, **given)[kind]


def noise(low, high, seed=0, side=64):
    """An image of values spread evenly from low to high."""
    return np.random.default_rng(seed).uniform(low, high, (side, side)).round()


def contrast(image, window):
    """The range of grey levels that the middle 90 % of an image take."""
    lower, upper = np.quantile(apply_window(np.float32(image), window), [0.05, 0.95])
    return upper - lower


def test_a_hot_pixel_does_not_darken_a_12_bit_set():
    images = [noise(200, 3800, seed) for seed in range(20)]
    assert window_of(images)[1] <= 4096
    images[3][5, 7] = 65_535
    window = window_of(images)
    assert window[1] <= 5120  # wider by a quarter: by how much the pixel is hotter says nothing
    assert contrast(images[0], window) > 150
    assert apply_window(np.float32(images[3]), window)[5, 7] == 255


def test_a_narrow_range_far_from_zero_is_spread():
    images = [noise(51_200, 52_200, seed) for seed in range(6)]
    assert contrast(images[0], window_of(images)) > 120


@pytest.mark.parametrize("count", [4, 19, 149])
def test_a_hot_image_looks_like_no_other_and_leaves_the_others_as_they_are(count):
    images = [noise(1000, 2000, seed) for seed in range(count)]
    before = window_of(images)
    images.append(noise(20_000, 60_000, 99))
    after = window_of(images)
    assert contrast(images[0], after) > 0.7 * contrast(images[0], before)
    hot, usual = (apply_window(np.float32(images[i]), after) for i in (-1, 0))
    assert hot.min() > usual.max()


def test_a_hot_place_is_brighter_than_all_else_though_it_is_clipped():
    images = [noise(1000, 2000, seed) for seed in range(30)]
    images[4][10:13, 10:13] = 9000
    shown = apply_window(np.float32(images[4]), window_of(images))
    assert (shown[10:13, 10:13] == 255).all()
    assert np.delete(shown.ravel(), np.flatnonzero(images[4].ravel() == 9000)).max() < 240


@pytest.mark.parametrize(
    ("images", "kind"),
    [
        ([np.full((8, 8), 700.0)] * 3, "integer"),
        ([np.full((8, 8), 0.0)], "float"),
        ([np.full((8, 8), -1e-38), np.full((8, 8), 1e-38)], "float"),
        ([np.full((8, 8), -3e38), np.full((8, 8), 3e38)], "float"),
    ],
)
def test_odd_sets_give_finite_pixels(images, kind):
    window = window_of(images, kind)
    for image in images:
        shown = apply_window(np.float32(image), window)
        assert np.isfinite(shown).all()
        assert 0 <= shown.min() <= shown.max() <= 255


def test_almost_constant_images_show_the_pixels_that_differ():
    image = np.full((64, 64), 1000.0)
    image[3, 4] = 1200
    shown = apply_window(np.float32(image), window_of([image]))
    assert shown[3, 4] - shown[0, 0] > 200


def test_every_kind_has_its_own_window_and_8_bits_have_none():
    whole, share = noise(0, 4000), noise(0, 4000) / 4000
    spreads = [measure_spread(np.float32(whole), None, "integer"), None]
    spreads.append(measure_spread(np.float32(share), None, "float"))
    windows = choose_windows(spreads)
    assert list(windows) == ["float", "integer"]
    assert windows["float"][1] <= 1.25 < 3000 < windows["integer"][1]
    assert choose_windows([None, None]) == {}


def test_a_window_that_is_given_is_taken():
    assert window_of([noise(0, 9000)], given=(100, 4095)) == [100, 4095]


@given(st.lists(st.tuples(st.integers(0, 60_000), st.integers(1, 5000)), min_size=1, max_size=30))
def test_the_order_of_images_does_not_matter_and_most_values_are_inside(bounds):
    images = [noise(low, low + width, i, 16) for i, (low, width) in enumerate(bounds)]
    low, high = window_of(images)
    assert window_of(images[::-1]) == [low, high]
    inside = [float(((low <= image) & (image <= high)).mean()) for image in images]
    assert np.median(inside) > 0.9


def test_one_more_ordinary_image_seldom_changes_the_window():
    changed = 0
    for seed in range(60):
        images = [noise(900 + seed, 2100 + 3 * seed, 100 * seed + i, 32) for i in range(21)]
        changed += window_of(images[:20]) != window_of(images)
    assert changed <= 3


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (np.arange(4_000_000_000, 4_000_000_100, dtype=np.uint32), "integer"),
        (np.linspace(101_325, 101_325.01, 100), "float"),
    ],
)
def test_numbers_that_float32_does_not_hold_stay_apart(values, kind):
    image = values.reshape(10, 10)
    window = choose_windows([measure_spread(image, None, kind)])[kind]
    shown = apply_window(image, window)
    assert shown.dtype == np.float32
    expected = 255 * (values.astype(float) - window[0]) / (window[1] - window[0])
    np.testing.assert_allclose(shown.ravel(), expected, atol=0.01)
