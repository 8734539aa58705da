"""Regions of interest: which patches are scored, and that nothing outside them matters."""

import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

import patchcluster
from conftest import left_half, save_image, textured_image, write_set
from patchcluster.errors import InputError, RunError, SettingError
from patchcluster.images.masks import find_masks
from patchcluster.images.raster import at_size, cover
from patchcluster.methods import PatchClusterPlus
from patchcluster.pipeline.loading import Packing
from patchcluster.scores.maps import SIGMA, score_image, smooth, to_image
from patchcluster.scores.metrics import PixelMetrics
from patchcluster.settings import resolve

SIZE = (128,)


# --- geometry -----------------------------------------------------------------------------------


@given(
    height=st.integers(1, 6), width=st.integers(1, 6), side=st.integers(1, 3), seed=st.integers(0)
)
@settings(deadline=None)
def test_what_is_packed_comes_back_where_it_was(height, width, side, seed):
    rng = np.random.default_rng(seed)
    mask = rng.random((height * 5, width * 7)) < 0.1
    mask[0, 0] = True
    shape = (height * side, width * side)
    packing = Packing.of(mask, shape, side)
    grid = torch.from_numpy(rng.normal(size=(*shape, 3)).astype(np.float32))
    packed = packing.pack(grid)
    assert packed.shape == (side, side * len(packing.blocks), 3)
    unpacked = packing.unpack(packed[..., 1].flatten())
    blocks = np.array(
        [
            [mask[r * 5 : r * 5 + 5, c * 7 : c * 7 + 7].any() for c in range(width)]
            for r in range(height)
        ]
    )
    inside = blocks.repeat(side, 0).repeat(side, 1)
    np.testing.assert_array_equal(np.isfinite(unpacked), inside)
    np.testing.assert_array_equal(unpacked[inside], grid[..., 1].numpy()[inside])
    for number, (row, column) in enumerate(packing.blocks.tolist()):  # a block stays in one piece
        block = grid[row * side : (row + 1) * side, column * side : (column + 1) * side]
        assert torch.equal(packed[:, number * side : (number + 1) * side], block)


def test_a_cell_is_inside_if_any_of_it_is():
    mask = np.zeros((6, 6), bool)
    mask[2, 3] = True
    assert cover(mask, (3, 3)).tolist() == [[False] * 3, [False, True, False], [False] * 3]
    assert cover(mask, (2, 2)).tolist() == [[False, True], [False, False]]
    # A pixel that lies in two cells is in both.
    assert cover(mask, (4, 4)).sum(1).tolist() == [0, 1, 0, 0]
    assert cover(mask[2:3, 3:4], (2, 2)).all()


def test_masks_come_to_the_size_of_an_image_by_the_nearest_pixel():
    mask = np.array([[True, False], [False, True]])
    np.testing.assert_array_equal(at_size(mask, 4, 2), [[1, 1, 0, 0], [0, 0, 1, 1]])
    np.testing.assert_array_equal(at_size(left_half(96, 96), 48, 10), left_half(48, 10))


# --- maps ---------------------------------------------------------------------------------------


def test_smoothing_averages_inside_only():
    rng = np.random.default_rng(0)
    grid = rng.random((8, 8)).astype(np.float32)
    mask = ndimage.gaussian_filter(rng.normal(size=(64, 64)), 6) > 0
    found = smooth(grid, 64, 64, 64, mask)
    full = torch.nn.functional.interpolate(
        torch.from_numpy(grid.astype(np.float64))[None, None], size=(64, 64), mode="bilinear"
    )[0, 0].numpy()
    weight = ndimage.gaussian_filter(mask.astype(np.float64), SIGMA, mode="nearest")
    expected = ndimage.gaussian_filter(np.where(mask, full, 0), SIGMA, mode="nearest") / weight
    np.testing.assert_array_equal(np.isnan(found), ~mask)
    np.testing.assert_allclose(found[mask], expected[mask], rtol=1e-4)
    assert score_image(found, "max") == found[mask].max()
    top = np.sort(found[mask])[-max(1, round(mask.sum() / 100)) :]
    assert score_image(found, "top1%") == pytest.approx(top.mean())


