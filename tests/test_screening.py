"""Screening must never lose a neighbour: its proof is checked against float64, on hard data too."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patchcluster import neighbors, screening
from patchcluster.neighbors import nearest

KINDS = ("random", "clusters", "copies", "constant", "heavy", "far")


def draw(kind, count, channels, seed):
    """Centred rows float32 [count, channels] of several kinds; all kinds of one seed fit."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(count, channels))
    if kind == "clusters":  # as patches of one place are: many near to each other
        rows = 10 * rng.normal(size=(5, channels))[rng.integers(0, 5, count)] + 0.05 * rows
    if kind == "copies":
        rows = rows[rng.integers(0, max(1, count // 8), count)]
    if kind == "constant":
        rows[:] = 0
    if kind == "heavy":
        rows *= rng.lognormal(0, 2, (count, 1))
    if kind == "far":
        rows[: count // 2] += 200
    rows = rows.astype(np.float32)
    return torch.from_numpy(rows - rows.mean(0, dtype=np.float64).astype(np.float32))


def distances64(queries, bank):
    a, b = queries.double().numpy(), bank.double().numpy()
    return np.stack([np.sqrt(((row - b) ** 2).sum(1)) for row in a])


@settings(max_examples=100, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    m=st.integers(1, 700),
    channels=st.integers(1, 60),
    seed=st.integers(0, 2**31),
    data=st.data(),
)
def test_no_other_row_is_nearer_than_is_said(kind, m, channels, seed, data):
    bank = draw(kind, m, channels, seed)
    queries = torch.cat([bank[: min(m, 20)], draw("random", 5, channels, seed + 1)])
    count = data.draw(st.integers(1, m))
    found = screening.Screen(bank)(queries, count)
    truth = distances64(queries, bank)
    assert found.rows.shape == (len(queries), count)
    for row, rows, others in zip(truth, found.rows.tolist(), found.others.tolist(), strict=True):
        assert len(set(rows)) == count
        left = np.delete(row, rows)
        if len(left):
            assert left.min() >= others - 1e-6


def test_the_bound_allows_for_the_rounding_of_the_product():
    """One row at 0 and a query at 1.523125: the product is 1.16043, in bfloat16 1.1640625."""
    bank, queries = torch.zeros(2, 1), torch.tensor([[1.523125]])
    found = screening.Screen(bank)(queries, 1)
    assert float(found.others) <= 1.523125


def test_candidates_of_several_chunks_and_batches_of_queries(monkeypatch):
    monkeypatch.setattr(screening, "_ROWS", 64)
    monkeypatch.setattr(screening, "_CHUNK", 192)
    monkeypatch.setattr(screening, "_QUERIES", 7)
    bank, queries = draw("clusters", 1000, 24, 0), draw("clusters", 40, 24, 0)
    found = screening.Screen(bank)(queries, 30)
    truth = distances64(queries, bank)
    for row, rows, others in zip(truth, found.rows.tolist(), found.others.tolist(), strict=True):
        assert np.delete(row, rows).min() >= others


@pytest.mark.parametrize("kind", KINDS)
def test_minima_of_blocks_are_half_the_squared_distances(kind):
    bank, queries = draw(kind, 400, 24, 5), draw("random", 60, 24, 6)
    offsets = [0, 130, 131, 250, 400]
    minima = screening.BlockScreen(bank, offsets)(queries)
    truth = distances64(queries, bank)
    for block in range(4):
        nearest_row = truth[:, offsets[block] : offsets[block + 1]].min(1)
        # bfloat16 rounds off at most 2^-8 of a number, be it of a row or a result.
        rows = bank[offsets[block] : offsets[block + 1]].norm(dim=1).max()
        off = 2.0**-8 * (queries.norm(dim=1) + rows).numpy()
        found = np.sqrt(2 * minima[block].clamp_min(0).numpy())
        assert (np.abs(found - nearest_row) <= off + 2.0**-8 * nearest_row + 0.02).all()


@pytest.fixture
def always(monkeypatch):
    """Screen banks of any size, on any processor; count the queries that went the long way."""
    monkeypatch.setattr(neighbors, "_SCREENED", 0)
    monkeypatch.setattr(screening, "available", lambda: True)
    long_way = []
    search = neighbors._nearest_tile
    monkeypatch.setattr(
        neighbors, "_nearest_tile", lambda q, b, k: long_way.append(len(q)) or search(q, b, k)
    )
    return long_way


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 2, 25])
@pytest.mark.parametrize("offset", [0, 500])
def test_nearest_with_screening_equals_a_float64_search(kind, k, offset):
    bank = offset + draw(kind, 1500, 32, 3)
    queries = torch.cat([bank[::10], offset + draw("random", 50, 32, 4)])
    distances, indices = nearest(queries, bank, k)
    truth = distances64(queries, bank)
    expected = np.sort(truth, 1)[:, :k]
    tolerance = {"rtol": 2e-5, "atol": 1e-6 + 2e-6 * offset}
    np.testing.assert_allclose(distances, expected, **tolerance)
    chosen = np.take_along_axis(truth, indices.numpy(), 1)
    np.testing.assert_allclose(chosen, expected, **tolerance)


def test_screening_proves_nearly_all_queries(always):
    nearest(draw("random", 500, 32, 3), draw("random", 3000, 32, 4), 3)
    assert sum(always) < 25


def test_screening_is_given_up_where_it_proves_little(always, monkeypatch):
    monkeypatch.setattr(neighbors, "QUERY_TILE", 100)
    screened = []
    search = screening.Screen.__call__
    monkeypatch.setattr(screening.Screen, "__call__", lambda *a: screened.append(1) or search(*a))
    # Hundreds of rows lie nearer to each other than what bfloat16 rounds off.
    bank, queries = draw("clusters", 4000, 30, 1), draw("clusters", 400, 30, 1)
    distances, _ = nearest(queries, bank, 5)
    assert len(screened) == 1
    assert sum(always) > 300
    expected = np.sort(distances64(queries, bank), 1)[:, :5]
    np.testing.assert_allclose(distances, expected, rtol=1e-4)


@pytest.mark.usefixtures("always")
def test_what_is_not_a_number_goes_the_long_way():
    bank = draw("random", 500, 8, 0)
    queries = bank[:4].clone()
    queries[2, 1] = torch.nan
    distances, _ = nearest(queries, bank, 2)
    assert bool(torch.isnan(distances[2]).all())
    assert bool(torch.isfinite(distances[[0, 1, 3]]).all())


@pytest.mark.parametrize("flag", [True, False])
def test_screening_is_used_where_the_processor_has_bfloat16(monkeypatch, flag):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: flag, raising=False)
    assert screening.available() is flag
