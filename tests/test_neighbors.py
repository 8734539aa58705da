from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patchcluster import screening
from patchcluster.errors import SettingError
from patchcluster.neighbors import QUERY_TILE, BlockBank, nearest


def distances64(queries: np.ndarray, bank: np.ndarray) -> np.ndarray:
    """All distances [q, m] in float64, by the definition."""
    difference = queries[:, None].astype(np.float64) - bank[None].astype(np.float64)
    return np.sqrt((difference**2).sum(-1))


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


def test_nearest_over_several_tiles_of_queries_and_bank(monkeypatch):
    monkeypatch.setattr("patchcluster.neighbors._BANK_TILE", 100)
    monkeypatch.setattr("patchcluster.neighbors.QUERY_TILE", 30)
    monkeypatch.setattr("patchcluster.neighbors._GATHER", 500)
    rng = np.random.default_rng(0)
    queries, bank = rng.normal(size=(70, 16)), rng.normal(size=(350, 16))
    distances, indices = nearest(queries, bank, 12)
    truth = distances64(queries, bank)
    np.testing.assert_array_equal(indices, truth.argsort(1)[:, :12])
    np.testing.assert_allclose(distances, np.sort(truth, 1)[:, :12], rtol=1e-12)
    assert distances.dtype == np.float64


def test_identical_rows_have_distance_zero():
    rows = torch.randn(20, 64) + 50
    distances, indices = nearest(rows, rows, 1)
    assert torch.equal(distances, torch.zeros(20, 1))
    assert torch.equal(indices[:, 0], torch.arange(20))


def test_hand_derived_neighbours():
    bank = np.array([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]], np.float32)
    distances, indices = nearest(np.array([[0.0, 0.0], [6.0, 7.0]], np.float32), bank, 2)
    np.testing.assert_allclose(distances, [[0, 5], [1, np.sqrt(18)]])
    assert indices.tolist() == [[0, 1], [2, 1]]


@pytest.mark.parametrize("k", [0, 4])
def test_k_outside_the_bank_is_an_error_that_names_the_range(k):
    with pytest.raises(SettingError, match="choose 1 to 3"):
        nearest(torch.zeros(1, 2), torch.zeros(3, 2), k)


def test_wrong_shapes_are_an_error_that_shows_them():
    with pytest.raises(SettingError, match=r"\(1, 2\).*\(3, 4\)"):
        nearest(torch.zeros(1, 2), torch.zeros(3, 4), 1)


def block_minima64(queries: np.ndarray, rows: np.ndarray, offsets: list[int]) -> np.ndarray:
    all_distances = distances64(queries, rows)
    return np.stack([all_distances[:, a:b].min(1) for a, b in pairwise(offsets)], 1)


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(1, 12), min_size=2, max_size=8), seed=st.integers(0, 2**31))
def test_blocks_of_a_complete_bank_equal_direct_search(sizes, seed):
    rng = np.random.default_rng(seed)
    offsets = [0, *np.cumsum(sizes).tolist()]
    rows = rng.normal(size=(offsets[-1], 6)).astype(np.float32)
    own = np.repeat(np.arange(len(sizes)), sizes)
    bank = BlockBank(torch.from_numpy(rows), offsets, torch.arange(len(rows)))
    k = len(sizes) - 1
    left_out = torch.from_numpy(own[:, None] == np.arange(len(sizes)))
    distances, found, _ = bank.nearest_blocks(torch.from_numpy(rows), k, k, left_out)
    minima = block_minima64(rows, rows, offsets)
    minima[np.arange(len(rows)), own] = np.inf
    np.testing.assert_allclose(distances, np.sort(minima, 1)[:, :k], rtol=1e-5, atol=1e-6)
    blocks = own[found.numpy()]
    every = [sorted({*row, mine}) for row, mine in zip(blocks, own, strict=True)]
    assert every == [list(range(len(sizes)))] * len(rows)
    exact = np.take_along_axis(distances64(rows, rows), found.numpy(), 1)
    np.testing.assert_allclose(distances, exact, rtol=1e-5, atol=1e-6)