@given(seed=st.integers(0, 2**31), side=st.integers(20, 300))
@settings(max_examples=40, deadline=None)
def test_an_even_score_stays_even_up_to_the_border_and_every_pixel_inside_has_it(seed, side):
    rng = np.random.default_rng(seed)
    mask = rng.random((side, side)) < rng.choice([0.001, 0.3])
    mask[rng.integers(side), rng.integers(side)] = True
    packing = Packing.of(mask, (8, 8), 2)
    grid = packing.unpack(torch.full((len(packing.cells),), 3.0))
    image_map = to_image(smooth(grid, 64, side, side, mask), side, side, mask)
    np.testing.assert_array_equal(np.isnan(image_map), ~mask)
    np.testing.assert_allclose(image_map[mask], 3, rtol=1e-5)


def test_pixels_without_a_score_are_left_out_of_the_metrics():
    rng = np.random.default_rng(1)
    image_map = rng.random((20, 20)).astype(np.float32)
    truth = np.zeros((20, 20), bool)
    truth[3:6, 3:6] = True  # inside
    truth[12:15, 8:12] = True  # half of it inside
    truth[18:, 18:] = True  # outside
    inside = left_half(20, 20)
    both = []
    for values, mask in (
        (np.where(inside, image_map, np.nan), truth),
        (image_map[:, :10], truth[:, :10]),
    ):
        metrics = PixelMetrics(0, 1)
        metrics.add(values, mask)
        metrics.add(values, None)
        both.append([metrics.auroc(), metrics.average_precision(), metrics.pro()])
    np.testing.assert_allclose(*both)


# --- the default method on blocks ---------------------------------------------------------------


def plus():
    return PatchClusterPlus(stages=[4, 6, 8], strides=[8, 16, 32])


def scored(grids, masks):
    """Score grids blindly, of each only what is inside its mask."""
    shape = tuple(grids[0].shape[:2])
    packings = [Packing.of(mask, shape, 2) for mask in masks]
    packed = [p.pack(grid) for p, grid in zip(packings, grids, strict=True)]
    method = plus().fit(packed, list(range(len(packed))))
    own = list(range(len(packed)))
    comparison = method.compare(packed, own, [p.blocks for p in packings])
    counts = [grid.shape[0] * grid.shape[1] for grid in packed]
    method.calibrate(comparison.select(method.bank_rows(counts)))
    scores = torch.split(method.to_scores(comparison), counts)
    return [p.unpack(score) for p, score in zip(packings, scores, strict=True)]


@pytest.mark.parametrize("inside", [np.s_[:, :], np.s_[2:6, 2:6]])
def test_blocks_score_as_an_image_of_them_alone(rng, inside):
    """Rectangles of an image are images themselves; a mask of everything changes no score."""
    grids = torch.randn(5, 6, 8, 12, generator=rng)
    mask = np.zeros((6, 8), bool)
    mask[inside] = True
    expected = plus().fit_score(grids[:, *inside].contiguous())
    found = np.array(scored(grids, [mask] * 5))
    np.testing.assert_allclose(found[:, *inside], expected, rtol=1e-4)
    assert np.isnan(found[:, ~mask]).all()


# --- whole scans --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    """8 images with a mask of their left half; the last has a blot there."""
    root = tmp_path_factory.mktemp("roi")
    paths = write_set(root / "images", blots=0)
    blotted = textured_image(7)
    blotted[40:60, 12:32] = 20
    save_image(paths[7], blotted)
    mask = save_image(root / "mask.png", left_half())
    return patchcluster.scan(root / "images", root / "run", size=SIZE, roi=mask), root


def test_the_map_has_scores_inside_only(masked):
    run, _ = masked
    assert run.paths[run.ranking[0]].endswith("part7.png")
    for path in run.paths:
        np.testing.assert_array_equal(np.isfinite(run.map(path)), left_half())
        for region in run.regions(path):
            assert region.x + region.width <= 48
    y, x = np.unravel_index(np.nanargmax(run.map("part7.png")), (96, 96))
    assert abs(x - 22) < 12
    assert abs(y - 50) < 12
    assert np.isfinite(run.scores).all()


