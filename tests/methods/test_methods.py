"""Every method against float64 evaluations of its formulas, and rules that all must keep."""

import math
import pickle
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.spatial.distance import mahalanobis
from sklearn.neighbors import LocalOutlierFactor

from patchcluster.errors import SettingError
from patchcluster.methods import (
    METHODS,
    PaDiM,
    PatchCluster,
    PatchClusterPlus,
    PatchCore,
    PatchCoreLOF,
    ReverseDistillation,
    Spade,
    SpadeCluster,
)
from patchcluster.methods.base import join
from patchcluster.network.backbones import random_backbone
from patchcluster.network.patches import patch_grid, pool_neighbourhood
from patchcluster.pipeline.comparing import Query, Search
from patchcluster.search.coreset import greedy_coreset


def random_patches(n=6, h=4, w=5, c=7, seed=0):
    return np.random.default_rng(seed).normal(size=(n, h, w, c)).astype(np.float32)


def distances64(a, b):
    difference = a[:, None].astype(np.float64) - b[None].astype(np.float64)
    return np.sqrt((difference**2).sum(-1))


# --- PatchCluster: the paper's formulas ---------------------------------------------------------


@pytest.mark.parametrize("k", [1, 3, 10, None])
def test_patchcluster_full_bank_is_equation_2_with_the_first_neighbour_skipped(k):
    patches = random_patches()
    scores = PatchCluster(k=k, ratio=1.0).fit_score(patches)
    rows = patches.reshape(-1, 7)
    neighbours = np.sort(distances64(rows, rows), axis=1)
    used = 6 if k is None else k  # the paper's rule: the number of images
    expected = neighbours[:, 1 : used + 1].mean(1).reshape(6, 4, 5)
    np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_patchcluster_on_new_images_skips_nothing():
    bank, new = random_patches(), random_patches(2, seed=1)
    scores = PatchCluster(k=3, ratio=1.0).fit(bank).score(new)
    expected = np.sort(distances64(new.reshape(-1, 7), bank.reshape(-1, 7)), 1)[:, :3].mean(1)
    np.testing.assert_allclose(scores.reshape(-1), expected, rtol=1e-5)


@pytest.mark.parametrize(("ratio", "k"), [(0.25, 8), (0.1, None)])
def test_patchcluster_with_a_coreset_uses_the_chosen_rows_only(ratio, k):
    patches = random_patches()
    rows = patches.reshape(-1, 7)
    chosen = greedy_coreset(rows, round(len(rows) * ratio))
    method = PatchCluster(k=k, ratio=ratio)
    scores = method.fit_score(patches)
    used = max(1, round(6 * ratio)) if k is None else k
    expected = np.sort(distances64(rows, rows[chosen]), 1)[:, 1 : used + 1].mean(1)
    np.testing.assert_allclose(scores.reshape(-1), expected, rtol=1e-5)
    places = method.bank_image_ * 20 + method.bank_patch_
    np.testing.assert_array_equal(places.numpy(), chosen)


def test_hand_derived_scores():
    """Four images of one patch on a line at 0, 1, 3 and 10; K = 2."""
    patches = np.array([0.0, 1.0, 3.0, 10.0]).reshape(4, 1, 1, 1)
    scores = PatchCluster(k=2, ratio=1.0).fit_score(patches).reshape(-1)
    np.testing.assert_allclose(scores, [(1 + 3) / 2, (1 + 2) / 2, (2 + 3) / 2, (7 + 9) / 2])


@pytest.mark.parametrize("own", [True, False])
def test_reweighted_image_score_is_equation_3(own):
    patches = random_patches()
    rows = patches.reshape(-1, 7)
    method = PatchCluster(k=5, ratio=1.0).fit(patches)
    queries = rows[[3, 77]] if own else random_patches(1, 1, 2, seed=9).reshape(-1, 7)
    highest = np.array([2.5, 3.5])
    result = method.reweight(torch.from_numpy(queries), torch.from_numpy(highest), own=own)
    for query, a, value in zip(queries, highest, result, strict=True):
        order = distances64(query[None], rows)[0].argsort()
        nearest = order[1] if own else order[0]
        support = distances64(rows[nearest][None], rows)[0].argsort()[:9]
        total = np.exp(distances64(query[None], rows[support])[0]).sum()
        gap = distances64(query[None], rows[nearest][None])[0, 0]
        assert float(value) == pytest.approx((1 - np.exp(gap) / total) * a, rel=1e-4)


