from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree

from patchcluster.errors import SettingError
from patchcluster.search import neighbors
from patchcluster.search.neighbors import Blocks, nearest
from references import distances64


@settings(max_examples=40, deadline=None)
@given(
    q=st.integers(1, 40),
    m=st.integers(1, 60),
    c=st.integers(1, 20),
    offset=st.sampled_from([0.0, 1000.0]),
    seed=st.integers(0, 2**31),
    data=st.data(),
)
def test_nearest_equals_direct_float64_search(q, m, c, offset, seed, data):
    rng = np.random.default_rng(seed)
    k = data.draw(st.integers(1, m))
    queries = (offset + rng.normal(size=(q, c))).astype(np.float32)
    bank = (offset + rng.normal(size=(m, c))).astype(np.float32)
    distances, indices = nearest(queries, bank, k)
    truth = distances64(queries, bank)
    expected = np.sort(truth, axis=1)[:, :k]
    # float32 holds a value near 1000 to 6e-5: what the input cannot hold cannot be asked for.
    np.testing.assert_allclose(distances, expected, rtol=2e-5, atol=1e-6 + 2e-6 * offset)
    chosen = np.take_along_axis(truth, indices, axis=1)
    np.testing.assert_allclose(chosen, expected, rtol=2e-5, atol=1e-6 + 2e-6 * offset)
    assert all(len(set(row)) == k for row in indices.tolist())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])  # by faiss, and by torch
def test_nearest_over_several_tiles_of_queries_and_bank(dtype):
    rng = np.random.default_rng(0)
    queries = rng.normal(size=(4000, 6)).astype(dtype)
    bank = rng.normal(size=(17_000, 6)).astype(dtype)
    distances, indices = nearest(queries, bank, 20)
    expected, _ = cKDTree(bank.astype(np.float64)).query(queries.astype(np.float64), 20)
    close = {"rtol": 1e-12 if dtype == np.float64 else 1e-5}
    np.testing.assert_allclose(distances, expected, **close)
    named = bank[indices].astype(np.float64) - queries[:, None]
    np.testing.assert_allclose(np.linalg.norm(named, axis=2), expected, **close)
    assert distances.dtype == dtype


def test_both_ways_of_search_find_the_same():
    """As on the CPU and on a GPU; rows much alike, far from the origin."""
    generator = torch.Generator().manual_seed(0)
    bank = 30 + torch.randn(2000, 24, generator=generator)
    queries = bank[::7] + 0.01 * torch.randn(286, 24, generator=generator)
    centre = bank.mean(0)
    by_faiss, by_torch = (
        find(queries - centre, bank - centre, 9).sort(1).values
        for find in (neighbors._find_by_faiss, neighbors._find_by_torch)
    )
    assert (by_faiss == by_torch).float().mean() > 0.999


def test_identical_rows_have_distance_zero():
    rows = torch.randn(20, 64) + 50
    distances, indices = nearest(rows, rows, 1)
    assert torch.equal(distances, torch.zeros(20, 1))
    assert torch.equal(indices[:, 0], torch.arange(20))


@pytest.mark.parametrize("k", [0, 4])
def test_k_outside_the_bank_is_an_error_that_names_the_range(k):
    with pytest.raises(SettingError, match="choose 1 to 3"):
        nearest(torch.zeros(1, 2), torch.zeros(3, 2), k)


def test_wrong_shapes_are_an_error_that_shows_them():
    with pytest.raises(SettingError, match=r"\(1, 2\).*\(3, 4\)"):
        nearest(torch.zeros(1, 2), torch.zeros(3, 4), 1)


# --- blocks -------------------------------------------------------------------------------------


def per_block64(queries, bank, offsets):
    """All minima [q, blocks] in float64, by the definition."""
    distances = distances64(queries, bank)
    return np.stack([distances[:, start:stop].min(1) for start, stop in pairwise(offsets)], 1)


def nearest_of_each(queries, bank, offsets):
    """Of arrays, centred as `Blocks` asks for."""
    rows, asked = torch.from_numpy(bank), torch.from_numpy(queries)
    centre = rows.mean(0)
    distances, found = Blocks(rows - centre, offsets).nearest_of_each(asked - centre)
    return distances.numpy(), found.numpy()


@settings(max_examples=60, deadline=None)
@given(
    q=st.integers(1, 30),
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=9),
    c=st.integers(1, 20),
    offset=st.sampled_from([0.0, 1000.0]),
    seed=st.integers(0, 2**31),
)
def test_nearest_of_each_block_equals_direct_float64_search(q, sizes, c, offset, seed):
    rng = np.random.default_rng(seed)
    offsets = [0, *np.cumsum(sizes).tolist()]
    queries = (offset + rng.normal(size=(q, c))).astype(np.float32)
    bank = (offset + rng.normal(size=(offsets[-1], c))).astype(np.float32)
    distances, rows = nearest_of_each(queries, bank, offsets)
    assert distances.dtype == np.float32
    # float32 holds a value near 1000 to 6e-5: what the input cannot hold cannot be asked for.
    close = {"rtol": 2e-5, "atol": 1e-6 + 2e-6 * offset}
    np.testing.assert_allclose(distances, per_block64(queries, bank, offsets), **close)
    named = np.take_along_axis(distances64(queries, bank), rows, 1)
    np.testing.assert_allclose(distances, named, **close)
    assert (rows >= offsets[:-1]).all()
    assert (rows < offsets[1:]).all()


def test_nearest_of_each_block_of_rows_much_alike():
    """Rows of length 1 that differ by a thousandth: squares of float32 do not tell them apart."""
    rng = np.random.default_rng(0)
    noise = 1e-3 * rng.normal(size=(2, 8, 50, 24))
    rows = rng.normal(size=(8, 1, 24)) + noise
    rows = (rows / np.linalg.norm(rows, axis=3, keepdims=True)).astype(np.float32)
    queries, bank = rows.reshape(2, 400, 24)
    offsets = list(range(0, 401, 25))
    expected = per_block64(queries, bank, offsets)
    assert expected.min() < 1e-3
    np.testing.assert_allclose(nearest_of_each(queries, bank, offsets)[0], expected, rtol=1e-3)