def test_places_are_explained_by_places_inside(masked):
    run, _ = masked
    found = run.neighbours("part7.png", 20, 50)
    assert len(found) == 3
    assert len({n.path for n in found}) == 3
    assert all(n.x < 48 and not n.path.endswith("part7.png") for n in found)
    assert run.neighbours("part7.png", 80, 50) == []


def test_what_lies_outside_changes_no_score(tmp_path):
    """The defect is further from the region than the network sees."""
    mask = save_image(tmp_path / "mask.png", np.arange(1024)[None].repeat(96, 0) < 96)
    runs = []
    for name in ("without", "with"):
        for i in range(4):
            image = textured_image(i, 1024, 96)
            if name == "with" and i == 2:
                image[20:60, 900:960] = 20
            save_image(tmp_path / name / f"{i}.png", image)
        runs.append(patchcluster.scan(tmp_path / name, size=(320,), roi=mask))
    np.testing.assert_allclose(runs[1].scores, runs[0].scores, rtol=1e-3)
    whole = patchcluster.scan(tmp_path / "with", size=(320,))
    assert whole.ranking[0] == 2


def test_the_run_needs_the_mask_no_more(masked, tmp_path):
    run, root = masked
    shutil.copytree(run.folder, tmp_path / "moved")
    again = patchcluster.load_run(tmp_path / "moved")
    expected = run.map("part3.png")
    (root / "mask.png").rename(root / "gone.png")
    try:
        np.testing.assert_array_equal(again.map("part3.png"), expected)
    finally:
        (root / "gone.png").rename(root / "mask.png")
    for path in (tmp_path / "moved" / "roi").iterdir():
        path.unlink()
    with pytest.raises(RunError, match="scan again"):
        again.map("part3.png")


def test_a_changed_mask_is_another_scan(masked, tmp_path):
    _, root = masked
    for name in ("images", "run"):
        shutil.copytree(root / name, tmp_path / name)
    mask = save_image(tmp_path / "mask.png", left_half())
    asked = {"size": SIZE, "roi": mask}
    run = patchcluster.scan(tmp_path / "images", tmp_path / "run2", **asked)
    assert len(patchcluster.scan(tmp_path / "images", run.folder, **asked)) == 8
    save_image(mask, ~left_half())
    with pytest.raises(RunError, match="other inputs or masks"):
        patchcluster.scan(tmp_path / "images", run.folder, **asked)
    other = patchcluster.scan(tmp_path / "images", run.folder, **asked, overwrite=True)
    np.testing.assert_array_equal(np.isfinite(other.map("part0.png")), ~left_half())


def test_each_image_may_have_a_mask_of_its_own(tmp_path):
    write_set(tmp_path / "images" / "a", 3, blots=0)
    for i in range(3, 6):
        save_image(tmp_path / "images" / "b" / f"part{i - 3}.png", textured_image(i, 120, 80))
    masks = {}
    for letter in "ab":
        for i in range(3):
            mask = np.zeros((48, 48), bool)
            mask[8 * i : 8 * i + 30, 5 : 20 + i] = True
            name = f"part{i}_mask.png" if i else "part0.bmp"
            masks[f"{letter}/part{i}.png"] = mask
            save_image(tmp_path / "masks" / letter / name, mask)
    masks["b/part2.png"][:] = False
    save_image(tmp_path / "masks" / "b" / "part2_mask.png", masks["b/part2.png"])
    run = patchcluster.scan(
        tmp_path / "images", tmp_path / "run", size=SIZE, roi=tmp_path / "masks"
    )
    assert len(run) == 5
    for name, mask in masks.items():
        if name == "b/part2.png":
            continue
        width, height = (96, 96) if name.startswith("a") else (120, 80)
        np.testing.assert_array_equal(np.isfinite(run.map(name)), at_size(mask, width, height))
    (skip,) = run.skipped
    assert skip.path.endswith("b/part2.png")
    assert "inside" in skip.reason