def test_equation_3_as_it_is_written_for_one_neighbour():
    """With K = 1 the score a* is the distance to f*: the paper's equation and PatchCore's agree."""
    patches = torch.from_numpy(random_patches())
    rows = patches.reshape(-1, 7).numpy()
    method = PatchCore(ratio=1.0)
    scores = method.fit_score(patches)
    result = method.score_images("reweighted", list(patches), list(scores.flatten(1)), range(6))
    for image in range(6):
        query = rows[20 * image + int(scores[image].argmax())]
        a = float(scores[image].max())
        nearest = distances64(query[None], rows)[0].argsort()[1]
        support = distances64(rows[nearest][None], rows)[0].argsort()[:9]
        total = np.exp(distances64(query[None], rows[support])[0]).sum()
        assert float(result[image]) == pytest.approx((1 - np.exp(a) / total) * a, rel=1e-4)


@pytest.mark.parametrize("k", [1, 5, 50])
def test_reweighted_scores_lie_between_nothing_and_the_highest_score(k):
    patches = torch.from_numpy(10 * random_patches())
    method = PatchCluster(k=k, ratio=1.0)
    scores = method.fit_score(patches)
    result = method.score_images("reweighted", list(patches), list(scores.flatten(1)), range(6))
    assert bool((result >= 0).all())
    assert bool((result <= scores.flatten(1).max(1).values).all())


def test_reweighting_does_not_overflow():
    patches = 1000 * random_patches()
    method = PatchCluster(k=5, ratio=1.0).fit(patches)
    result = method.reweight(torch.from_numpy(patches[0, 0, :1]), torch.tensor([3000.0]), own=True)
    assert bool(torch.isfinite(result).all())


@pytest.mark.parametrize("k", [0, 120, 500])
def test_k_that_the_bank_cannot_serve_is_an_error(k):
    with pytest.raises(SettingError, match=f"k={k}.*119"):
        PatchCluster(k=k, ratio=1.0).fit(random_patches())


# --- PatchCore, LOF -----------------------------------------------------------------------------


def test_patchcore_with_the_whole_bank_is_patchcluster_with_k_1():
    patches = random_patches()
    expected = PatchCluster(k=1, ratio=1.0).fit_score(patches)
    np.testing.assert_array_equal(PatchCore(ratio=1.0).fit_score(patches), expected)


@pytest.mark.parametrize("k", [5, 20, 100])
def test_lof_agrees_with_scikit_learn(k):
    patches = random_patches()
    reference = LocalOutlierFactor(n_neighbors=k).fit(patches.reshape(-1, 7).astype(np.float64))
    scores = PatchCoreLOF(k=k).fit_score(patches)
    np.testing.assert_allclose(scores.reshape(-1), -reference.negative_outlier_factor_, rtol=1e-5)


def test_lof_of_new_images_agrees_with_scikit_learn():
    patches, new = random_patches(), random_patches(2, seed=3)
    reference = LocalOutlierFactor(n_neighbors=20, novelty=True)
    reference.fit(patches.reshape(-1, 7).astype(np.float64))
    expected = -reference.score_samples(new.reshape(-1, 7).astype(np.float64))
    scores = PatchCoreLOF(k=20).fit(patches).score(new)
    np.testing.assert_allclose(scores.reshape(-1), expected, rtol=1e-5)


