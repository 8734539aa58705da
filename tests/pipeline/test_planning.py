"""What a scan is predicted to need, with its own settings and with others."""

import dataclasses
import re

import numpy as np
import pytest

from conftest import left_half, save_image, write_set
from patchcluster.errors import SettingError
from patchcluster.network.backbones import random_backbone
from patchcluster.pipeline.costs import GIB, MIB, Planner, parse_bytes
from patchcluster.pipeline.survey import survey_files
from patchcluster.settings import PRESETS, resolve


@pytest.fixture(scope="module")
def backbone():
    """The default network without its weights: for plans, never for scores."""
    return random_backbone("tf_efficientnet_lite0", strides=(8, 16, 32))


def make_planner(paths, backbone, mask=None, **given):
    """What a scan of some files with the settings given would plan from."""
    settings = resolve(roi=mask, **given)
    channels, strides = backbone.stages(settings.strides)
    survey = survey_files(list(map(str, paths)), settings, strides, 1, lambda *_: None)
    assert not survey.skipped
    return Planner(survey.candidates, settings, channels, strides, 2, True, GIB)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("set"), 6, size=700)


@pytest.mark.parametrize(
    "other", [{"size": (64,)}, {"size": (320, 448)}, {"tile": True, "size": (128,)}]
)
def test_a_plan_for_other_settings_is_that_of_a_survey_for_them(paths, tmp_path, backbone, other):
    mask = save_image(tmp_path / "mask.png", left_half(700, 700))
    for region in (None, mask):
        there = make_planner(paths, backbone, region)
        planned = there.plan(dataclasses.replace(there.settings, **other))
        again = make_planner(paths, backbone, region, **other)
        surveyed = again.plan(again.settings)
        assert planned.patches == pytest.approx(surveyed.patches, rel=0.1 if region else 0)
        same = {name: getattr(surveyed, name) for name in ("patches", "extra", "searches")}
        assert dataclasses.replace(planned, **same) == surveyed


def test_stages_without_a_weight_are_not_planned(paths, backbone):
    there = make_planner(paths, backbone)
    assert there.plan(there.settings).channels == 40 + 112 + 80
    fewer = make_planner(paths, backbone, **PRESETS["fast"])
    work = fewer.plan(fewer.settings)
    assert work.channels == 40 + 112
    assert work.patches == [6 * 20 * 20]


def refusal(there, limit):
    with pytest.raises(SettingError) as error:
        there.check(limit)
    return str(error.value)


def test_what_does_not_fit_says_what_does_by_the_same_prediction(paths, backbone):
    there = make_planner(paths, backbone)
    needed = there.check(None)
    assert there.check(needed) == needed
    assert "choose --size 384 (about" in refusal(there, needed - 1)
    limit = there.predict_memory(dataclasses.replace(there.settings, size=(192,)))
    assert "choose --size 192 (about" in refusal(there, limit)
    assert "choose --size 128 (about" in refusal(there, limit - 1)


def test_tiles_are_the_first_to_go(tmp_path, backbone):
    path = save_image(tmp_path / "large.jpg", np.zeros((2000, 3000, 3), np.uint8))
    there = make_planner([path, path], backbone, tile=True)
    without = there.predict_memory(dataclasses.replace(there.settings, tile=False))
    assert "choose --size 448 without --tile (about" in refusal(there, without)
    assert "choose --size 384 without --tile (about" in refusal(there, without - 1)


def test_where_nothing_fits_it_says_what_the_least_needs(paths, backbone):
    there = make_planner(paths, backbone)
    said = refusal(there, 10 * MIB)
    amount, words = re.search(
        r"choose at least ([\d.]+ GB) for (.+), or more memory", said
    ).groups()
    assert words == "--size 64"
    least = there.predict_memory(dataclasses.replace(there.settings, size=(64,)))
    assert parse_bytes(amount) == pytest.approx(least, rel=0.05)


@pytest.mark.slow
def test_of_very_many_images_a_bank_of_some_is_what_fits(paths, backbone):
    """By the prediction; docs/scale.md has how it compares with what scans took."""
    one = make_planner(paths, backbone).candidates[0]
    there = dataclasses.replace(make_planner(paths, backbone), candidates=[one] * 100_000)
    assert there.plan(there.settings).patches == [100_000 * 28 * 28]
    assert there.plan(there.settings).bank == 256
    assert there.check(8 * GIB) < 6 * GIB
    larger = dataclasses.replace(
        there, settings=dataclasses.replace(there.settings, bank_images=20_000)
    )
    assert "choose --size 448 without --bank-images (about" in refusal(larger, 8 * GIB)
    needs = [
        there.predict_memory(dataclasses.replace(there.settings, bank_images=bank))
        for bank in (1000, 2000, 4000)
    ]
    assert needs[2] - needs[1] == pytest.approx(2 * (needs[1] - needs[0]), rel=0.01)
