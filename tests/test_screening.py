"""Screening must never lose a neighbour: its proof is checked against float64, on hard data too."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patchcluster import neighbors, screening
from patchcluster.neighbors import BlockBank, nearest

REASON = "the 8-bit kernels need AVX512-VNNI, and a C compiler when the package was built"
needs_kernels = pytest.mark.skipif(not screening.available(), reason=REASON)


@pytest.fixture(scope="module", autouse=True, params=["AVX512-VNNI", "AMX"])
def instructions(request):
    """Every test with both ways of multiplying."""
    if screening.use_tiles(request.param == "AMX") != (request.param == "AMX"):
        pytest.skip("AMX for 8 bits is not there")
    yield
    screening.use_tiles(True)


KINDS = ("random", "clusters", "copies", "constant", "heavy", "far", "tiny")
WIDTHS = (24, 100)  # AMX is for rows of more than 64


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
    if kind == "tiny":
        rows *= 1e-36
    if kind == "far":
        rows[: count // 2] += 200
    rows = rows.astype(np.float32)
    return torch.from_numpy(rows - rows.mean(0, dtype=np.float64).astype(np.float32))


def distances64(queries, bank):
    a, b = queries.double().numpy(), bank.double().numpy()
    return np.stack([np.sqrt(((row - b) ** 2).sum(1)) for row in a])


@needs_kernels
@settings(max_examples=200, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    m=st.integers(1, 700),
    channels=st.integers(1, 200),
    seed=st.integers(0, 2**31),
    data=st.data(),
)
def test_what_is_proven_is_true(kind, m, channels, seed, data):
    bank = draw(kind, m, channels, seed)
    queries = torch.cat([bank[: min(m, 20)], draw("random", 5, channels, seed + 1)])
    k = data.draw(st.integers(1, m))
    found = screening.Bank(bank, [0, m]).nearest(queries, k)
    truth = distances64(queries, bank)
    expected = np.sort(truth, 1)[:, :k]
    proven = found.proven.numpy()
    np.testing.assert_allclose(found.distances[proven], expected[proven], rtol=1e-5, atol=1e-5)
    rows = found.rows[proven].numpy()
    assert all(len(set(row)) == k for row in rows.tolist())
    chosen = np.take_along_axis(truth[proven], rows, 1)
    np.testing.assert_allclose(chosen, expected[proven], rtol=1e-5, atol=1e-5)


@needs_kernels
def test_the_bound_holds_where_8_bits_round_most():
    """Values halfway between two steps of 1/127: the farther of two rows seems the nearer."""
    rng = np.random.default_rng(0)
    signs = rng.choice([-1.0, 1.0], (2000, 64))
    halfway = (rng.integers(-126, 126, (2000, 64)) + 0.5 + 1e-3 * signs) / 127
    halfway[:, 0] = 1  # the scale of every row is 1 / 127
    bank, queries = (torch.from_numpy(part.astype(np.float32)) for part in np.split(halfway, 2))
    found = screening.Bank(bank, [0, len(bank)]).nearest(queries, 3)
    expected = np.sort(distances64(queries, bank), 1)[:, :3]
    assert bool(found.proven.all())
    np.testing.assert_allclose(found.distances, expected, rtol=1e-5)


@needs_kernels
def test_equal_distances_come_in_the_order_of_rows():
    bank = torch.zeros(300, 5)
    bank[100:, 0] = 1
    found = screening.Bank(bank, [0, 300]).nearest(torch.zeros(1, 5), 100)
    assert found.rows[0].tolist() == list(range(100))


@needs_kernels
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", WIDTHS)
def test_squares_of_blocks_are_the_squared_distances(kind, channels):
    bank, queries = draw(kind, 400, channels, 5), draw("random", 60, channels, 6)
    offsets = [0, 130, 131, 250, 400]
    squares = screening.Bank(bank, offsets).block_squares(queries, torch.arange(4))
    truth = distances64(queries, bank)
    norms = queries.double().norm(dim=1).numpy()
    for block in range(4):
        part = slice(offsets[block], offsets[block + 1])
        # A value rounded to 127 steps of the largest is off by at most 1 / 254 of it.
        largest = (bank[part].abs().amax() + queries.abs().amax(1)).double().numpy()
        off = channels**0.5 / 254 * largest
        bound = off * (norms + float(bank[part].norm(dim=1).max()) + off)
        found = squares[block].double().numpy()
        assert (np.abs(found - truth[:, part].min(1) ** 2) <= 2 * bound + 2e-4).all()


@needs_kernels
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", WIDTHS)
def test_the_nearest_row_of_chosen_blocks(kind, channels):
    bank, queries = draw(kind, 900, channels, 7), draw("random", 250, channels, 8)
    offsets = [0, 100, 101, 500, 900]
    rng = np.random.default_rng(0)
    which, blocks = rng.integers(0, 250, 600), rng.integers(0, 4, 600)
    found = screening.Bank(bank, offsets).nearest_in_blocks(
        queries, torch.from_numpy(which), torch.from_numpy(blocks)
    )
    assert bool(found.proven.all())
    truth = distances64(queries, bank)
    for p in found.proven.nonzero()[:, 0].tolist():
        start, stop = offsets[blocks[p]], offsets[blocks[p] + 1]
        assert start <= int(found.rows[p]) < stop
        np.testing.assert_allclose(
            float(found.distances[p]), truth[which[p], start:stop].min(), rtol=1e-5, atol=1e-5
        )
    assert float(found.proven.float().mean()) > (0 if kind == "clusters" else 0.9)


@pytest.fixture
def always(monkeypatch):
    """Screen banks of any size; count the queries that went the long way."""
    if not screening.available():
        pytest.skip(REASON)
    monkeypatch.setattr(neighbors, "_SCREENED", 0)
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
    bank = offset + draw(kind, 1500, 80, 3)
    queries = torch.cat([bank[::10], offset + draw("random", 50, 80, 4)])
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
    screened = []
    search = screening.Bank.nearest
    monkeypatch.setattr(
        screening.Bank, "nearest", lambda b, q, k: screened.append(len(q)) or search(b, q, k)
    )
    # Thousands of rows lie nearer to each other than what 8 bits round off.
    bank, queries = 1e-3 * draw("random", 9000, 30, 1), 1e-3 * draw("random", 400, 30, 2)
    bank[:, 0] += 1
    queries[:, 0] += 1
    bank[:4500, 0] -= 2
    distances, _ = nearest(queries, bank, 5)
    assert screened == [neighbors._PROBE]
    assert sum(always) == 400
    expected = np.sort(distances64(queries, bank), 1)[:, :5]
    np.testing.assert_allclose(distances, expected, rtol=1e-3)


@pytest.mark.usefixtures("always")
def test_what_is_not_a_number_goes_the_long_way():
    bank = draw("random", 500, 8, 0)
    queries = bank[:4].clone()
    queries[2, 1] = torch.nan
    distances, _ = nearest(queries, bank, 2)
    assert bool(torch.isnan(distances[2]).all())
    assert bool(torch.isfinite(distances[[0, 1, 3]]).all())


def test_without_the_library_nothing_is_screened(monkeypatch):
    monkeypatch.setattr("patchcluster.kernels.library", lambda: None)
    assert not screening.available()
    bank, queries = draw("random", 4000, 16, 1), draw("random", 400, 16, 2)
    distances, _ = nearest(queries, bank, 3)
    expected = np.sort(distances64(queries, bank), 1)[:, :3]
    np.testing.assert_allclose(distances, expected, rtol=1e-5)


def choose_by_the_rule(squares, k, most, gap):
    """Blocks by squared distance [n], infinite where left out; how many lie before the last gap."""
    ranked = [b for b in np.argsort(squares, kind="stable") if np.isfinite(squares[b])]
    gaps = [
        r
        for r in range(k, min(most, len(ranked) - k) + 1)
        if squares[ranked[r]] > gap**2 * squares[ranked[r - 1]]
    ]
    return ranked, max(gaps, default=0)


@needs_kernels
@settings(max_examples=60, deadline=None)
@given(
    blocks=st.integers(2, 70),
    k=st.integers(1, 3),
    count=st.integers(3, 12),
    gap=st.sampled_from([1.05, 1.5, float("inf")]),
    seed=st.integers(0, 2**31),
)
def test_blocks_are_chosen_by_the_rule(blocks, k, count, gap, seed):
    rng = np.random.default_rng(seed)
    spread = rng.lognormal(0, 1, (blocks, 1, 1)).repeat(20, 1)
    rows = torch.from_numpy((spread * rng.normal(size=(blocks, 20, 9))).astype(np.float32))
    bank = screening.Bank(rows.view(-1, 9), list(range(0, 20 * blocks + 1, 20)))
    queries = torch.from_numpy(rng.normal(size=(100, 9)).astype(np.float32))
    left_out = torch.from_numpy(rng.random((100, blocks)) < 0.3)
    left_out[:, :k] = False
    most = blocks // 8
    count += most
    chosen, squares, before = bank.choose_blocks(queries, left_out, k, count, most, gap)
    squares_ = bank.block_squares(queries, torch.arange(blocks)).T
    expected = squares_.masked_fill(left_out, torch.inf).numpy()
    for i in range(len(queries)):
        ranked, first = choose_by_the_rule(expected[i], k, most, gap)
        right = ranked[:count]
        assert before[i] == first
        assert chosen[i, : len(right)].tolist() == right
        np.testing.assert_allclose(squares[i, : len(right)], expected[i][right], 1e-4, 1e-5)
        assert bool(squares[i, len(right) :].isinf().all())


@pytest.mark.parametrize("kernels", [pytest.param(True, marks=needs_kernels), False])
def test_a_block_that_is_left_out_is_not_found_where_few_are_left(monkeypatch, kernels):
    """Of 24 blocks 14 are left out, the nearest ones; of the other ten, three lie before a gap."""
    if not kernels:
        monkeypatch.setattr("patchcluster.kernels.library", lambda: None)
    rows = torch.tensor([*[0.01] * 14, 1.0, 1.0, 1.0, *range(5, 12)])[:, None]
    bank = BlockBank(rows, list(range(25)), torch.arange(24))
    left_out = (torch.arange(24) < 14)[None]
    distances, found, _ = bank.nearest_blocks(torch.zeros(1, 1), 3, 9, left_out, 1.5)
    assert found.tolist() == [[17, 18, 19]]
    assert distances.tolist() == [[5.0, 6.0, 7.0]]


@pytest.mark.parametrize("kernels", [pytest.param(True, marks=needs_kernels), False])
def test_of_blocks_at_one_distance_the_first_are_chosen_everywhere(monkeypatch, kernels):
    if not kernels:
        monkeypatch.setattr("patchcluster.kernels.library", lambda: None)
    rows = torch.tensor([*[3.0] * 20, *[1.0] * 30, *[2.0] * 14])[:, None]
    bank = BlockBank(rows, list(range(65)), torch.arange(64))
    chosen, _, _ = bank._choose(torch.zeros(5, 1), 3, 35, 0, None, float("inf"))
    assert chosen.tolist() == [[*range(20, 50), *range(50, 55)]] * 5