# --- SPADE --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("k", "images"), [(1, 2), (4, 3), (10, 50)])
def test_spade_cluster_searches_the_images_most_like_the_own(k, images):
    patches = random_patches()
    method = SpadeCluster(k=k, images=images)
    scores = method.fit_score(patches)
    rows = patches.reshape(6, 20, 7).astype(np.float64)
    pooled = rows.mean(1)
    gaps = distances64(pooled, pooled)
    np.fill_diagonal(gaps, np.inf)
    whole = []
    for image in range(6):
        near = gaps[image].argsort()[: min(images, 5)]
        whole.append(gaps[image][near].mean())
        found = np.sort(distances64(rows[image], rows[near].reshape(-1, 7)), 1)[:, :k].mean(1)
        np.testing.assert_allclose(scores[image].reshape(-1), found, rtol=1e-5)
    flat = list(torch.from_numpy(scores).reshape(6, -1))
    own = method.score_images("global", list(torch.from_numpy(patches)), flat, range(6))
    np.testing.assert_allclose(own, whole, rtol=1e-5)


def test_spade_is_spade_cluster_with_k_1():
    patches = random_patches()
    expected = SpadeCluster(k=1).fit_score(patches)
    np.testing.assert_array_equal(Spade().fit_score(patches), expected)


# --- PaDiM --------------------------------------------------------------------------------------


def test_padim_is_the_mahalanobis_distance_at_each_position():
    patches = random_patches(30)
    scores = PaDiM().fit_score(patches)
    for row, column in ((0, 0), (3, 4), (2, 1)):
        at = patches[:, row, column].astype(np.float64)
        inverse = np.linalg.inv(np.cov(at, rowvar=False) + 0.01 * np.eye(7))
        for image in (0, 17):
            expected = mahalanobis(at[image], at.mean(0), inverse)
            assert scores[image, row, column] == pytest.approx(expected, rel=1e-4)


def test_padim_chooses_dimensions_at_random_by_its_seed():
    patches = random_patches(20)
    first = PaDiM(dimensions=4, seed=1).fit(patches)
    assert len(set(first.channels_.tolist())) == 4
    assert PaDiM(dimensions=4, seed=1).fit(patches).channels_.equal(first.channels_)
    seeds = {tuple(PaDiM(dimensions=4, seed=s).fit(patches).channels_.tolist()) for s in range(9)}
    assert len(seeds) > 1


def test_padim_refuses_images_of_several_sizes():
    with pytest.raises(SettingError, match="one size"):
        PaDiM().fit([np.zeros((3, 3, 2)), np.zeros((3, 4, 2))])


# --- reverse distillation -----------------------------------------------------------------------


def stage_patches(n=12, seed=0):
    """Patches of three stages of 3, 4 and 5 channels on grids of 8, 4 and 2, all images alike."""
    rng = np.random.default_rng(seed)
    pattern = [rng.normal(size=(c, s, s)) for c, s in ((3, 8), (4, 4), (5, 2))]
    stages = [
        torch.from_numpy((p + 0.1 * rng.normal(size=(n, *p.shape))).astype(np.float32))
        for p in pattern
    ]
    return patch_grid(stages, "stages"), stages


STAGES = {"stages": (3, 4, 5), "strides": (4, 8, 16)}


