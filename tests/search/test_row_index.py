"""Searches of K nearest rows, exact in small banks, by an inverted file in large ones."""

import gc

import numpy as np
import pytest
import torch

from patchcluster.search import row_index
from patchcluster.search.neighbors import nearest
from patchcluster.search.row_index import RowIndex, TorchLists, find_distinct


def patches(rows, seed=0, kinds=40, channels=16):
    """Rows [rows, channels] that come in kinds, as patches of images do."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(kinds, channels))
    values = centres[rng.integers(kinds, size=rows)] + 0.3 * rng.normal(size=(rows, channels))
    return torch.from_numpy(values.astype(np.float32))


@pytest.fixture
def large(monkeypatch):
    """A bank that is large enough for an inverted file, which small ones are said to be."""
    monkeypatch.setattr(row_index, "_EXACT_ROWS", 1000)
    return patches(6000)


def test_a_small_bank_is_searched_exactly():
    rows, queries = patches(500), patches(50, seed=1)
    found, expected = RowIndex(rows).search(queries, 7), nearest(queries, rows, 7)
    assert all(map(torch.equal, found, expected))


def test_an_inverted_file_finds_most_neighbours_at_their_distances(large):
    queries = patches(400, seed=1)
    distances, rows = RowIndex(large).search(queries, 20)
    expected, neighbours = nearest(queries, large, 20)
    hits = (rows[:, :, None] == neighbours[:, None, :]).any(2).float().mean()
    assert 0.6 < hits < 1  # or it was searched exactly
    assert float(distances.mean()) < 1.03 * float(expected.mean())
    named = (large[rows] - queries[:, None]).norm(dim=2)
    torch.testing.assert_close(distances, named, rtol=1e-3, atol=1e-5)  # rows are float16
    assert bool((distances[:, 1:] >= distances[:, :-1]).all())
    assert bool((distances >= expected * (1 - 1e-3)).all())


def test_who_asks_for_more_rows_finds_more_of_the_nearest(large):
    queries, index = patches(400, seed=1), RowIndex(large)
    expected = nearest(queries, large, 10)[0]
    excess = [
        float((index.search(queries, k)[0][:, :10] - expected).mean()) for k in (10, 100, 1500)
    ]
    assert excess[0] > excess[1] > abs(excess[2])
    assert excess[2] == pytest.approx(0, abs=1e-5)  # all lists: an exact search


def test_what_the_lists_do_not_hold_is_marked(large, monkeypatch):
    monkeypatch.setattr(row_index, "_COMPARED", 1)
    index = RowIndex(large)
    distances, rows = index.search(patches(100, seed=1), 300)
    missing = rows < 0
    assert bool(missing.any())
    assert bool(distances[missing].isinf().all())
    assert bool(distances[~missing].isfinite().all())
    assert RowIndex(large[:3]).search(large[:2], 5)[0].shape == (2, 3)  # there are not more rows


@pytest.mark.parametrize("threads", [1, 3])
def test_the_same_rows_give_the_same_neighbours_by_any_order_and_number_of_threads(large, threads):
    large[:3000, :12] = large[0, :12]  # many rows are nearly as far as others
    large[:2000] = large[0]
    queries = torch.cat([patches(300, seed=1), large[:50]])
    expected = RowIndex(large).search(queries, 10)[0]
    order = torch.randperm(len(large), generator=torch.Generator().manual_seed(0))
    usual = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        distances = RowIndex(large[order]).search(queries, 10)[0]
    finally:
        torch.set_num_threads(usual)
    torch.testing.assert_close(distances, expected, rtol=1e-4, atol=1e-5)


def test_the_rows_of_a_large_bank_are_not_held_a_second_time(large):
    rows = large.clone()
    storage = rows.untyped_storage().data_ptr()
    index = RowIndex(rows)
    del rows
    held = {t.untyped_storage().data_ptr() for t in gc.get_objects() if type(t) is torch.Tensor}
    assert storage not in held
    assert index.search(large[:1], 1)[0] == pytest.approx(0, abs=1e-2)


def test_any_device_finds_the_rows_that_faiss_finds(large, monkeypatch):
    monkeypatch.setattr(row_index, "_COMPARED", 1)  # some lists hold fewer rows than are asked for
    queries = patches(3500, seed=1)  # more than a tile
    expected, rows = RowIndex(large).search(queries, 60)
    monkeypatch.setattr(row_index, "FaissLists", TorchLists)
    distances, found = RowIndex(large).search(queries, 60)
    assert bool((found < 0).any())
    # Rows that are as near change places, and so do lists whose centres are.
    assert float(torch.isclose(distances, expected, rtol=1e-4, atol=1e-5).float().mean()) > 0.999
    assert float((found == rows).float().mean()) > 0.999


def test_last_digits_of_rows_move_few_neighbours(large):
    """Processors differ in them. Rows drawn by their order, not by cells, moved 13 % of them."""
    rows, queries = large / 8, patches(400, seed=1) / 8  # of a length of about 1/2
    expected = RowIndex(rows).search(queries, 20)[1]
    noise = torch.randn(rows.shape, generator=torch.Generator().manual_seed(2))
    found = RowIndex(rows * (1 + 1e-4 * noise)).search(queries, 20)[1]
    same = (found[:, :, None] == expected[:, None, :]).any(2)
    assert float(same.float().mean()) > 0.97


def test_of_equal_rows_the_first_is_found():
    rows = patches(40)
    rows[[7, 9, 30]], rows[[12, 13]] = rows[3].clone(), rows[2].clone()
    found = find_distinct(rows)
    _, first = np.unique(rows.numpy(), axis=0, return_index=True)
    np.testing.assert_array_equal(found.sort().values, np.sort(first))
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    assert torch.equal(rows[order][find_distinct(rows[order])], rows[found])


def test_queries_near_a_row_that_fills_most_of_the_bank_find_rows(large):
    rows = large.clone()
    rows[:4800] = rows[0].clone()
    queries = rows[0] + 0.01 * patches(50, seed=1)
    distances, found = RowIndex(rows).search(queries, 5)
    assert bool((found[:, 0] >= 0).all())
    expected, _ = nearest(queries, rows, 1)
    torch.testing.assert_close(distances[:, :1], expected, rtol=0.05, atol=0.02)
