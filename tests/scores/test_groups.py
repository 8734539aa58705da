import numpy as np
import pytest
import torch
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import adjusted_rand_score

from patchcluster.methods import PatchClusterPlus
from patchcluster.scores.groups import MOST_GROUPS, describe_image, describe_regions, group_regions
from patchcluster.scores.maps import Region


def test_a_region_is_described_by_its_own_highest_patches():
    vectors = torch.eye(16)
    grid = np.zeros((4, 4), np.float32)
    grid[1, 2] = 5  # patch 6, in the region; the others of the region are at 0
    grid[3, 0] = 9  # higher, but outside
    # x 40..79 and y 20..39 of an image of 80 x 80: columns 2 and 3, row 1 -> patches 6 and 7
    found = describe_regions(vectors, grid, [Region(40, 20, 40, 20, 800, 5.0)], 80, 80)
    expected = torch.zeros(16)
    expected[[6, 7]] = 1 / np.sqrt(2)
    np.testing.assert_allclose(found[0], expected, rtol=1e-6)


def test_a_region_smaller_than_a_patch_has_one():
    vectors = torch.eye(4)
    found = describe_regions(
        vectors, np.zeros((2, 2), np.float32), [Region(79, 79, 1, 1, 1, 1)], 80, 80
    )
    assert found[0].tolist() == [0, 0, 0, 1]


def test_an_image_is_described_by_its_eight_highest_patches():
    grid = np.arange(16, dtype=np.float32).reshape(4, 4)
    expected = torch.cat([torch.zeros(8), torch.full((8,), 8**-0.5)])
    np.testing.assert_allclose(describe_image(torch.eye(16), grid), expected, rtol=1e-6)


def kinds(counts, spread=0.05):
    random = np.random.default_rng(0)
    centres = np.eye(len(counts), 10)
    truth = np.repeat(np.arange(len(counts)), counts)
    return centres[truth] + random.normal(0, spread, (len(truth), 10)), truth


def test_kinds_that_keep_apart_are_the_groups_the_largest_first():
    described, truth = kinds([5, 20, 7])  # 32 regions -> 4 groups
    groups = group_regions(described.astype(np.float32))
    sizes = np.bincount(groups)[1:]
    assert len(sizes) == 4
    assert sizes.tolist() == sorted(sizes, reverse=True)
    for group in range(1, 5):
        assert len(set(truth[groups == group])) == 1


@pytest.mark.parametrize(("regions", "groups"), [(1, 1), (4, 1), (8, 2), (50, 5), (1000, 8)])
def test_number_of_groups(regions, groups):
    described = np.random.default_rng(0).normal(size=(regions, 6)).astype(np.float32)
    found = group_regions(described)
    assert len(found) == regions
    assert set(found) == set(range(1, groups + 1))
    assert groups <= MOST_GROUPS


@pytest.mark.parametrize("copies", [1, 3])
def test_groups_are_those_of_scikit_learn(copies):
    """Also where regions are the same, so that merges are of no height."""
    described = np.random.default_rng(1).normal(size=(90, 6)).astype(np.float32)
    described = np.tile(described, (copies, 1))
    found = group_regions(described)
    expected = AgglomerativeClustering(int(found.max()), linkage="ward").fit_predict(described)
    assert adjusted_rand_score(expected, found) == 1


def test_of_very_many_regions_the_rest_joins_the_nearest_group():
    described, truth = kinds([600] * MOST_GROUPS)
    order = np.random.default_rng(1).permutation(len(truth))
    groups = group_regions(described[order].astype(np.float32))
    assert adjusted_rand_score(truth[order], groups) == 1


def test_the_default_method_describes_patches_by_their_normalised_vectors():
    random = np.random.default_rng(0)
    shapes = [(2, 4), (4, 2), (2, 2)]
    patches = [torch.from_numpy(random.normal(1, 2, (*shape, 5))).half() for shape in shapes]
    method = PatchClusterPlus(saturation=1.5).fit(patches)
    rows = np.concatenate([p.double().numpy().reshape(-1, 5) for p in patches])
    centred = rows - rows.mean(0)
    energy = np.square(centred).sum(1)
    expected = centred / np.sqrt(energy + 1.5**2 * energy.mean())[:, None]
    for image, (start, stop) in enumerate([(0, 8), (8, 16), (16, 20)]):
        found = method.describe(image)
        assert found is not None
        np.testing.assert_allclose(found, expected[start:stop], rtol=1e-4, atol=1e-6)
