import json
import math
from importlib import resources

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchcluster.scores.probability import (
    FEATURES,
    SetScores,
    describe_ordinary,
    describe_scores,
    find_probabilities,
    score_of,
)

SET = SetScores(images=150, median=2.0, deviation=0.3, contrast=0.7)
scores_of_sets = st.lists(st.floats(0, 1e3), min_size=5, max_size=60)


def test_hand_derived_description_leaves_out_what_lies_far_above():
    # All: median 3.5, deviations 2.5 1.5 .5 .5 1.5 96.5, median 1.5 -> 100 lies beyond 3 x 2.22.
    # Without it: median 3, deviations 2 1 0 1 2, median 1.
    centre, deviation = describe_ordinary(np.array([1.0, 2, 3, 4, 5, 100]))
    assert centre == 3
    assert deviation == pytest.approx(1.4826)


def test_a_probability_is_the_logistic_function_of_the_weighted_features():
    given = json.loads(
        resources.files("patchcluster.scores").joinpath("probability.json").read_text()
    )
    height = math.log1p((2.9 - 2.0) / 0.3)
    values = [height, math.log(150), math.log(0.3 / 2.0), 0.7]
    logit = given["intercept"]
    for name, value in zip(FEATURES, values, strict=True):
        of_name = given["features"][name]
        logit += of_name["weight"] * min(max(value, of_name["least"]), of_name["most"])
    (found,) = find_probabilities(np.array([2.9]), SET)
    assert found == pytest.approx(1 / (1 + math.exp(-logit)))


def test_the_model_says_which_sets_it_was_fitted_to_and_grows_with_the_height():
    given = json.loads(
        resources.files("patchcluster.scores").joinpath("probability.json").read_text()
    )
    assert len(given["sets"]) >= 5
    assert given["features"]["height"]["weight"] > 0


@given(st.lists(st.floats(0, 1e4), min_size=2, max_size=30), st.integers(5, 10_000))
def test_a_higher_score_is_never_less_probable(scores, images):
    of_set = SetScores(images, 2.0, 0.3, 0.7)
    found = find_probabilities(np.sort(scores), of_set)
    assert (np.diff(found) >= 0).all()
    assert ((found > 0) & (found < 1)).all()


@given(st.floats(0.05, 0.95))
def test_score_of_is_the_inverse(probability):
    lowest, highest = find_probabilities(np.array([0.0, 1e9]), SET)
    value = score_of(probability, SET)
    (found,) = find_probabilities(np.array([value]), SET)
    assert found == pytest.approx(np.clip(probability, lowest, highest), abs=1e-9)


@given(scores_of_sets, st.floats(1e-3, 1e3))
def test_the_scale_of_the_scores_does_not_matter(scores, scale):
    values = np.round(np.array(scores), 3) + 0.1
    contrasts = [0.6] * len(values)
    before = find_probabilities(values, describe_scores(values, contrasts))
    after = find_probabilities(values * scale, describe_scores(values * scale, contrasts))
    assert after == pytest.approx(before, abs=1e-6)


def test_equal_scores_are_equally_probable_and_improbable():
    scores = np.full(40, 1.7)
    found = find_probabilities(scores, describe_scores(scores, [0.6] * 40))
    assert len(set(found.tolist())) == 1
    assert found[0] < 0.1


def test_fewer_than_five_images_are_not_described():
    assert describe_scores(np.array([1.0, 1.1, 1.2, 9.0]), [0.6] * 4) is None
    assert describe_scores(np.array([1.0, 1.1, 1.2, 1.3, 9.0]), [0.6] * 5) is not None