def test_reverse_distillation_is_the_sum_of_cosine_distances_over_the_stages():
    patches, stages = stage_patches()
    method = ReverseDistillation(epochs=2, **STAGES).fit(patches)
    with torch.no_grad():
        given = method._student([stage[:3] for stage in stages])
    expected = np.zeros((3, 8, 8))
    for teacher, student in zip(stages, given, strict=True):
        t, s = teacher[:3].double().numpy(), student.double().numpy()
        assert t.shape == s.shape
        norms = np.linalg.norm(t, axis=1) * np.linalg.norm(s, axis=1)
        distance = torch.from_numpy(1 - (t * s).sum(1) / norms)[:, None]
        size = {"size": (8, 8), "mode": "bilinear", "align_corners": False}
        expected += torch.nn.functional.interpolate(distance, **size)[:, 0].numpy()
    np.testing.assert_allclose(method.score(patches[:3]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_reverse_distillation_learns_to_give_back_and_an_odd_image_is_not_given_back():
    patches, _ = stage_patches(20)
    new, _ = stage_patches(20)
    trained = ReverseDistillation(epochs=60, **STAGES).fit(patches)
    untrained = ReverseDistillation(epochs=1, **STAGES).fit(patches)
    assert trained.score(new).mean() < 0.25 * untrained.score(new).mean()
    odd = new.clone()
    odd[4, 4:6, 4:6] += 4 * torch.randn(12, generator=torch.Generator().manual_seed(0))
    scores = trained.score(odd)
    assert int(scores.flatten(1).max(1).values.argmax()) == 4
    inside = scores[4, 4:6, 4:6].mean()
    assert inside > 3 * scores[[0, 1, 2, 3]].mean()


@pytest.mark.slow
def test_reverse_distillation_stops_early_and_keeps_the_best_state():
    patches, _ = stage_patches(20)
    epochs = []
    method = ReverseDistillation(epochs=500, patience=2, **STAGES)
    losses = []
    measure = method._loss

    def spy(student, grids):
        losses.append(measure(student, grids))
        return losses[-1]

    method._loss = spy
    method.fit(patches, progress=lambda done, total: epochs.append((done, total)))
    assert len(losses) < 500
    assert epochs[-1] == (500, 500)
    best = int(np.argmin(losses))
    assert best == len(losses) - 3  # two epochs of patience
    held_out = 2  # 1 in 10
    assert any(
        abs(float(method.score(patches[[i, j]]).mean()) - losses[best]) < 1e-5
        for i in range(20)
        for j in range(i)
    ), f"the kept state does not have the smallest loss on any {held_out} images"


def test_reverse_distillation_depends_on_its_seed():
    patches, _ = stage_patches()
    scores = [ReverseDistillation(epochs=2, seed=s, **STAGES).fit_score(patches) for s in (0, 1)]
    assert not torch.allclose(*scores)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "vit_tiny_patch16_224"])
def test_reverse_distillation_works_with_any_teacher_of_three_stages(name):
    teacher = random_backbone(name, strides=(4, 8, 16))
    assert len(teacher.channels) == 3
    images = torch.randint(0, 256, (4, 64, 96, 3), generator=torch.Generator().manual_seed(0))
    patches = patch_grid(teacher(images.to(torch.uint8)), "stages")
    method = ReverseDistillation(epochs=1, stages=teacher.channels, strides=teacher.strides)
    scores = method.fit_score(patches)
    assert scores.shape == patches.shape[:3]
    assert bool(torch.isfinite(scores).all())


def test_reverse_distillation_refuses_stages_that_do_not_add_up():
    with pytest.raises(SettingError, match="do not add up to 7"):
        ReverseDistillation(stages=(3, 3)).fit(random_patches())
    with pytest.raises(SettingError, match="at least 1 of each"):
        ReverseDistillation(epochs=0).fit(random_patches())


# --- PatchClusterPlus ---------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("stages", "strides", "k", "weight"),
    [
        ((3, 4), None, 2, 0.4),
        ((7,), None, 1, 0.0),
        ((2, 5), (8, 16), 3, 0.2),
        ((2, 3, 8), (8, 16, 32), 2, 0.5),
    ],
)
def test_plus_equals_its_formula_in_float64(stages, strides, k, weight):
    patches = random_patches(9, 4, 6)
    ratios = (1, 1, 2) if len(stages) == 3 else (1, 1)
    widths = [channels // r**2 for channels, r in zip(stages, ratios, strict=False)]
    assert sum(widths) == patches.shape[-1]
    method = PatchClusterPlus(k=k, local_weight=weight, stages=stages, strides=strides)
    expected = plus64(patches, k, weight, widths, ratios)
    np.testing.assert_allclose(method.fit_score(patches), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bank", [5, 8, 9, 20])
def test_plus_with_a_bank_of_fewer_images_equals_its_formula_in_float64(bank):
    patches = random_patches(9, 4, 6)
    method = PatchClusterPlus(k=2, stages=(2, 3, 8), strides=(8, 16, 32), bank_images=bank)
    scores = method.fit_score(patches)
    assert len(method.members) == min(bank, 9)
    expected = plus64(patches, 2, 0.5, (2, 3, 2), (1, 1, 2), np.array(method.members))
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)


def test_plus_with_gaps_and_near_duplicates_equals_its_formula_in_float64():
    patches = random_patches(1, 4, 4) + 0.5 * random_patches(40, 4, 4, seed=1)
    patches[[3, 11, 20, 30], 2, 2] = 3 + 0.05 * random_patches(4, 1, 1, seed=2)[:, 0, 0]
    patches[8] = patches[7] + 0.01
    method = PatchClusterPlus(k=3, gap=1.3)
    scores = method.fit_score(patches)
    expected = plus64(patches, 3, 0.5, gap=1.3)
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)
    for other in (PatchClusterPlus(k=3, gap=math.inf), PatchClusterPlus(k=3, duplicate=math.inf)):
        assert not np.allclose(scores, other.fit_score(patches), rtol=1e-2)


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


