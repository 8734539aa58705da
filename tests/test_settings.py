import dataclasses

import pytest

from patchcluster.errors import SettingError
from patchcluster.methods import METHODS
from patchcluster.settings import PRESETS, Settings, resolve


def test_nothing_given_is_the_default_preset():
    assert resolve() == Settings()
    assert resolve(preset=None, k=None) == Settings()


def test_preset_then_what_was_given():
    fast = resolve(preset="fast")
    assert {name: getattr(fast, name) for name in PRESETS["fast"]} == PRESETS["fast"]
    assert fast != resolve()
    given = resolve(preset="fast", size=(96,), k=7)
    assert given == dataclasses.replace(fast, size=(96,), k=7)


def test_a_method_brings_its_own_settings_and_not_the_presets_of_another():
    paper = resolve(method="patchcluster")
    assert (paper.size, paper.frame, paper.image_score) == ((224,), 224, "reweighted")
    assert resolve(method="patchcluster", preset="fast") == resolve(
        method="patchcluster", preset="fast", size=(224,)
    )
    assert resolve(preset="paper").backbone == "wide_resnet50_2.tv_in1k"


def test_every_method_and_every_preset_resolves():
    for name, method in METHODS.items():
        settings, own = resolve(method=name), method.facts.settings
        assert {key: getattr(settings, key) for key in own} == own
    for preset in PRESETS:
        assert resolve(preset=preset).method in METHODS


def test_what_is_given_reaches_the_method():
    method = resolve(k=5, saturation=3.0, local_weight=0.1).make_method([2, 3], [8, 16])
    assert (method.k, method.saturation, method.local_weight) == (5, 3.0, 0.1)
    assert (list(method.stages), list(method.stage_strides)) == ([2, 3], [8, 16])
    assert resolve(method="padim", seed=3).make_method([2, 3], [8, 16]).seed == 3
    paper = resolve(method="patchcluster", k=5).make_method([2, 3], [8, 16])
    assert (paper.k, paper.ratio) == (5, METHODS["patchcluster"]().ratio)
    paper = resolve(method="patchcluster", ratio=0.7).make_method([2, 3], [8, 16])
    assert paper.ratio == 0.7


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"preset": "nope"}, "default, fast, best, paper"),
        ({"saturation": 0.0}, "saturation 0.0: choose more than 0"),
        ({"stage_weights": (1.0, 0.0)}, "choose 1 to 3 weights of more than 0"),
        ({"method": "nope"}, "patchcluster-plus, patchcluster"),
        ({"colour": "red"}, "no setting named 'colour'"),
        ({"size": (16,)}, "32 to 4096"),
        ({"size": ()}, "32 to 4096"),
        ({"ratio": 0.0}, "ratio"),
        ({"ratio": 2.0}, "ratio"),
        ({"ratio": 0.5}, "patchcluster-plus has no setting ratio"),
        ({"k": 0}, "at least 1"),
        ({"seed": -1}, "seed"),
        ({"seed": 7}, "nothing is random in patchcluster-plus: leave seed out"),
        ({"image_score": "nope"}, "choose from baseline-corrected, top1%, max"),
        ({"method": "patchcluster", "local_weight": 0.5}, "has no setting local_weight"),
        ({"image_score": "reweighted"}, "no image score 'reweighted'"),
        (
            {"method": "patchcluster", "image_score": "reweighted", "size": (96, 128)},
            "needs one size",
        ),
    ],
)
def test_settings_that_cannot_work_are_errors_that_name_the_choice(given, words):
    with pytest.raises(SettingError, match=words):
        resolve(**given)
