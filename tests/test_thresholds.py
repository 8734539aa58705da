import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchcluster.thresholds import robust_threshold


def test_hand_derived_threshold():
    # median 3; deviations 2, 1, 0, 1, 97: their median is 1
    threshold = robust_threshold(np.array([1.0, 2, 3, 4, 100]))
    assert threshold.value == pytest.approx(3 + 3.5 * 1.4826)
    assert "3.5" in threshold.meaning


def test_few_of_many_normally_distributed_scores_are_flagged():
    scores = np.random.default_rng(0).normal(10, 2, 10_000)
    assert (scores > robust_threshold(scores).value).mean() < 0.001


def test_equal_scores_flag_nothing():
    scores = np.full(20, 1.5)
    assert not (scores > robust_threshold(scores).value).any()


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.floats(1e-3, 1e3))
def test_threshold_goes_with_the_scale_of_the_scores(scores, scale):
    values = np.array(scores)
    expected = robust_threshold(values).value * scale
    assert robust_threshold(values * scale).value == pytest.approx(expected, rel=1e-9, abs=1e-9)