def test_plus_explains_by_places_of_the_bank_alone():
    patches = torch.from_numpy(random_patches(12, 3, 4))
    method = PatchClusterPlus(bank_images=5, local_weight=0.0).fit(patches)
    every = method.compare(list(patches), range(12))
    rows = every.neighbours
    images = method.bank_image_[rows]
    assert set(method.bank_image_.tolist()) == set(method.chosen_.tolist())
    assert not (images == torch.arange(12).repeat_interleave(12)[:, None]).any()
    normalised = torch.stack([method._stages.rows(grid, 0) for grid in patches])
    places = normalised[images, method.bank_patch_[rows]]
    distances = (places - normalised.flatten(0, 1)[:, None]).norm(dim=2)
    torch.testing.assert_close(distances, every.neighbour_distances, rtol=1e-4, atol=1e-5)
    again = PatchClusterPlus.from_state(method.state(), **method.parameters())
    assert torch.equal(again.compare(list(patches), range(12)).neighbours, rows)


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


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["patchcluster", "patchcluster-plus", "spade"])
def test_patches_that_are_not_finite_are_refused(name, value):
    patches = random_patches(4)
    patches[2, 1, 1, 0] = value
    with pytest.raises(SettingError, match="patches of image 2 are not all finite"):
        METHODS[name]().fit_score(patches)
    fitted = METHODS[name]().fit(random_patches(4))
    with pytest.raises(SettingError, match="patches of image 2 are not all finite"):
        fitted.score(patches)


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


def test_plus_takes_stages_out_of_the_grid_that_the_network_gave():
    """Cells of a stage of stride 32 are compared as the network made them."""
    generator = torch.Generator().manual_seed(0)
    stages = [torch.randn(5, c, s, s, generator=generator) for c, s in ((3, 8), (4, 4), (9, 2))]
    patches = patch_grid(stages, "middle")
    assert patches.shape == (5, 4, 4, 3 + 4 + 3)
    method = PatchClusterPlus(stages=(3, 4, 9), strides=(8, 16, 32)).fit(patches)
    taken = torch.stack([method._layout.take(grid, 2) for grid in patches])
    expected = pool_neighbourhood(stages[2]).flatten(2).mT
    torch.testing.assert_close(taken[..., :9], expected)
    assert not taken[..., 9:].any()


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
    monkeypatch.setattr("patchcluster.methods.grids.COMPARED_PATCHES", 1)
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


def test_plus_of_two_images_compares_each_with_the_other():
    patches = random_patches(2)
    scores = PatchClusterPlus(local_weight=0.0).fit_score(patches)
    expected = plus64(patches, 1, 0.0)
    np.testing.assert_allclose(scores, expected, rtol=1e-4)


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


# --- rules for all methods ----------------------------------------------------------------------

every_method = pytest.mark.parametrize("name", METHODS)
devices = pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
        ),
    ],
)


def make(name, **options):
    """A method with parameters that suit small sets."""
    small = {
        "patchcore-lof": {"k": 5},
        "spade-cluster": {"k": 3},
        "reverse-distillation": {"epochs": 5},
    }
    return METHODS[name](**{**small.get(name, {}), **options})


