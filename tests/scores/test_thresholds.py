import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchcluster.errors import SettingError
from patchcluster.scores.thresholds import choose_threshold, describe_ordinary


def ordinary(seed, count=200):
    """Scores with the skewed upper tail that the mean of a map's highest places has."""
    return 1 + np.random.default_rng(seed).gumbel(0, 0.1, count)


def test_hand_derived_description_leaves_out_what_lies_far_above():
    # All: median 3.5, deviations 2.5 1.5 .5 .5 1.5 96.5, median 1.5 -> 100 lies beyond 3 x 2.22.
    # Without it: median 3, deviations 2 1 0 1 2, median 1.
    centre, deviation = describe_ordinary(np.array([1.0, 2, 3, 4, 5, 100]))
    assert centre == 3
    assert deviation == pytest.approx(1.4826)


def test_hand_derived_threshold():
    # Heights above 3 in deviations of 1.4826: 0.67, 1.35 and 65. Beyond 65 deviations 1e-23 of 6
    # scores are expected to be ordinary; beyond 1.35 it is 6 exp(-1.35 / 1.2) / 2 = 0.97 > 0.2 x 2.
    threshold = choose_threshold(np.array([1.0, 2, 3, 4, 5, 100]))
    assert threshold.value == pytest.approx((5 + 100) / 2)
    assert "1 in 5" in threshold.meaning


def test_about_none_of_ordinary_scores_are_flagged_and_it_says_so():
    flagged, none = [], 0
    for seed in range(50):
        scores = ordinary(seed)
        threshold = choose_threshold(scores)
        flagged.append((scores > threshold.value).mean())
        none += "no image stands out" in threshold.meaning
    assert np.mean(flagged) <= 0.01
    assert none >= 25


@pytest.mark.parametrize("share", [0.02, 0.05, 0.1, 0.25])
def test_scores_that_keep_apart_are_flagged(share):
    for seed in range(10):
        scores = ordinary(seed)
        count = round(share * len(scores))
        scores[:count] += 1.5
        flagged = scores > choose_threshold(scores).value
        assert flagged[:count].all()
        assert flagged[count:].sum() <= max(1, 0.25 * count)


def test_most_images_may_be_anomalous_if_they_keep_apart():
    random = np.random.default_rng(0)
    scores = np.concatenate([random.normal(1, 0.05, 20), random.normal(2, 0.15, 60)])
    threshold = choose_threshold(scores)
    assert (scores > threshold.value).tolist() == [False] * 20 + [True] * 60
    assert "most images" in threshold.meaning


def test_scores_that_overlap_support_no_flag():
    random = np.random.default_rng(0)
    scores = np.concatenate([random.normal(1, 0.2, 60), random.normal(1.2, 0.2, 60)])
    threshold = choose_threshold(scores)
    assert not (scores > threshold.value).any()
    assert "no image stands out" in threshold.meaning


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.floats(1e-3, 1e3))
def test_what_is_flagged_does_not_depend_on_the_scale_of_the_scores(scores, scale):
    values = np.round(np.array(scores), 3)
    expected = values > choose_threshold(values).value
    # A rounding may move a score across a limit: only the count of flags is compared, within one.
    found = values * scale > choose_threshold(values * scale).value
    assert abs(int(found.sum()) - int(expected.sum())) <= 1


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=50, unique=True), st.data())
def test_a_number_of_images_is_flagged_as_asked(scores, data):
    values = np.array(scores)
    count = data.draw(st.integers(0, len(scores)))
    flagged = values > choose_threshold(values, flag_top=count).value
    assert flagged.sum() == count
    assert set(values[flagged]) == set(np.sort(values)[::-1][:count])


def test_a_share_of_images_is_flagged_as_asked():
    scores = np.arange(40.0)
    assert (scores > choose_threshold(scores, expect=0.05).value).sum() == 2
    assert (scores > choose_threshold(scores, expect=0).value).sum() == 0
    assert (scores > choose_threshold(scores, expect=1).value).sum() == 40


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"expect": 0.1, "flag_top": 3}, "one of the two"),
        ({"expect": 5}, "5% or 0.05"),
        ({"flag_top": -1}, "0 or more"),
    ],
)
def test_what_cannot_be_is_refused(how, message):
    with pytest.raises(SettingError, match=message):
        choose_threshold(np.arange(4.0), **how)


def test_scores_that_differ_by_the_last_bit_are_told_apart():
    scores = np.array([1.0, np.nextafter(1.0, 2), 0.5])
    threshold = choose_threshold(scores, flag_top=1).value
    assert list(scores > threshold) == [False, True, False]
    scores = np.array([np.nextafter(1.0, 0), 1.0])
    assert list(scores > choose_threshold(scores, flag_top=1).value) == [False, True]


@pytest.mark.parametrize("count", [5, 6, 8])
def test_one_low_score_of_a_few_is_no_group_of_ordinary_ones(count):
    """It has no deviation, and what stands out above all others would not be flagged."""
    ordinary = np.linspace(0.79, 0.89, count - 2)
    scores = np.array([1.9154, *ordinary, 0.5905])
    threshold = choose_threshold(scores)
    assert list(np.flatnonzero(scores > threshold.value)) == [0]
