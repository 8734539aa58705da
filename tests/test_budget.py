"""A time budget: what it chooses, by rates that are given, so that no test depends on the clock."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest

import patchcluster
from conftest import make_planner, write_set
from patchcluster import runfolder, scanning
from patchcluster.budget import Chooser, changes, cheaper, describe
from patchcluster.errors import RunError, SettingError
from patchcluster.settings import Settings
from patchcluster.times import Rates, parse_seconds

RATES = Rates(
    load=1e-8, network=1e-7, first=1e-11, full=1e-11, prepare=1e-8, smooth=1e-4, regions=1e-9
)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("budget") / "images"
    write_set(folder, 40)
    return folder


@pytest.fixture(scope="module")
def planner(images, backbone):
    return make_planner(sorted(images.iterdir()) * 3, backbone)


def total(chooser, settings):
    return sum(chooser.predict(settings).values())


def test_what_is_given_up_goes_from_the_least_loss_to_the_greatest(planner):
    ladder = list(cheaper(planner.settings, planner, ()))
    assert ladder[0] == Settings()
    assert (ladder[1].ratio, ladder[1].bank_images) == (0.2, None)
    sizes = [one.size for one in ladder]
    turn = sizes.index((320,))
    assert sizes == [(448,)] * turn + [(320,)] * (len(ladder) - turn)
    banks = [one.bank_images for one in ladder[2:turn]]
    assert banks == sorted(banks, reverse=True)
    assert min(banks) >= 90
    assert ladder[turn] == dataclasses.replace(Settings(), size=(320,))
    assert 24 <= ladder[-1].bank_images < 30
    assert [one.ratio for one in ladder[-2:]] == [0.2, 0.1]
    chooser = Chooser(planner, RATES)
    for part in (ladder[:turn], ladder[turn:]):
        spent = [total(chooser, one) for one in part]
        assert spent == sorted(spent, reverse=True)


def test_the_first_that_fits_is_chosen(planner):
    chooser = Chooser(planner, RATES)
    ladder = list(cheaper(planner.settings, planner, ()))
    assert chooser.choose(planner.settings, 1e9, 1e9) == planner.settings
    for wanted in (ladder[2], ladder[4], ladder[-1]):
        enough = total(chooser, wanted) / 0.9 * 1.0001
        chosen = chooser.choose(planner.settings, enough, enough)
        assert total(chooser, chosen) <= 0.9 * enough
        assert ladder.index(chosen) <= ladder.index(wanted)
        assert all(total(chooser, one) > 0.9 * enough for one in ladder[: ladder.index(chosen)])


def test_a_budget_that_nothing_fits_says_what_would(planner):
    chooser = Chooser(planner, RATES)
    with pytest.raises(
        SettingError, match=r"over --time-budget 5 s, even with --size 320 --ratio 0\.1"
    ):
        chooser.choose(planner.settings, 0.01, 5)
    with pytest.raises(SettingError) as error:
        chooser.choose(planner.settings, 0.01, 5)
    enough = parse_seconds(re.search(r"choose (\d+s)", str(error.value))[1])
    assert chooser.choose(planner.settings, enough - 4.99, enough).size == (320,)
    assert "\n" not in str(error.value)


def test_what_a_user_gave_stays(planner):
    for fixed, names in (
        ({"ratio"}, {"bank_images", "size"}),
        ({"size"}, {"ratio", "bank_images"}),
        ({"size", "ratio", "bank_images"}, set()),
    ):
        ladder = cheaper(planner.settings, planner, fixed)
        changed = set().union(*(changes(planner.settings, one) for one in ladder))
        assert changed == names
    tiled = dataclasses.replace(planner.settings, tile=True)
    assert all(one.tile and one.size == (448,) for one in cheaper(tiled, planner, ()))


def test_after_the_features_only_the_search_is_made_smaller(planner):
    chooser = Chooser(planner, RATES)
    assert chooser.shrink(planner.settings, 1e9) == planner.settings
    least = chooser.shrink(planner.settings, 0)
    assert (least.size, least.ratio) == ((448,), 0.1)
    assert 24 <= least.bank_images < 30
    seconds = chooser.predict(least)
    between = chooser.shrink(planner.settings, 2 * (sum(seconds.values()) - seconds["features"]))
    assert between.bank_images is None or between.bank_images > least.bank_images


def test_choices_are_described_as_a_user_gives_them():
    chosen = dataclasses.replace(Settings(), ratio=0.1, bank_images=80)
    assert describe(chosen) == "--size 448 --ratio 0.1 --bank-images 80"


# --- in a scan ----------------------------------------------------------------------------------

# The features take far longer than these say, so that what is left for the search looks too little.
HASTY = Rates(
    load=1e-15, network=1e-15, first=1e-9, full=1e-9, prepare=1e-9, smooth=1e-9, regions=0
)
# Of an hour, so that a slow start of the test changes nothing; nor do the features take longer.
STEADY = dataclasses.replace(RATES, load=5e-4, first=1e-4)


def scan(images, out, monkeypatch, rates, **given):
    monkeypatch.setattr(scanning.Scan, "_measure", lambda *_: rates)
    told = []
    run = patchcluster.scan(images, out, size=(64,), tell=told.append, **given)
    return run, told


@pytest.fixture(scope="module")
def chosen(images, tmp_path_factory):
    """A scan whose budget leaves a bank of fewer images, and what it said."""
    out = tmp_path_factory.mktemp("chosen") / "run"
    with pytest.MonkeyPatch.context() as patch:
        whole, _ = scan(images, None, patch, STEADY)
        seconds = whole.info.predicted_seconds  # whatever the number of threads:
        budget = (sum(seconds.values()) - 0.5 * seconds["compare"]) / 0.9
        return *scan(images, out, patch, STEADY, time_budget=budget), budget


def test_a_scan_states_what_its_budget_chose(chosen):
    run, told, budget = chosen
    value = json.loads((run.folder / "run.json").read_text())
    assert value["time_budget"] == budget
    assert value["settings"]["ratio"] == 0.2
    bank = value["settings"]["bank_images"]
    assert bank < 40
    assert value["instead_of"] == {"ratio": None, "bank_images": None}
    words = f"bank images {bank} instead of the default"
    assert words in (run.folder / "report.html").read_text()
    assert any(words in line for line in told)
    rows = run.neighbours("part3.png", 50, 50)
    assert rows
    found, _ = patchcluster.storage.read_tensors(run.folder / "bank.safetensors")
    assert len(found["64.chosen"]) == bank


def test_a_scan_states_what_is_predicted(chosen):
    run, told, _ = chosen
    assert {"start", "features", "compare", "maps", "report"} == set(run.info.predicted_seconds)
    bank = run.info.settings["bank_images"]
    assert told[0].startswith(f"40 images, 640 patches, each compared with {bank} images: about ")


def test_the_same_budget_finds_the_finished_scan_and_another_does_not(chosen, images, monkeypatch):
    run, _, budget = chosen
    before = (run.folder / "run.json").read_bytes()
    scan(images, run.folder, monkeypatch, HASTY, time_budget=budget)
    assert (run.folder / "run.json").read_bytes() == before
    with pytest.raises(RunError, match="other inputs or settings"):
        scan(images, run.folder, monkeypatch, STEADY, time_budget=2 * budget)
    with pytest.raises(RunError, match="other inputs or settings"):
        scan(images, run.folder, monkeypatch, STEADY)


def test_labels_are_learnt_from_with_the_bank_that_was_chosen(chosen, tmp_path):
    run, _, _ = chosen
    shutil.copytree(run.folder, tmp_path / "run")
    again = scanning.rescore(tmp_path / "run", {run.paths[0]: "normal"})
    assert again.info.settings == run.info.settings
    np.testing.assert_allclose(again.scores[1:].mean(), run.scores[1:].mean(), rtol=0.2)


@pytest.mark.parametrize("step", ["features", "compare"])
def test_killed_and_started_again_the_choice_is_as_it_was(
    chosen, images, tmp_path, monkeypatch, step
):
    run, _, budget = chosen

    def stop(name, done, _):
        if name == step and done:
            raise KeyboardInterrupt

    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        scan(images, out, monkeypatch, STEADY, time_budget=budget, progress=stop)
    begun, _, _ = runfolder.read_info(out)
    again, told = scan(images, out, monkeypatch, HASTY, time_budget=budget)
    assert again.info.settings == begun.settings == run.info.settings
    assert any(line.startswith("as chosen when this scan was begun, for the") for line in told)
    assert (out / "scores.csv").read_bytes() == (run.folder / "scores.csv").read_bytes()


def test_features_that_take_longer_leave_a_smaller_bank(images, tmp_path, monkeypatch):
    run, told = scan(images, tmp_path / "run", monkeypatch, HASTY, time_budget=500)
    assert run.info.settings["bank_images"] == 25
    assert told[-1].startswith("slower than predicted; now for the time budget of 500 s: ratio 0.1")


def test_the_machine_is_measured_for_no_longer_than_the_budget_allows(
    images, tmp_path, monkeypatch
):
    asked = []

    def measure_repeatedly(_, predict):
        asked.append(predict(STEADY))
        return STEADY

    monkeypatch.setattr(scanning.times, "measure_repeatedly", measure_repeatedly)
    run = patchcluster.scan(images, tmp_path / "run", size=(64,))
    steps = sum(run.info.predicted_seconds.values()) - run.info.predicted_seconds["start"]
    with pytest.raises(SettingError, match="over --time-budget"):
        patchcluster.scan(images, tmp_path / "short", size=(64,), time_budget=7)
    assert asked == [pytest.approx(steps, abs=0.01), 7]


def test_methods_whose_time_is_not_known_take_no_budget(images, tmp_path, monkeypatch):
    with pytest.raises(SettingError, match="the time of padim is not known: leave --time-budget"):
        scan(images, tmp_path / "run", monkeypatch, STEADY, time_budget="1h", method="padim")
    assert not (tmp_path / "run" / "run.json").exists()
    forecast = scanning.predict(images, method="padim", size=(64,))
    assert "compare" not in forecast.seconds
    assert "the comparison, whose time is not known" in forecast.describe()


def test_a_forecast_writes_nothing_and_says_what_a_scan_says(images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scanning.Scan, "_measure", lambda *_: STEADY)
    forecast = scanning.predict(images, size=(64,))
    assert list(tmp_path.iterdir()) == []
    run, told = scan(images, tmp_path / "run", monkeypatch, STEADY)
    steps = ("features", "compare", "maps", "report")
    for step in steps:
        assert forecast.seconds[step] == run.info.predicted_seconds[step]
    assert (forecast.images, forecast.patches) == (40, 640)
    assert forecast.memory == pytest.approx(run.info.memory["predicted"], rel=0.2)
    words = forecast.describe()
    assert words.startswith("40 images, 640 patches: about ")
    assert told[0].startswith("40 images, 640 patches: about ")
    assert re.search(r"about [\d.]+ [MG]B of memory$", words)