def test_candidates_are_searched_in_full():
    """Block 1 has the nearest row outside the sample, and is found through a sampled one."""
    rows = torch.tensor([[5.0], [9.0], [2.0], [0.1], [4.0], [8.0]])
    bank = BlockBank(rows, [0, 2, 4, 6], torch.tensor([0, 2, 4]))
    distances, found, _ = bank.nearest_blocks(torch.zeros(1, 1), 1, candidates=1)
    assert found.tolist() == [[3]]
    assert distances[0, 0] == pytest.approx(0.1)


@pytest.mark.skipif(not screening.available(), reason="the 8-bit kernels are not there")
@pytest.mark.parametrize("spread", [0.02, 1.0])
def test_all_machines_choose_the_same_blocks(monkeypatch, spread):
    rng = np.random.default_rng(3)
    centres = rng.normal(size=(30, 1, 20))  # 30 blocks that differ hardly or much within
    rows = (centres + spread * rng.normal(size=(30, 40, 20))).reshape(-1, 20).astype(np.float32)
    bank, sample = torch.from_numpy(rows), torch.arange(0, len(rows), 3)
    offsets, queries = list(range(0, 1201, 40)), torch.from_numpy(rows[::7] + np.float32(0.01))
    with_kernels = BlockBank(bank, offsets, sample).nearest_blocks(queries, 3, 4)
    monkeypatch.setattr("patchcluster.kernels.library", lambda: None)
    without = BlockBank(bank, offsets, sample).nearest_blocks(queries, 3, 4)
    torch.testing.assert_close(with_kernels[0], without[0])
    assert with_kernels[1].tolist() == without[1].tolist()
    assert with_kernels[2].blocks.tolist() == without[2].blocks.tolist()
    assert with_kernels[2].before.tolist() == without[2].before.tolist()


def test_queries_over_several_tiles_agree_with_one_at_a_time():
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(60, 8, generator=generator)
    queries = torch.randn(QUERY_TILE + 5, 8, generator=generator)
    bank = BlockBank(rows, [0, 20, 40, 60], torch.arange(0, 60, 2))
    together = bank.nearest_blocks(queries, 2, 3)[0]
    last = bank.nearest_blocks(queries[-3:], 2, 3)[0]
    torch.testing.assert_close(together[-3:], last)


def test_too_few_other_blocks_are_an_error():
    bank = BlockBank(torch.zeros(2, 1), [0, 1, 2], torch.arange(2))
    with pytest.raises(SettingError, match="there are 1 others"):
        bank.nearest_blocks(torch.zeros(1, 1), 2, 2, torch.tensor([[True, False]]))


def test_blocks_before_the_last_gap_are_left_out():
    """16 blocks of a row each, at these distances; up to two may lie before a gap."""
    rows = torch.tensor([1.0, 1.1, 3.0, 3.3, *range(4, 16)])[:, None]
    offsets, query = list(range(17)), torch.zeros(1, 1)
    bank = BlockBank(rows, offsets, torch.arange(16))
    distances, found, _ = bank.nearest_blocks(query, 2, 4, gap=1.5)
    assert found.tolist() == [[2, 3]]
    torch.testing.assert_close(distances, torch.tensor([[3.0, 3.3]]))
    assert bank.nearest_blocks(query, 2, 4, gap=3.0)[1].tolist() == [[0, 1]]  # 3 / 1.1 is no gap
    assert bank.nearest_blocks(query, 3, 4, gap=1.5)[1].tolist() == [[0, 1, 2]]  # 16 / 8 < k
    nearest_left_out = torch.zeros(1, 16, dtype=torch.bool).index_fill_(1, torch.tensor(0), True)
    # With the first left out, one block lies before the gap: it is within the k.
    assert bank.nearest_blocks(query, 2, 4, nearest_left_out, 1.5)[1].tolist() == [[1, 2]]


def test_a_gap_that_the_sample_hides_is_found_among_the_candidates():
    """Blocks of two rows: the sample lacks the near rows of two blocks."""
    far = torch.arange(5.0, 21.0)
    near = far.clone()
    near[:2] = torch.tensor([1.0, 1.2])
    rows = torch.stack([far, near], 1).reshape(-1, 1)
    bank = BlockBank(rows, list(range(0, 34, 2)), torch.arange(0, 32, 2))
    distances, found, _ = bank.nearest_blocks(torch.zeros(1, 1), 2, 8, gap=1.5)
    assert (found // 2).tolist() == [[2, 3]]
    assert distances.tolist() == [[7.0, 8.0]]