def test_a_mask_of_the_stored_images_is_turned_with_them(tmp_path):
    """One mask for all, of half their size; one image is stored as it is shown."""
    stored = left_half(192, 96)
    exif = Image.Exif()
    for i in range(6):
        exif[0x0112] = 6 if i else 1
        save_image(tmp_path / "images" / f"{i}.png", textured_image(i, 192, 96), exif=exif)
    mask = save_image(tmp_path / "mask.png", left_half(96, 48))
    run = patchcluster.scan(tmp_path / "images", tmp_path / "run", size=(64,), roi=mask)
    mask.unlink()  # the run has it
    np.testing.assert_array_equal(np.isfinite(run.map("0.png")), stored)
    for i in range(1, 6):
        np.testing.assert_array_equal(np.isfinite(run.map(f"{i}.png")), np.rot90(stored, -1))


@pytest.mark.parametrize("method", ["patchcluster", "spade-cluster"])
def test_other_methods_score_inside_only_too(masked, method):
    _, root = masked
    run = patchcluster.scan(
        root / "images", size=(96,), method=method, k=3, roi=root / "mask.png", image_score="max"
    )
    assert np.isfinite(run.scores).all()
    np.testing.assert_array_equal(np.isfinite(run.map("part0.png")), left_half())


def test_flags_groups_and_labels_work_inside_too(masked, tmp_path):
    """Two network sizes: each has blocks of its own; the run is compared again from its bank."""
    inputs, mask = masked[0].info.inputs, masked[1] / "mask.png"
    given = {"size": (96, 128), "roi": mask}
    run = patchcluster.scan(inputs, tmp_path / "run", flag_top=3, **given)
    regions = [region for path in run.paths for region in run.regions(path)]
    assert regions
    assert all(region.group >= 1 for region in regions)
    labels = {run.paths[int(run.ranking[1])]: "normal"}
    fresh = patchcluster.scan(inputs, tmp_path / "b", labels=labels, **given)
    again = patchcluster.scan(inputs, run.folder, labels=labels, **given)
    np.testing.assert_allclose(again.scores, fresh.scores, rtol=1e-3)
    assert np.isnan(again.map(run.paths[0])).any()


def test_truth_is_measured_inside(masked):
    run, root = masked
    truth = np.zeros((96, 96), bool)
    truth[40:60, 12:32] = True
    save_image(root / "masks" / "part7.png", truth)
    result = patchcluster.evaluate(run, root)
    assert result.image_auroc == 1
    assert result.pixel_auroc is not None
    assert result.pixel_auroc > 0.9


# --- what cannot work ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["reverse-distillation", "padim"])
def test_methods_that_need_whole_images_refuse(method):
    with pytest.raises(SettingError, match="compares whole images"):
        resolve(method=method, roi="mask.png")


def test_masks_of_some_images_alone_and_empty_ones_are_errors_before_the_work(tmp_path):
    write_set(tmp_path / "images", 3)
    out = tmp_path / "run"
    steps = []

    def attempt(roi):
        patchcluster.scan(
            tmp_path / "images", out, size=SIZE, roi=roi, progress=lambda s, *_: steps.append(s)
        )

    save_image(tmp_path / "masks" / "part0.png", left_half())
    with pytest.raises(InputError, match=r"2 of 3 images have no mask.*part1\.png"):
        attempt(tmp_path / "masks")
    empty = save_image(tmp_path / "empty.png", np.zeros((4, 4), bool))
    with pytest.raises(InputError, match="inside its mask"):
        attempt(empty)
    assert set(steps) <= {"survey"}
    assert not out.exists()


def test_masks_of_a_folder_lie_as_the_images_do(tmp_path):
    for name in ("1.png", "a/1_mask.png"):
        save_image(tmp_path / "masks" / name, left_half())
    images = [str(tmp_path / "photos" / name) for name in ("1.jpg", "a/1.jpg")]
    roi = tmp_path / "masks"
    assert find_masks(images, str(roi)) == [roi / "1.png", roi / "a" / "1_mask.png"]
    # All images in one folder: masks below its name come first.
    assert find_masks(images[1:], str(roi)) == [roi / "a" / "1_mask.png"]
    assert find_masks(["s3://bucket/a/1.jpg"], str(roi)) == [roi / "a" / "1_mask.png"]
    assert find_masks([str(tmp_path / "b" / "1.jpg")], str(roi)) == [roi / "1.png"]
