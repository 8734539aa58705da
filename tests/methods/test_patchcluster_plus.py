"""The default method against a float64 evaluation of its formulas, and what it is for."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from conftest import cut_batches
from patchcluster.errors import SettingError
from patchcluster.methods import PatchClusterPlus
from patchcluster.methods.base import join
from references import distances64, random_patches


def plus64(patches, k, weight, stages=(7,), ratios=(1, 1, 1), bank=None, gap=1.25):
    """The docstring's formulas in float64; bank: images that are compared with, None: all."""
    n, h, w, _ = patches.shape
    bank = np.arange(n) if bank is None else bank
    found, total = {}, np.zeros((n, h, w))
    for s, (width, r) in enumerate(zip(stages, ratios, strict=False)):
        start = sum(stages[:s])
        part = patches[..., start : start + width].astype(np.float64)
        cells = part.reshape(n, h // r, r, w // r, r, width).transpose(0, 1, 3, 5, 2, 4)
        images = cells.reshape(n, (h // r) * (w // r), -1)
        centred = images - images.mean((0, 1))
        energy = 4 * (centred**2).sum(2).mean()
        rows = centred / np.sqrt((centred**2).sum(2, keepdims=True) + energy)
        found[s] = nearest_images64(rows, bank)
    shown = max(s for s in found if ratios[s] == 1)
    left_out = left_out64(*found[shown][::2], bank)
    excess = excess64(*found[shown][::2], bank, left_out, k, gap)
    for s, (distances, rows, bound) in found.items():
        r, cells = ratios[s], distances.shape[1]
        score, nearest = np.zeros((n, cells)), np.zeros((n, cells, 3), int)
        for i, c in np.ndindex(n, cells):
            others = np.flatnonzero(~left_out[i])
            order = others[np.argsort(distances[i, c, others], kind="stable")]
            known = np.minimum(distances[i, c, order], bound[i, c])
            ranks = np.arange(1, len(order))
            gaps = (known[1:] > gap * known[:-1]) & (ranks <= max(k - 1, len(bank) // 8))
            gaps &= (ranks > 1) & (ranks + 3 <= len(order))
            gaps &= np.cumsum(excess[i, order] - 0.12)[:-1] <= 0
            first = ranks[gaps].max(initial=0)
            weights = (1 - 1 / k) ** np.arange(min(4 * k, len(order) - first))
            score[i, c] = known[first:][: len(weights)] @ weights / weights.sum()
            nearest[i, c] = rows[i, c, np.resize(order[first:], 3)]
        score = torch.from_numpy(score.reshape(1, n, h // r, w // r))
        score = F.interpolate(score, scale_factor=r, mode="bilinear")[0]
        total += (1, 2, 0.5)[s] * (score / score[bank].mean()).numpy()
        if s == shown:
            explained = nearest
    flat = total.ravel() / sum((1, 2, 0.5)[: len(stages)])
    lowered = np.minimum(flat[explained], 1.5).mean(2)
    return (flat - weight * lowered.ravel()).reshape(n, h, w)


def nearest_images64(rows, bank, count=96):
    """Of rows [n, p, c]: distances [n, p, b] to the images of a bank, infinite where none of their
    rows is among the `count` nearest of the bank; those rows, of all; the last distance [n, p]."""
    n, p, _ = rows.shape
    flat = rows.reshape(n * p, -1)
    every = distances64(flat, flat).reshape(n, p, n, p)[:, :, bank]
    last = np.sort(every.reshape(n, p, -1), 2)[:, :, :count][:, :, -1]
    distances, places = every.min(3), every.argmin(3)
    distances[distances > last[..., None]] = np.inf
    own = np.arange(n)[:, None] == bank
    distances[np.broadcast_to(own[:, None], distances.shape)] = np.inf
    return distances, places + bank * p, last


def closeness64(distances, bound, own):
    """How close images are to those of a bank as wholes, [n, b], by patches [n, p]; own [n, b]."""
    known = np.minimum(distances, bound[..., None])
    middle = max(0, (own.shape[1] - 1) // 2 - 1) + ~own.any(1)  # that of a twin in the bank
    limit = np.take_along_axis(np.sort(known, 2), middle[:, None, None], 2)
    return 1 - np.minimum(known, limit).mean(1) / limit.mean(1)


def left_out64(distances, bound, bank):
    """Which images of a bank each is not compared with, bool [n, b]: itself, near-duplicates."""
    own = np.arange(len(distances))[:, None] == bank
    close, left_out = closeness64(distances, bound, own), own.copy()
    for i in range(len(close)):
        others, near = np.sort(close[i, ~own[i]])[::-1], own[i] & False
        most = min(max(2, len(others) // 16), 16)
        for count, (nearer, farther) in enumerate(pairwise(others[: most + 1]), 1):
            if nearer > max(0.05, 2.5 * farther):
                near = near | (~own[i] & (close[i] >= nearer))
                assert near.sum() >= count
        if len(others) - near.sum() >= min(3, len(others)):
            left_out[i] |= near
    return left_out


def excess64(distances, bound, bank, left_out, k, gap):
    """Closeness above that of the median image by the patches without a gap, [n, b]."""
    excess, own = np.zeros(left_out.shape), np.arange(len(distances))[:, None] == bank
    for i in range(len(distances)):
        known = np.sort(np.minimum(distances[i], bound[i][:, None]), 1)
        ranks = np.arange(1, known.shape[1])
        gaps = (known[:, 1:] > gap * known[:, :-1]) & (ranks <= max(k - 1, len(bank) // 8))
        gaps &= ranks > 1
        even = ~gaps.any(1)
        even |= even.mean() < 0.5
        close = closeness64(distances[i, even][None], bound[i, even][None], own[[i]])[0]
        middle = np.sort(close[~left_out[i]])
        excess[i] = close - middle[(len(middle) - 1) // 2]
    return excess


def defective_patches():
    """40 images, four of which share a defect, and one of them is there twice."""
    patches = random_patches(1, 4, 4) + 0.5 * random_patches(40, 4, 4, seed=1)
    patches[[3, 11, 20, 30], 2, 2] = 3 + 0.05 * random_patches(4, 1, 1, seed=2)[:, 0, 0]
    patches[8] = patches[7] + 0.01
    return patches


THREE_STAGES = {"k": 2, "stages": (2, 3, 8), "strides": (8, 16, 32)}


@pytest.mark.parametrize(
    ("patches", "given"),
    [
        (random_patches(9, 4, 6), {"k": 2, "local_weight": 0.4, "stages": (3, 4)}),
        (random_patches(9, 4, 6), {"k": 1, "local_weight": 0.0}),
        (random_patches(9, 4, 6), {"k": 3, "stages": (2, 5), "strides": (8, 16)}),
        *((random_patches(9, 4, 6), {**THREE_STAGES, "bank_images": b}) for b in (5, 8, 9, 20)),
        (defective_patches(), {"k": 3, "gap": 1.3}),
    ],
)
def test_plus_equals_its_formula_in_float64(patches, given):
    method = PatchClusterPlus(**given)
    scores = method.fit_score(patches)
    assert len(method.bank_image_.unique()) == min(given.get("bank_images", 256), len(patches))
    ratios = (1, 1, 2)
    stages = zip(given.get("stages", (7,)), ratios, strict=False)
    widths = [channels // r**2 for channels, r in stages]
    weight, gap = given.get("local_weight", 0.5), given.get("gap", 1.25)
    bank = method.bank_image_.unique().numpy()
    expected = plus64(patches, given["k"], weight, widths, ratios, bank, gap)
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)


def test_plus_chooses_its_bank_by_contents_and_from_all_kinds():
    """Three kinds of images, one of which is rare: the bank has some of each, in any order."""
    rng = np.random.default_rng(0)
    kinds = np.array([0] * 10 + [1] * 8 + [2] * 2)
    patches = random_patches(20) * 0.1 + rng.normal(size=(3, 1, 1, 7))[kinds].astype(np.float32)
    order = rng.permutation(20)
    method = PatchClusterPlus(bank_images=6).fit(patches)
    shuffled = PatchClusterPlus(bank_images=6).fit(patches[order])
    assert set(kinds[method.chosen_.numpy()]) == {0, 1, 2}
    assert set(order[shuffled.chosen_.numpy()]) == set(method.chosen_.tolist())
    scores = PatchClusterPlus(bank_images=6).fit_score(patches)
    again = PatchClusterPlus(bank_images=6).fit_score(patches[order])
    np.testing.assert_allclose(again, scores[order], rtol=1e-3)


def test_plus_takes_no_image_marked_anomalous_into_its_bank():
    patches = random_patches(10)
    first = PatchClusterPlus(bank_images=4).fit(patches).chosen_.tolist()
    labels = ["anomalous" if i in first[:2] else None for i in range(10)]
    method = PatchClusterPlus(bank_images=4).fit(patches, labels=labels)
    assert len(method.chosen_) == 4
    assert not set(first[:2]) & set(method.chosen_.tolist())
    assert np.isfinite(method.score(patches)).all()


def test_plus_bounds_its_bank_by_patches_but_not_below_a_number_of_images():
    method = PatchClusterPlus()
    assert method.bank_size(100, 784) == 100
    assert method.bank_size(10_000, 784) == 256
    assert method.bank_size(10_000, 196) == 1024
    assert method.bank_size(10_000, 20_000) == 256
    assert PatchClusterPlus(bank_images=300).bank_size(10_000, 784) == 300
    patches = np.zeros((300, 28, 28, 1), np.float32)
    patches += np.random.default_rng(0).normal(size=(300, 1, 1, 1)).astype(np.float32)
    assert len(method.fit(patches).chosen_) == 256
    assert method.fit(patches[:256]).chosen_ is None


def test_plus_refuses_a_bank_that_cannot_serve_k():
    with pytest.raises(SettingError, match="k=5 of 3 other images: choose 1 to 3"):
        PatchClusterPlus(k=5, bank_images=4).fit(random_patches(10))
    with pytest.raises(SettingError, match="k=300 of 255 other images: choose 1 to 255"):
        PatchClusterPlus(k=300).check_count(10_000, 784)
    with pytest.raises(SettingError, match="a bank of 1 images: choose 2 or more"):
        PatchClusterPlus(bank_images=1).fit(random_patches(10))


@pytest.mark.parametrize(
    "given",
    [
        {"k": 2.5}, {"gap": 0.9}, {"duplicate": -1.0}, {"saturation": float("nan")},
        {"local_weight": -0.1}, {"stage_weights": (0.0,)}, {"stage_weights": (-1.0,)},
    ],
)  # fmt: skip
def test_plus_refuses_parameters_that_mean_nothing(given):
    with pytest.raises(SettingError, match=f"^{next(iter(given))}"):
        PatchClusterPlus(**given).fit(random_patches(8))


def test_plus_does_not_compare_near_duplicates():
    """A second photograph of the same part would hide its defect."""
    patches = random_patches(1, 12, 12) + 0.2 * random_patches(8, 12, 12, seed=1)
    patches[3, 1, 1] = 4.0
    patches[4] = patches[3] + 0.01
    alone = PatchClusterPlus(duplicate=math.inf, gap=math.inf, k=1).fit_score(patches)
    apart = PatchClusterPlus(gap=math.inf, k=1).fit_score(patches)
    assert np.unravel_index(apart.argmax(), apart.shape)[0] in (3, 4)
    assert apart[3:5, 1, 1].min() > 3 * alone[3:5, 1, 1].max()


def test_plus_says_which_images_are_near_duplicates_in_any_batches():
    patches = random_patches(1, 12, 12) + 0.2 * random_patches(9, 12, 12, seed=1)
    patches[5] = patches[2] + 0.01
    patches[8] = patches[0] - 0.01
    grids = [torch.from_numpy(grid) for grid in patches]
    method = PatchClusterPlus(k=1).fit(patches)
    together = method.compare(grids, range(9)).near_duplicates.tolist()
    assert together == [[0, 8], [2, 5], [5, 2], [8, 0]]
    one_by_one = join([method.compare([grid], [i]) for i, grid in enumerate(grids)])
    assert one_by_one.near_duplicates.tolist() == together
    assert method.compare(grids).near_duplicates.tolist() == []  # of new images there are none
    # What a person says of them does not change that.
    taught = method.fit(patches, labels=["normal"] * 3 + [None] * 6).compare(grids, range(9))
    assert taught.near_duplicates.tolist() == together
    assert taught.select(torch.tensor([1])).near_duplicates.tolist() == together


def test_plus_compares_images_of_a_kind_in_a_set_of_several_kinds():
    """Kinds are further apart than two photographs of a part, and yet are to be compared."""
    kinds = random_patches(4, 4, 4).repeat(7, axis=0)
    patches = kinds + 0.2 * random_patches(28, 4, 4, seed=1)
    patches[9, 1, 1] = 4.0
    method = PatchClusterPlus()
    scores = method.fit_score(patches)
    assert np.unravel_index(scores.argmax(), scores.shape) == (9, 1, 1)
    places = method.compare([torch.from_numpy(patches[10])], [10]).neighbours
    assert (method.bank_image_[places] // 7 == 1).float().mean() > 0.9


def test_plus_takes_images_of_a_kind_for_no_shared_defect():
    """A kind may be smaller than what the images that share a defect can be."""
    kinds = random_patches(10, 4, 4).repeat(10, axis=0)
    patches = kinds + 0.2 * random_patches(100, 4, 4, seed=1)
    method = PatchClusterPlus()
    method.fit_score(patches)
    places = method.compare([torch.from_numpy(patches[10])], [10]).neighbours
    assert (method.bank_image_[places] // 10 == 1).float().mean() > 0.9


def test_plus_scores_a_small_set_with_near_duplicates_alike_in_any_batches(monkeypatch):
    """Three others are needed, so that the second photograph is one of them."""
    patches = random_patches(1, 4, 4) + 0.2 * random_patches(4, 4, 4, seed=1)
    patches[1] = patches[0] + 0.01
    together = PatchClusterPlus().fit_score(patches)
    cut_batches(monkeypatch, patches=1)
    one_by_one = PatchClusterPlus().fit_score(patches)
    np.testing.assert_allclose(one_by_one, together, rtol=1e-5)
    compared_with_all = PatchClusterPlus(duplicate=math.inf).fit_score(patches)
    np.testing.assert_allclose(together, compared_with_all, rtol=1e-5)


def test_plus_finds_a_defect_that_many_images_share():
    patches = random_patches(48, 8, 8)
    rng = np.random.default_rng(5)
    shared = [3, 11, 20, 30, 41]
    patches[shared, 2, 2] = 4 + 0.05 * rng.normal(size=(5, 7)).astype(np.float32)
    scores = PatchClusterPlus().fit_score(patches)
    rest = np.delete(scores.reshape(48, -1), shared, 0)
    assert scores[shared, 2, 2].min() > rest.max()
    hidden = PatchClusterPlus(gap=math.inf).fit_score(patches)
    assert hidden[shared, 2, 2].max() < rest.max()


def test_plus_fitted_on_a_set_agrees_with_blind_scoring_of_it():
    patches = random_patches(10, 3, 3)
    blind = PatchClusterPlus()
    blind.fit_score(patches)
    fitted = PatchClusterPlus().fit(patches)
    new = random_patches(2, 3, 3, seed=4)
    np.testing.assert_allclose(blind.score(new), fitted.score(new), rtol=1e-5)


def test_stages_must_add_up():
    with pytest.raises(SettingError, match="do not add up to 7"):
        PatchClusterPlus(stages=(3, 3)).fit(random_patches())