@every_method
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_arrays_in_arrays_out_tensors_in_tensors_out(name, dtype):
    patches = random_patches().astype(dtype)
    scores = make(name).fit_score(patches)
    assert isinstance(scores, np.ndarray)
    assert scores.shape == (6, 4, 5)
    assert np.isfinite(scores).all()
    tensors = make(name).fit_score(torch.from_numpy(patches))
    np.testing.assert_allclose(tensors.numpy(), scores, rtol=1e-6)
    listed = make(name).fit_score(list(patches))
    np.testing.assert_allclose(np.stack(listed), scores, rtol=1e-6)


@every_method
@devices
def test_scores_are_where_the_patches_are(name, device):
    patches = torch.from_numpy(random_patches())
    scores = make(name).fit_score(patches.to(device))
    assert scores.device.type == device
    if name != "reverse-distillation":  # training on another device ends elsewhere
        expected = make(name).fit_score(patches)
        torch.testing.assert_close(scores.cpu(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"padim"}))
def test_images_of_several_sizes(name):
    patches = [random_patches(1, h, w, seed=h)[0] for h, w in ((4, 5), (3, 3), (6, 2), (5, 5))]
    scores = make(name).fit_score(patches)
    assert [s.shape for s in scores] == [(4, 5), (3, 3), (6, 2), (5, 5)]


@every_method
def test_scores_do_not_depend_on_the_order_of_the_images(name):
    patches = random_patches(9)
    # A greedy coreset starts at the first patch of the set.
    options = {"ratio": 1.0} if name in ("patchcluster", "patchcore") else {}
    order = np.random.default_rng(5).permutation(9)
    scores = make(name, **options).fit_score(patches)
    shuffled = make(name, **options).fit_score(patches[order])
    np.testing.assert_allclose(shuffled, scores[order], rtol=1e-4)


@every_method
def test_same_input_same_scores(name):
    patches = random_patches()
    first, second = (make(name).fit_score(patches) for _ in range(2))
    np.testing.assert_array_equal(first, second)


@every_method
def test_a_method_that_was_not_fitted_says_so(name):
    with pytest.raises(SettingError, match="was not fitted: call fit first"):
        make(name).score(random_patches(2))


@every_method
def test_input_is_left_as_it_was(name):
    patches = random_patches()
    before = patches.copy()
    make(name).fit_score(patches)
    np.testing.assert_array_equal(patches, before)


@every_method
def test_a_fitted_method_that_was_sent_elsewhere_compares_as_here(name):
    """As workers of a cluster have it: its arrays lie where nobody may write to them."""
    patches = torch.from_numpy(random_patches()).half()
    search = Search(make(name).fit(patches), torch.device("cpu"))
    parts: list[pickle.PickleBuffer] = []
    sent = pickle.dumps(search, protocol=5, buffer_callback=parts.append)
    shared = [bytes(part.raw()) for part in parts]
    assert sum(map(len, shared)) > len(sent)
    before = list(map(bytearray, shared))
    copied = pickle.loads(sent, buffers=shared).on(torch.device("cpu"))
    job = [Query(image, patches[image], None) for image in (1, 4)]
    for here, there in zip(
        search.finish(job).tensors().values(), copied.finish(job).tensors().values(), strict=True
    ):
        torch.testing.assert_close(there, here, rtol=1e-5, atol=1e-6)
    assert shared == before


@every_method
def test_constant_images_score_the_same_everywhere(name):
    trained = name == "reverse-distillation"
    options = {"epochs": 40} if trained else {}
    scores = make(name, **options).fit_score(np.ones((5, 3, 3, 4), np.float32))
    assert np.isfinite(scores).all()
    # A decoder gives edges back a little otherwise than the middle, by how far its training came on
    # this processor; all others are exact.
    assert np.ptp(scores) <= (0.1 if trained else 0)


