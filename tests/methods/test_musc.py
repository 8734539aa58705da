"""MuSc and its search against float64 evaluations of their formulas."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import patchcluster
from conftest import write_set
from patchcluster.errors import SettingError
from patchcluster.methods import MuSc
from patchcluster.network.patches import patch_grid

SHAPES = ((4, 5), (3, 3), (6, 2), (5, 5), (2, 4))


def random_images(shapes=SHAPES, c=7, seed=0, offset=0.0):
    rng = np.random.default_rng(seed)
    return [(offset + rng.normal(size=(*shape, c))).astype(np.float32) for shape in shapes]


def lnamd64(image, r):
    """As the authors do it: layer normalisation, zeros around the grid, mean over r x r."""
    x = image.astype(np.float64)
    x = (x - x.mean()) / x.std()
    height, width, _ = x.shape
    around = np.pad(x, ((r // 2, r // 2), (r // 2, r // 2), (0, 0)))
    pooled = np.array(
        [
            [around[i : i + r, j : j + r].mean((0, 1)) for j in range(width)]
            for i in range(height)
        ]
    )  # fmt: skip
    return pooled / np.linalg.norm(pooled, axis=-1, keepdims=True)


def msm64(cells, own, others, share):
    """Scores [h, w] of one image's cells [h, w, c]; others: the same of all images."""
    scores = np.zeros(cells.shape[:2])
    for place in np.ndindex(*scores.shape):
        lowest = sorted(
            min(np.linalg.norm(cells[place] - b) for b in other.reshape(-1, other.shape[-1]))
            for j, other in enumerate(others)
            if j != own
        )
        scores[place] = np.mean(lowest[: max(1, int(share * len(lowest)))])
    return scores


def musc64(stages, share=0.3, sizes=(1, 3, 5)):
    """Scores [h, w] of each image; stages: for each stage a list of images [h_s, w_s, c_s]."""
    scores = []
    for i, first in enumerate(stages[0]):
        total = np.zeros(first.shape[:2])
        for stage in stages:
            for r in sizes:
                cells = [lnamd64(image, r) for image in stage]
                part = torch.from_numpy(msm64(cells[i], i, cells, share))[None, None]
                size = {"size": total.shape, "mode": "bilinear", "align_corners": False}
                total += F.interpolate(part, **size)[0, 0].numpy()
        scores.append(total / len(stages) / len(sizes))
    return scores


@pytest.mark.parametrize("offset", [0.0, 3.0])
@pytest.mark.parametrize(("share", "sizes"), [(0.3, (1, 3, 5)), (0.8, (3,)), (0.01, (1, 5))])
def test_scores_are_the_formula_in_float64_for_images_of_several_sizes(share, sizes, offset):
    images = random_images(offset=offset)
    scores = MuSc(share=share, neighbourhoods=sizes).fit_score(images)
    for mine, expected in zip(scores, musc64([images], share, sizes), strict=True):
        np.testing.assert_allclose(mine, expected, rtol=1e-4)


def test_stages_are_searched_each_on_its_own_grid():
    rng = torch.Generator().manual_seed(0)
    stages = [torch.randn(5, c, h, w, generator=rng) for c, h, w in ((3, 4, 8), (6, 2, 4))]
    patches = patch_grid(stages, "stages")
    assert patches.shape == (5, 4, 8, 9)
    scores = MuSc(share=0.5, stages=(3, 6), strides=(8, 16)).fit_score(patches)
    expected = musc64([list(stage.permute(0, 2, 3, 1).numpy()) for stage in stages], 0.5)
    np.testing.assert_allclose(scores, expected, rtol=1e-4)


def test_an_image_of_the_set_is_not_compared_with_itself_but_a_new_one_with_all():
    images = random_images()
    method = MuSc(share=0.2)
    blind = method.fit_score(images)
    assert min(score.min() for score in blind) > 0.1
    for score in method.score(images):  # one of five, which holds each patch itself
        np.testing.assert_array_equal(score, np.zeros_like(score))


def test_neighbours_are_of_the_nearest_images_by_the_middle_neighbourhood():
    images = random_images()
    method = MuSc().fit(images)
    comparison = method.compare([torch.from_numpy(images[1])], [1])
    cells = [lnamd64(image, 3) for image in images]
    for p, cell in enumerate(cells[1].reshape(-1, 7)):
        nearest = sorted(
            (float(np.linalg.norm(cells[j] - cell, axis=-1).min()), j) for j in (0, 2, 3, 4)
        )[:3]
        rows = comparison.neighbours[p]
        assert method.bank_image_[rows].tolist() == [image for _, image in nearest]
        np.testing.assert_allclose(
            comparison.neighbour_distances[p], [d for d, _ in nearest], rtol=1e-4
        )
        for row, (distance, image) in zip(rows.tolist(), nearest, strict=True):
            found = cells[image].reshape(-1, 7)[int(method.bank_patch_[row])]
            assert np.linalg.norm(found - cell) == pytest.approx(distance, rel=1e-4)


