"""PatchCore with local outlier factors against those of scikit-learn."""

import numpy as np
import pytest
from sklearn.neighbors import LocalOutlierFactor

from patchcluster.methods import PatchCoreLOF
from references import random_patches


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
