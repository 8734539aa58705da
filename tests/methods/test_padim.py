"""PaDiM against the Mahalanobis distance of SciPy."""

import numpy as np
import pytest
from scipy.spatial.distance import mahalanobis

from patchcluster.errors import SettingError
from patchcluster.methods import PaDiM
from references import random_patches


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
