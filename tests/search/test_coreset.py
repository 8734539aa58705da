from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patchcluster.errors import SettingError
from patchcluster.search.coreset import cover_in_order, greedy_coreset


def serial_coreset(features: np.ndarray, size: int, start: int) -> list[int]:
    """The algorithm as it is written down, one row at a time, in float64."""
    rows = features.astype(np.float64)
    chosen = [start]
    gaps = np.linalg.norm(rows - rows[start], axis=1)
    while len(chosen) < size:
        chosen.append(int(gaps.argmax()))
        gaps = np.minimum(gaps, np.linalg.norm(rows - rows[chosen[-1]], axis=1))
    return chosen


def radius(features: np.ndarray, chosen: list[int]) -> float:
    rows = features.astype(np.float64)
    return np.linalg.norm(rows[:, None] - rows[chosen][None], axis=2).min(1).max()


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 120),
    channels=st.integers(1, 8),
    seed=st.integers(0, 2**31),
    data=st.data(),
)
def test_same_choice_as_the_serial_algorithm(count, channels, seed, data):
    size = data.draw(st.integers(1, count))
    start = data.draw(st.integers(0, count - 1))
    features = np.random.default_rng(seed).normal(size=(count, channels))
    chosen = greedy_coreset(features, size, start).tolist()
    assert chosen == serial_coreset(features, size, start)


def test_duplicates_are_chosen_only_when_nothing_else_is_left():
    features = np.repeat(np.random.default_rng(0).normal(size=(10, 4)), 5, axis=0)
    chosen = greedy_coreset(features, 10).tolist()
    assert len({i // 5 for i in chosen}) == 10
    everything = greedy_coreset(features, 50).tolist()
    assert sorted(everything) == list(range(50))


def test_of_many_rows_the_choice_and_in_float32_the_radius_are_those_of_the_serial_algorithm():
    features = np.random.default_rng(3).normal(size=(2000, 32))
    serial = serial_coreset(features, 200, 0)
    assert greedy_coreset(features, 200).tolist() == serial
    chosen = greedy_coreset(features.astype(np.float32), 200).tolist()
    assert len(set(chosen)) == 200
    assert radius(features, chosen) == pytest.approx(radius(features, serial), rel=1e-5)


def test_tensor_in_tensor_out_and_progress_reaches_the_end():
    calls = []
    chosen = greedy_coreset(torch.randn(50, 3), 20, progress=lambda *call: calls.append(call))
    assert isinstance(chosen, torch.Tensor)
    assert calls[-1] == (20, 20)


@pytest.mark.parametrize(("size", "start"), [(0, 0), (6, 0), (2, 5), (2, -1)])
def test_impossible_requests_are_errors(size, start):
    with pytest.raises(SettingError, match="size 1 to m"):
        greedy_coreset(np.zeros((5, 2)), size, start)


# --- rows in order that cover all ---------------------------------------------------------------


def cover64(rows: np.ndarray, order: Sequence[int], size: int) -> list[int]:
    """`coreset.cover_in_order` of rows [n, c] in an order: the widest net of at most so many."""
    net = list(order[:1])
    for step in range(80, -80, -1):
        finer: list[int] = []
        for row in order:
            if all(np.linalg.norm(rows[row] - rows[other]) > 2 ** (step / 4) for other in finer):
                finer.append(row)
        if len(finer) > size:
            break
        net = finer
    rest = [row for row in order if row not in net]
    return sorted([*net, *rest[: size - len(net)]])


@given(st.integers(1, 60), st.integers(1, 4), st.integers(0, 99), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_rows_that_cover_are_those_of_the_definition(count, channels, seed, share):
    rows = np.random.default_rng(seed).normal(size=(count, channels)).astype(np.float32)
    rows[count // 2 :: 3] = rows[0]
    size = max(1, round(share * count))
    chosen = cover_in_order(torch.from_numpy(rows), size)
    assert chosen.tolist() == cover64(rows.astype(np.float64), range(count), size)


def test_rows_that_differ_by_less_than_products_tell_apart_are_covered():
    """Products find copies of a chosen row as far as rows that differ from it a little."""
    rows = np.repeat(np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32) * 100, 3, 0)
    rows[::3, 0] += np.float32(1e-5)
    for size in range(20, 70):
        assert len(set(cover_in_order(torch.from_numpy(rows), size).tolist())) == size


def test_rows_that_cover_have_some_of_every_kind_and_change_little():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(1000, 20)).astype(np.float32)
    rows[[300, 999]] += 40
    chosen = set(cover_in_order(torch.from_numpy(rows), 100).tolist())
    assert chosen & {300, 999}
    fewer = np.delete(np.arange(1000), rng.choice(900, 10, replace=False))
    again = set(fewer[cover_in_order(torch.from_numpy(rows[fewer]), 100)].tolist())
    assert len(chosen - again) <= 15


def test_rows_that_cover_are_refused_by_number():
    with pytest.raises(SettingError, match="size 1 to m"):
        cover_in_order(torch.zeros(3, 2), 4)
