"""The paper's method, and PatchCore, against float64 evaluations of their formulas."""

import numpy as np
import pytest
import torch

from patchcluster.errors import SettingError
from patchcluster.methods import METHODS, PatchCluster, PatchCore
from patchcluster.search.coreset import greedy_coreset
from references import distances64, random_patches


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


def equation3(query, rows, own):
    """What a patch's score is multiplied with; and the distance to its nearest row, f*."""
    nearest = distances64(query[None], rows)[0].argsort()[1 if own else 0]
    support = distances64(rows[nearest][None], rows)[0].argsort()[:9]
    gap = distances64(query[None], rows[nearest][None])[0, 0]
    return 1 - np.exp(gap) / np.exp(distances64(query[None], rows[support])[0]).sum(), gap


@pytest.mark.parametrize("own", [True, False])
def test_reweighted_image_score_is_equation_3(own):
    patches = random_patches()
    rows = patches.reshape(-1, 7)
    method = PatchCluster(k=5, ratio=1.0).fit(patches)
    queries = rows[[3, 77]] if own else random_patches(1, 1, 2, seed=9).reshape(-1, 7)
    highest = np.array([2.5, 3.5])
    result = method.reweight(torch.from_numpy(queries), torch.from_numpy(highest), own=own)
    expected = [equation3(q, rows, own)[0] * a for q, a in zip(queries, highest, strict=True)]
    np.testing.assert_allclose(result, expected, rtol=1e-4)


def test_equation_3_as_it_is_written_for_one_neighbour():
    """With K = 1 the score a* is the distance to f*: the paper's equation and PatchCore's agree."""
    patches = torch.from_numpy(random_patches())
    rows = patches.reshape(-1, 7).numpy()
    method = PatchCore(ratio=1.0)
    scores = method.fit_score(patches).flatten(1)
    result = method.score_images(list(patches), list(scores), range(6))
    for image, found in enumerate(result):
        factor, gap = equation3(rows[20 * image + int(scores[image].argmax())], rows, True)
        assert float(scores[image].max()) == pytest.approx(gap, rel=1e-5)
        assert float(found) == pytest.approx(factor * gap, rel=1e-4)


def test_reweighting_does_not_overflow():
    patches = 1000 * random_patches()
    method = PatchCluster(k=5, ratio=1.0).fit(patches)
    result = method.reweight(torch.from_numpy(patches[0, 0, :1]), torch.tensor([3000.0]), own=True)
    assert bool(torch.isfinite(result).all())


@pytest.mark.parametrize("k", [0, 120, 500])
def test_k_that_the_bank_cannot_serve_is_an_error(k):
    with pytest.raises(SettingError, match=f"k={k}.*119"):
        PatchCluster(k=k, ratio=1.0).fit(random_patches())


@pytest.mark.parametrize("name", ["patchcluster", "patchcore"])
@pytest.mark.parametrize("ratio", [0.0, 2.0, -0.5])
def test_impossible_ratio_is_an_error(name, ratio):
    with pytest.raises(SettingError, match="ratio"):
        METHODS[name](ratio=ratio).fit(random_patches())


@pytest.mark.parametrize("ratio", [0.1, 0.4])
def test_a_smaller_coreset_is_the_beginning_of_a_larger_one(ratio):
    patches = random_patches()
    large = PatchCluster(k=2, ratio=0.5).fit(patches)
    small = PatchCluster(k=2, ratio=ratio).fit(patches)
    cut = PatchCluster(k=2, ratio=ratio).reuse(large, 120)
    np.testing.assert_array_equal(cut.bank_, small.bank_)
    np.testing.assert_array_equal(cut.score(patches), small.score(patches))
    assert large.reuse(small, 120) is None
