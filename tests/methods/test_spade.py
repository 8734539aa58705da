"""SPADE and its version for clusters against their formulas in float64."""

import numpy as np
import pytest
import torch

from patchcluster.methods import Spade, SpadeCluster
from references import distances64, random_patches


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
    own = method.score_images(list(torch.from_numpy(patches)), flat, range(6))
    np.testing.assert_allclose(own, whole, rtol=1e-5)


def test_spade_is_spade_cluster_with_k_1():
    patches = random_patches()
    expected = SpadeCluster(k=1).fit_score(patches)
    np.testing.assert_array_equal(Spade().fit_score(patches), expected)
