import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchcluster.errors import SettingError
from patchcluster.scores.probability import describe_scores, find_probabilities
from patchcluster.scores.thresholds import Flagging, choose_threshold

CONTRAST = 0.8  # of a map, as many sets have it


def ordinary(seed, count=200):
    """Scores with the skewed upper tail that the mean of a map's highest places has."""
    return 1 + np.random.default_rng(seed).gumbel(0, 0.1, count)


def choose(scores, **how):
    of_set = describe_scores(scores, [CONTRAST] * len(scores))
    return choose_threshold(scores, Flagging(**how), of_set)


def test_images_are_flagged_that_are_more_probably_anomalous_than_not():
    scores = np.concatenate([ordinary(0), np.linspace(1.2, 2.5, 20)])
    threshold = choose(scores)
    of_set = describe_scores(scores, [CONTRAST] * len(scores))
    expected = find_probabilities(scores, of_set) > 0.5
    assert 0 < expected.sum() < 20
    assert (scores > threshold.value).tolist() == expected.tolist()
    assert "0.5" in threshold.meaning


def test_about_none_of_ordinary_scores_are_flagged_and_it_says_so():
    flagged, none = [], 0
    for seed in range(50):
        scores = ordinary(seed)
        threshold = choose(scores)
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
        flagged = scores > choose(scores).value
        assert flagged[:count].all()
        assert flagged[count:].sum() <= max(3, 0.25 * count)


def test_most_images_may_be_anomalous_if_they_keep_apart():
    random = np.random.default_rng(0)
    scores = np.concatenate([random.normal(1, 0.05, 20), random.normal(3, 0.15, 60)])
    threshold = choose(scores)
    assert (scores > threshold.value).tolist() == [False] * 20 + [True] * 60
    assert "most images" in threshold.meaning


def test_of_a_few_images_none_is_flagged_and_it_says_so():
    scores = np.array([1.0, 1.1, 1.2, 9.0])
    threshold = choose(scores)
    assert not (scores > threshold.value).any()
    assert "so few images" in threshold.meaning


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=50, unique=True), st.data())
def test_a_number_of_images_is_flagged_as_asked(scores, data):
    values = np.array(scores)
    count = data.draw(st.integers(0, len(scores)))
    flagged = values > choose(values, flag_top=count).value
    assert flagged.sum() == count
    assert set(values[flagged]) == set(np.sort(values)[::-1][:count])


def test_a_share_of_images_is_flagged_as_asked():
    scores = np.arange(40.0)
    assert (scores > choose(scores, expect=0.05).value).sum() == 2
    assert (scores > choose(scores, expect=0).value).sum() == 0
    assert (scores > choose(scores, expect=1).value).sum() == 40


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
        Flagging(**how)


def test_scores_that_differ_by_the_last_bit_are_told_apart():
    scores = np.array([1.0, np.nextafter(1.0, 2), 0.5])
    threshold = choose(scores, flag_top=1).value
    assert list(scores > threshold) == [False, True, False]
    scores = np.array([np.nextafter(1.0, 0), 1.0])
    assert list(scores > choose(scores, flag_top=1).value) == [False, True]


@pytest.mark.parametrize("count", [5, 6, 8])
def test_one_low_score_of_a_few_is_no_group_of_ordinary_ones(count):
    """It has no deviation, and what stands out above all others would not be flagged."""
    ordinary = np.linspace(0.79, 0.89, count - 2)
    scores = np.array([1.9154, *ordinary, 0.5905])
    threshold = choose(scores)
    assert list(np.flatnonzero(scores > threshold.value)) == [0]
