"""What is known of a bank's blocks, placed for a bank that has changed: by hand, and both ways."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patchcluster import kernels
from patchcluster.methods.tracing import Alike, BankChange, Known
from patchcluster.neighbors import BlockBank

needs_library = pytest.mark.skipif(kernels.library() is None, reason="it was not compiled")


def known_of(squares, kept, searched, before):
    """What is known of rows with these squared distances float32 [q, b] to all blocks."""
    ranked = squares.sort(dim=1, stable=True)
    blocks, count = ranked.indices[:, :kept], squares.shape[1]
    places = before.long()[:, None] + torch.arange(searched)
    reach = ranked.values[:, kept - 1] if kept < count else torch.full((len(squares),), torch.inf)
    return Known(
        blocks.masked_fill(ranked.values[:, :kept].isinf(), 0).to(torch.uint8),
        ranked.values[:, :kept].contiguous(),
        before.short(),
        (ranked.values.gather(1, places) * 0.9).sqrt(),
        blocks.gather(1, places).to(torch.uint8),  # its number stands for its row
        reach,
    )


class Squares(BlockBank):
    """A bank whose squared distances are given."""

    def __init__(self, squares):
        self.squares, self.offsets = squares, list(range(0, 300 * squares.shape[1] + 1, 300))

    def block_squares(self, queries, blocks=None):  # noqa: ARG002 (as the bank has it)
        return self.squares.T[blocks].clone()


def alike(q, b, of_a_kind=None):
    kinds = torch.zeros(q, dtype=torch.bool) if of_a_kind is None else of_a_kind
    return Alike(torch.zeros(q, b, dtype=torch.bool), torch.empty(0, 2, dtype=torch.int64), kinds)


def test_by_hand():
    """Block 1 of four goes, one that is second nearest comes: of three kept two are searched."""
    old = torch.tensor([[1.0, 2.0, 4.0, 9.0]])
    known = known_of(old, kept=3, searched=2, before=torch.zeros(1))
    columns, new = torch.tensor([0, -1, 2, 3]), torch.tensor([[1.0, 3.0, 4.0, 9.0]])
    change = BankChange(columns, torch.tensor([1]), [Squares(new)])
    placed, good = change.place(0, known, torch.zeros(1, 5), alike(1, 4), 1, math.inf)
    assert good.tolist() == [True]
    assert placed.blocks.tolist() == [[0, 1, 2]]
    assert placed.squares.tolist() == [[1.0, 3.0, 4.0]]
    assert placed.distances[0, 0] == pytest.approx(0.9**0.5)
    assert placed.distances.isnan().tolist() == [[False, True]]
    assert placed.rows[0, 0] == 0
    assert placed.reach.tolist() == [4.0]
    # If nothing comes, it is not certain which is third: one of those that are not known may be.
    gone = BankChange(columns, torch.empty(0, dtype=torch.int64), [Squares(new)])
    assert gone.place(0, known, torch.zeros(1, 5), alike(1, 4), 1, math.inf)[1].tolist() == [False]


def test_what_cannot_be_known_of_a_bank_is_told():
    squares = torch.from_numpy(np.random.default_rng(0).random((7, 9))).float()
    known = known_of(squares, kept=6, searched=3, before=torch.zeros(7))
    assert known.is_sound(7, 9)
    assert not known.is_sound(8, 9)
    assert not known.is_sound(7, 8)  # it names block 8
    for edit in (
        {"squares": known.squares[:, :5]},
        {"rows": known.rows[:, :2]},
        {"reach": known.reach[:6]},
        {"before": known.before.int()},
        {"distances": known.distances.double()},
        {"blocks": known.blocks.long()},
        {"blocks": known.blocks.short() - 1},
    ):
        assert not replace(known, **edit).is_sound(7, 9), edit


@needs_library
@settings(max_examples=80, deadline=None)
@given(
    more=st.integers(8, 12),
    blocks=st.sampled_from([24, 40, 200]),
    gone=st.integers(0, 6),
    gap=st.sampled_from([1.02, 1.35, math.inf]),
    kinds=st.sampled_from([0.0, 0.3]),
    ties=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_the_library_places_as_tensors_do(more, blocks, gone, gap, kinds, ties, seed):
    rng, q, kept = np.random.default_rng(seed), 60, blocks // 8 + more
    old = rng.lognormal(0, 0.5, (q, blocks))
    old = np.round(old, 1) if ties else old
    old[rng.random(old.shape) < 0.05] = np.inf  # left out
    old[:, :kept] = np.where(np.isinf(old[:, :kept]), 9.0, old[:, :kept])
    new, columns = old.copy(), np.arange(blocks)
    places = rng.permutation(blocks)[:gone]
    columns[places] = -1
    new[:, places] = rng.lognormal(0, 0.5, (q, gone))
    before = torch.from_numpy(rng.integers(0, kept - 6, q))
    known = known_of(torch.from_numpy(old).float(), kept, 6, before)
    of_a_kind = torch.from_numpy(rng.random(q) < kinds)
    bank = Squares(torch.from_numpy(new).float())
    change = BankChange(torch.from_numpy(columns), torch.from_numpy(np.sort(places)), [bank])
    asked = (0, known, torch.zeros(q, 5), alike(q, blocks, of_a_kind), 2, gap)
    fast, good = change.place(*asked)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("patchcluster.kernels.library", lambda: None)
        plain, enough = change.place(*asked)
    # Which steps are too near a gap to tell is rounded otherwise: 1 of 300,000 rows.
    assert int((good != enough).sum()) <= 1
    good &= enough
    for mine, theirs in zip(fast.values, plain.values, strict=True):
        np.testing.assert_array_equal(mine[good].numpy(), theirs[good].numpy())


@needs_library
@settings(max_examples=60, deadline=None)
@given(
    searched=st.integers(3, 24),
    blocks=st.sampled_from([8, 40, 200]),
    gap=st.sampled_from([1.05, 1.35, math.inf]),
    seed=st.integers(0, 2**31),
)
def test_the_library_ranks_as_tensors_do(searched, blocks, gap, seed):
    rng, q = np.random.default_rng(seed), 50
    distances = torch.from_numpy(rng.lognormal(0, 0.5, (q, searched)).round(1)).float()
    distances[torch.from_numpy(rng.random((q, searched)) < 0.2)] = torch.inf
    rows = torch.from_numpy(rng.integers(0, 1000, (q, searched)))
    of_a_kind = torch.from_numpy(rng.random(q) < 0.3)
    bank = Squares(torch.zeros(1, blocks))
    asked = (distances, rows, 3, gap, of_a_kind)
    fast = bank.rank(*asked)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("patchcluster.kernels.library", lambda: None)
        plain = bank.rank(*asked)
    assert torch.equal(fast[0], plain[0])
    assert torch.equal(fast[1], plain[1])