@every_method
def test_copies_of_an_image_score_the_same(name):
    patches = random_patches(9)
    patches[4] = patches[7] = patches[2]
    scores = make(name).fit_score(patches)
    assert np.isfinite(scores).all()
    np.testing.assert_allclose(scores[4], scores[2], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(scores[7], scores[2], rtol=1e-4, atol=1e-6)


# Reverse distillation is made for training sets without anomalies: it learns to give back those of
# such a small set. MuSc compares directions, which noise about zero has none of: see test_musc.py.
@pytest.mark.parametrize("name", sorted(set(METHODS) - {"reverse-distillation", "musc"}))
def test_an_odd_patch_of_a_set_scores_highest(name):
    patches = random_patches(12, 5, 5) * 0.1
    patches[3, 2, 4] += 5
    scores = make(name).fit_score(patches)
    assert np.unravel_index(scores.argmax(), scores.shape) == (3, 2, 4)


@every_method
def test_an_odd_patch_of_new_images_scores_highest(name):
    common = 3 * np.random.default_rng(1).normal(size=7)
    normal, new = ((common + 0.1 * random_patches(12, 5, 5, seed=s)) for s in (0, 1))
    new[3, 2, 4] -= 5
    scores = make(name).fit(normal).score(new)
    image, row, column = np.unravel_index(scores.argmax(), scores.shape)
    assert image == 3
    if name != "reverse-distillation":  # on so small a grid its student spoils the whole image
        assert (row, column) == (2, 4)


@every_method
def test_state_restores_the_method(name):
    patches, new = random_patches(), random_patches(2, seed=8)
    method = make(name)
    method.fit_score(patches)
    restored = type(method).from_state(method.state(), **method.parameters())
    np.testing.assert_array_equal(restored.score(new), method.score(new))


@every_method
@pytest.mark.parametrize("shape", [(0, 3, 3, 4), (2, 3, 4), (2, 0, 3, 4)])
def test_wrong_shapes_are_errors(name, shape):
    with pytest.raises(SettingError, match=r"\[n?,? ?h, w, c\]"):
        make(name).fit(np.zeros(shape, np.float32))


@pytest.mark.parametrize("name", ["patchcluster", "patchcore"])
@pytest.mark.parametrize("ratio", [0.0, 2.0, -0.5])
def test_impossible_ratio_is_an_error(name, ratio):
    with pytest.raises(SettingError, match="ratio"):
        METHODS[name](ratio=ratio).fit(random_patches())


@every_method
def test_one_image_has_nothing_to_be_compared_with(name):
    with pytest.raises(SettingError, match="at least 2 images"):
        make(name).fit_score(random_patches(1))


@pytest.mark.parametrize("blind", [True, False])
def test_methods_of_one_bank_are_compared_by_one_search(blind):
    patches = torch.from_numpy(random_patches())
    asked = [PatchCluster(7, 1.0), PatchCore(1.0), PatchCoreLOF(9), PatchCluster(2, 1.0)]
    first = asked[0].fit(patches)
    fitted = [first, *(method.reuse(first, 120) for method in asked[1:])]
    grids, own = list(patches[1:3]), [1, 2] if blind else None
    for method, found in zip(fitted, first.compare_for(fitted, grids, own), strict=True):
        expected = type(method)(**method.parameters()).fit(patches).compare(grids, own)
        for mine, theirs in zip(found.tensors().values(), expected.tensors().values(), strict=True):
            torch.testing.assert_close(mine, theirs)


@every_method
def test_a_bank_is_shared_by_methods_of_one_key_alone(name):
    patches = random_patches()
    fitted = make(name).fit(patches)
    again = make(name).reuse(fitted, 120)
    assert (again is None) == (fitted.bank_key() is None)
    if again is not None:
        np.testing.assert_array_equal(again.score(patches), fitted.score(patches))
    assert make(name).reuse(make("padim").fit(patches), 120) is None


@pytest.mark.parametrize("ratio", [0.1, 0.4])
def test_a_smaller_coreset_is_the_beginning_of_a_larger_one(ratio):
    patches = random_patches()
    large = PatchCluster(k=2, ratio=0.5).fit(patches)
    small = PatchCluster(k=2, ratio=ratio).fit(patches)
    cut = PatchCluster(k=2, ratio=ratio).reuse(large, 120)
    np.testing.assert_array_equal(cut.bank_, small.bank_)
    np.testing.assert_array_equal(cut.score(patches), small.score(patches))
    assert large.reuse(small, 120) is None