# --- image scores -------------------------------------------------------------------------------


def rescored64(images, peaks, ks):
    """As the authors do it: masked similarities, their rows made to sum to 1, times the scores."""
    tokens = np.stack([image.astype(np.float64).mean((0, 1)) for image in images])
    tokens /= np.linalg.norm(tokens, axis=1, keepdims=True)
    similarity = np.maximum(tokens @ tokens.T, 0)
    scaled = (peaks - peaks.min()) / (peaks.max() - peaks.min())
    means = []
    for k in ks:
        kept = np.zeros_like(similarity)
        for i, order in enumerate(similarity.argsort(1)[:, ::-1]):
            kept[i, order[:k]] = similarity[i, order[:k]]
        means.append(kept / kept.sum(1, keepdims=True) @ scaled)
    return np.mean(means, 0)


@pytest.mark.parametrize("ks", [(1, 2, 3), (1,), (4, 2), (50,)])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_rescored_image_scores_are_the_formula_in_float64(ks, offset):
    images = random_images(offset=offset)
    method = MuSc(similar=ks)
    scores = method.fit_score(images)
    flat = [torch.from_numpy(score).flatten() for score in scores]
    grids = [torch.from_numpy(image) for image in images]
    rescored = method.score_images(grids, flat, range(5))
    peaks = np.array([score.max() for score in scores], np.float64)
    np.testing.assert_allclose(rescored, rescored64(images, peaks, ks), rtol=1e-4, atol=1e-6)


def test_new_images_are_averaged_with_images_of_the_set():
    images, new = random_images(offset=1.0), random_images(((3, 4),), seed=5, offset=1.0)
    method = MuSc(similar=(2,)).fit(images)
    scores = [torch.from_numpy(score).flatten() for score in method.score(new)]
    (found,) = method.score_images(list(map(torch.from_numpy, new)), scores)
    means = np.stack([image.mean((0, 1)) for image in [*images, *new]]).astype(np.float64)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    similarity = means[:5] @ means[5]
    peaks = np.array([score.max() for score in musc64([images])])
    nearest, own = similarity.argmax(), float(scores[0].max())
    mean = (own + similarity[nearest] * peaks[nearest]) / (1 + similarity[nearest])
    assert float(found) == pytest.approx((mean - peaks.min()) / np.ptp(peaks), rel=1e-3)


def test_equal_images_are_rescored_to_zero():
    images = [torch.ones(3, 3, 4)] * 4
    method = MuSc()
    scores = [score.flatten() for score in method.fit_score(images)]
    assert method.score_images(images, scores, range(4)).tolist() == [0.0] * 4


def test_a_scan_rescores(tmp_path):
    write_set(tmp_path / "images", count=6)
    options = {"method": "musc", "size": (64,)}
    by_map = patchcluster.scan(tmp_path / "images", tmp_path / "max", **options)
    rescored = patchcluster.scan(
        tmp_path / "images", tmp_path / "rescored", image_score="rescored", **options
    )
    for path in by_map.paths:
        np.testing.assert_array_equal(by_map.map(path), rescored.map(path))
    assert float(rescored.scores.min()) >= 0
    assert float(rescored.scores.max()) <= 1
    assert not np.allclose(rescored.scores, by_map.scores)


# --- errors, memory -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"share": 0.0}, r"share 0.0 .*\(0, 1\]"),
        ({"share": 1.5}, "share 1.5"),
        ({"neighbourhoods": (1, 2)}, r"neighbourhoods \(1, 2\): choose odd"),
        ({"neighbourhoods": ()}, "neighbourhoods"),
        ({"neighbourhoods": (-1,)}, "at least 1"),
        ({"similar": (0, 1)}, r"similar \(0, 1\): choose numbers"),
        ({"similar": ()}, "similar"),
        ({"stages": (3, 3)}, r"stages \[3, 3\] do not add up to 7"),
        ({"stages": (3, 4), "strides": (8, 16)}, "multiples of 2"),
    ],
)
def test_parameters_that_cannot_work_are_errors(options, words):
    with pytest.raises(SettingError, match=words):
        MuSc(**options).fit(random_images())


@pytest.mark.parametrize(
    ("channels", "strides"), [((40, 112), (8, 16)), ((24, 24), (16, 16)), ((9,), (8,))]
)
def test_predicted_memory_covers_the_banks(channels, strides):
    rng = torch.Generator().manual_seed(0)
    patches = torch.randn(6, 8, 8, sum(channels), generator=rng)
    method = MuSc(stages=channels, strides=strides).fit(patches)
    held = sum(bank.blocks.rows.nbytes for bank in method._banks)
    counted = 8 * patches.numel()  # what costs.predict_memory allows for banks and samples
    assert held <= counted + method.extra_memory(6, 64, sum(channels))
