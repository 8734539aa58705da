"""Tiles: geometry, the stitched stages against the whole image, and seams in maps and scores."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

import patchcluster
from conftest import save_image
from patchcluster.errors import SettingError
from patchcluster.images.shapes import network_size
from patchcluster.methods import PatchClusterPlus
from patchcluster.network.backbones import load_backbone, random_backbone
from patchcluster.network.patches import patch_grid
from patchcluster.network.tiling import (
    find_lattice,
    largest_tile,
    native_size,
    tile_places,
    tile_weights,
    tiled_features,
)
from patchcluster.scores.finish import SetBaseline
from patchcluster.scores.maps import frame_growth, score_image
from patchcluster.settings import resolve


def surface(seed: int, side: int) -> np.ndarray:
    """A rough surface, uint8 [side, side, 3]: noise of several widths, the same everywhere."""
    rng = np.random.default_rng(seed)
    layers = [
        weight * ndimage.gaussian_filter(rng.normal(size=(side, side)), width, mode="wrap") * width
        for width, weight in ((1, 25), (3, 25), (8, 25))
    ]
    grey = 128 + 3 * sum(layers)
    return np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[..., None], 3, 2)


def with_spot(image: np.ndarray, x: float, y: float, radius: float = 6) -> np.ndarray:
    """A bright ring with a dark centre at (x, y)."""
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]]
    distance = np.hypot(columns - x, rows - y)
    spotted = image.copy()
    spotted[distance < radius] = 245
    spotted[distance < radius / 2] = 10
    return spotted


# --- geometry -----------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(cells=st.integers(1, 300), size=st.integers(32, 600), lattice=st.sampled_from([32, 14, 16]))
def test_tiles_cover_a_side_and_their_weights_sum_to_1_everywhere(cells, size, lattice):
    length = cells * lattice
    places = tile_places(length, size, lattice)
    widths = {stop - start for start, stop in places}
    assert len(widths) == 1
    assert max(widths) <= max(2 * size, 2 * lattice)
    assert (places[0][0], places[-1][1]) == (0, length)
    assert all(start % lattice == 0 for start, _ in places)
    for stride in {lattice, lattice // 2}:
        total = np.zeros(length // stride)
        for (start, stop), weight in zip(
            places, tile_weights(places, size, lattice, stride), strict=True
        ):
            assert (weight >= 0).all()
            total[start // stride : stop // stride] += weight.numpy()
        np.testing.assert_allclose(total, 1, rtol=1e-5)


def test_cells_at_an_inner_edge_have_no_weight_and_those_at_a_true_edge_have_all():
    places = tile_places(1792, 448, 32)
    assert places == [(0, 832), (480, 1312), (960, 1792)]
    first, middle, last = tile_weights(places, 448, 32, 8)
    assert first[0] == 1
    assert last[-1] == 1
    margin = 3 / 8 * 352 / 8  # cells
    for edge in (first.flip(0), middle, middle.flip(0), last):
        assert (edge[: int(margin)] == 0).all()
        assert edge[int(352 / 8 - margin) + 1] == 1


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(32, 512))
def test_the_input_is_as_large_as_the_image_if_that_is_over_the_networks_size(width, height, size):
    plain = network_size(width, height, size)
    found = native_size(width, height, size, 32)
    own = tuple(max(32, side // 32 * 32) for side in (height, width))
    assert found == (own if math.prod(own) > math.prod(plain) else plain)


def test_the_lattice_lines_up_the_cells_of_every_network():
    assert find_lattice([8, 16, 32]) == 32
    assert find_lattice([16, 16]) == 32
    assert find_lattice([14, 14]) == 14
    assert largest_tile(1792, 512, 448, 32) == 832 * 512
    assert largest_tile(1504, 512, 448, 32) == 1504 * 512  # no more than 896 x 896


# --- stages -------------------------------------------------------------------------------------


def stitching_errors(backbone, image):
    """Distances of stitched patches to those of the whole image, in units of their spread."""
    for stitched, whole in zip(
        tiled_features(backbone, [image], 448), backbone.features([image]), strict=True
    ):
        spread = (whole - whole.mean((0, 2, 3), keepdim=True)).norm(dim=1).mean()
        yield (stitched - whole).norm(dim=1) / spread


def test_stitched_stages_of_random_weights_are_those_of_the_whole_image():
    backbone = random_backbone("resnet18", strides=(8, 16))
    assert all(error.max() < 0.03 for error in stitching_errors(backbone, surface(0, 1024)))


def test_stitched_stages_of_the_default_network_are_nearly_those_of_the_whole_image():
    backbone = load_backbone(strides=(8, 16, 32))
    errors = [float(error.mean()) for error in stitching_errors(backbone, surface(1, 1024))]
    assert errors[0] < 1e-4
    assert errors[1] < 1e-3
    assert errors[2] < 0.08


# --- seams in maps ------------------------------------------------------------------------------

SIDE, SIZE = 768, 256  # two tiles a side: the seam is in the middle


@pytest.fixture(scope="module")
def score():
    """What scores an image by its patches, tiled or not, in a window of them.

    The bank holds the patches of images in one piece, so that it has nothing like a tile's border.
    """
    backbone = load_backbone(strides=(8, 16, 32))

    def patches(image, tiled):
        stages = tiled_features(backbone, [image], SIZE) if tiled else backbone.features([image])
        return patch_grid(stages, "middle")[0]

    assert len(tile_places(SIDE, SIZE, 32)) == 2
    method = PatchClusterPlus(stages=backbone.channels, strides=backbone.strides)
    method.fit_score([patches(surface(seed, SIDE), False) for seed in range(6)])
    everything = slice(None)

    def score(image, tiled, rows=everything, columns=everything):
        return method.score([patches(image, tiled)[rows, columns]])[0].numpy()

    return score


@pytest.mark.slow
def test_a_defect_that_is_moved_across_a_border_keeps_its_score(score):
    def peaks(centre_x, tiled):
        """Highest scores near the defect, in the middle row of the image."""
        rows, columns = (slice((c - 96) // 16, (c + 96) // 16) for c in (SIDE // 2, centre_x))
        images = [
            with_spot(surface(99, SIDE), centre_x + shift, SIDE // 2) for shift in range(-16, 17, 4)
        ]
        return np.array([score(image, tiled, rows, columns).max() for image in images])

    across, within = peaks(SIDE // 2, True), peaks(SIDE // 2 - 192, True)
    assert np.ptp(across) <= 1.5 * np.ptp(within)
    assert across.mean() == pytest.approx(within.mean(), rel=0.1)
    np.testing.assert_allclose(across, peaks(SIDE // 2, False), rtol=0.05)


@pytest.mark.slow
def test_maps_of_ordinary_surfaces_are_those_of_the_image_in_one_piece(score):
    images = [surface(seed, SIDE) for seed in (96, 97, 98)]
    tiled, whole = ([score(image, which) for image in images] for which in (True, False))
    for a, b in zip(tiled, whole, strict=True):
        assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.975
    # No step at the border: what columns have in common changes no more there than elsewhere.
    steps = np.abs(np.diff(np.mean(tiled, axis=0), axis=1)).mean(0)[4:-4]
    seam = np.r_[len(steps) // 2 - 6 : len(steps) // 2 + 6]
    assert steps[seam].max() <= 1.1 * np.delete(steps, seam).max()


# --- whole scans --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """8 surfaces of 1024 x 1024 pixels, one with a defect 12 pixels wide."""
    root = tmp_path_factory.mktemp("large")
    for seed in range(8):
        image = surface(seed, 1024)
        if seed == 7:
            image = with_spot(image, 700, 300)
        save_image(root / f"{seed}.png", image, compress_level=1)
    return root


@pytest.fixture(scope="module")
def tiled(folder, tmp_path_factory):
    return patchcluster.scan(folder, tmp_path_factory.mktemp("run") / "run", size=(256,), tile=True)


@pytest.mark.slow
def test_a_small_defect_in_a_large_image_is_found_with_tiles_only(folder, tiled, tmp_path):
    def margin(run):
        """How far the defect stands out of the others, in units of their spread."""
        others = np.delete(run.scores, run.index("7.png"))
        return (run.scores[run.index("7.png")] - others.mean()) / others.std()

    assert tiled.paths[tiled.ranking[0]].endswith("7.png")
    y, x = np.unravel_index(tiled.map("7.png").argmax(), (1024, 1024))
    assert math.hypot(x - 700, y - 300) < 16
    plain = patchcluster.scan(folder, tmp_path / "plain", size=(256,))
    assert margin(tiled) > 3 * margin(plain)


@pytest.mark.slow
def test_a_tiled_run_is_read_back_by_its_rule(tiled):
    assert tiled.grid("7.png").shape == (64, 64)
    assert tiled.info.map_rule["native_from"] == 256
    frame = tiled.frame_map("7.png")
    assert frame.shape == (1024, 1024)  # 256 x 1024 / 256: as many pixels as network input
    top = np.sort(frame, axis=None)[-round(0.01 * 256 * 256) :]
    offset = SetBaseline(**tiled.info.baseline).offset(float(np.quantile(frame, 0.25)))
    assert tiled.scores[tiled.index("7.png")] == pytest.approx(top.mean() - offset, rel=1e-5)


def test_images_no_larger_than_the_networks_size_score_as_without_tiles(small_run):
    run = patchcluster.scan(small_run.info.inputs, size=(128,), tile=True)
    np.testing.assert_array_equal(run.scores, small_run.scores)
    np.testing.assert_array_equal(run.map("part7.png"), small_run.map("part7.png"))


def test_several_sizes_cannot_be_tiled():
    with pytest.raises(SettingError, match="choose one size"):
        resolve(tile=True, size=(256, 448))


def test_the_top_is_as_many_pixels_on_a_larger_frame():
    assert frame_growth(1000, 1000, None) == 1
    assert frame_growth(100, 100, 448) == 1
    assert frame_growth(1792, 896, 448) == pytest.approx(math.sqrt(8))
    values = np.arange(40_000, dtype=np.float32).reshape(200, 200)
    assert score_image(values, "top1%", 2.0) == np.mean(range(39_900, 40_000))
