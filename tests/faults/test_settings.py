"""Settings that cannot work, and some that look so and can."""

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

import patchcluster
from conftest import write_set
from faults.outcomes import Outcome, assert_one_line, assert_usage, invoke

pytestmark = pytest.mark.faults

SCAN = ("scan", "images", "-o", "run", "--quiet")


class Trap:
    """Runs code where it is unpickled."""

    def __reduce__(self):
        return (os.mkdir, ("trapped",))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with 8 images, weights of all kinds and masks."""
    root = tmp_path_factory.mktemp("settings")
    write_set(root / "images")
    state = timm.create_model("test_efficientnet").state_dict()
    save_file(state, root / "whole.safetensors")
    whole = (root / "whole.safetensors").read_bytes()
    (root / "half.safetensors").write_bytes(whole[: len(whole) // 2])
    (root / "header.safetensors").write_bytes(b"\xff" * 7 + b"\x7f" + whole[8:])
    torch.save(state, root / "whole.pth")
    zipped = (root / "whole.pth").read_bytes()
    (root / "half.pth").write_bytes(zipped[: len(zipped) // 2])
    (root / "trap.pth").write_bytes(pickle.dumps(Trap()))
    torch.save({"state_dict": Trap()}, root / "zipped-trap.pth")
    (root / "empty.pth").touch()
    save_file({"weight": torch.zeros(2, 2)}, root / "one.safetensors")
    state["conv_stem.weight"] = torch.zeros(1, 3, 3, 3)
    save_file(state, root / "shape.safetensors")
    (root / "mask.txt").write_text("white")
    (root / "labels.csv").write_text("file,verdict\na,b\n")
    (root / "binary.csv").write_bytes(bytes(range(256)))
    return root


def ask(place: Path, monkeypatch: pytest.MonkeyPatch, *options: object) -> Outcome:
    """The outcome of a scan with options; nothing may have been written."""
    monkeypatch.chdir(place)
    outcome = invoke(*SCAN, "--size", 64, *options)
    try:
        assert not (place / "run").exists()
    finally:
        shutil.rmtree(place / "run", ignore_errors=True)
    return outcome


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--ratio 0.5", "patchcluster-plus has no setting ratio"),
        ("--ratio 0", "share of the patches in (0, 1]"),
        ("--ratio 2", "share of the patches in (0, 1]"),
        ("--ratio -0.5", "share of the patches in (0, 1]"),
        ("--ratio nan", "share of the patches in (0, 1]"),
        ("--ratio inf", "share of the patches in (0, 1]"),
        ("--k 0", "at least 1 neighbour"),
        ("--k -3", "at least 1 neighbour"),
        ("--k 8", "choose 1 to 7"),
        ("--k 5 --method patchcore", "patchcore has no setting k"),
        ("--bank-images 1", "choose 2 or more"),
        ("--bank-images -5", "choose 2 or more"),
        ("--bank-images 4 --method padim", "padim has no setting bank_images"),
        ("--local-weight nan", "local_weight"),
        ("--local-weight -1", "local_weight"),
        ("--seed -1", "choose 0 or more"),
        ("--size 0", "32 to 4096 pixels"),
        ("--size 31", "32 to 4096 pixels"),
        ("--size 1000000", "32 to 4096 pixels"),
        ("--size 64,64,0", "32 to 4096 pixels"),
        ("--size 64,128 --tile", "choose one size"),
        ("--preset nope", "choose from default, fast, best, paper"),
        ("--method nope", "choose from patchcluster-plus"),
        ("--method ../../etc/passwd", "choose from patchcluster-plus"),
        ("--k 3 --method reverse-distillation", "has no setting k"),
        ("--image-score nope", "choose from baseline-corrected, top1%, max"),
        ("--image-score reweighted", "has no image score 'reweighted'"),
        ("--device warp", "choose cpu or auto"),
        ("--device cuda:99", "choose cpu or auto"),
        ("--device cpu:7x", "choose cpu or auto"),
        ("--backbone nope", "timm has no network"),
        ("--backbone ../weights", "timm has no network"),
        ("--backbone resnet18", "--weights"),
        ("--max-memory lots", "write 8GB"),
        ("--max-memory -1GB", "write 8GB"),
        ("--max-memory 1MB", "over --max-memory"),
        ("--expect 5% --flag-top 3", "give one of the two"),
        ("--expect 101%", "share of the images"),
        ("--expect -1", "share of the images"),
        ("--expect nan", "share of the images"),
        ("--flag-top -1", "give 0 or more"),
        ("--labels nowhere.csv", "'nowhere.csv'"),
        ("--labels labels.csv", "path"),
        ("--labels binary.csv", "binary.csv"),
        ("--labels images", "'images'"),
        ("--roi nowhere.png", "'nowhere.png'"),
        ("--roi mask.txt", "'mask.txt'"),
        ("--roi images/part1.png --method padim", "padim compares whole images"),
    ],
)
def test_a_setting_that_cannot_work_is_one_line(place, monkeypatch, options, words):
    assert_one_line(ask(place, monkeypatch, *options.split()), words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--k many", "should be a valid integer"),
        ("--k 2.5", "should be a valid integer"),
        ("--ratio half", "should be a valid number"),
        ("--bank-images all", "should be a valid integer"),
        ("--size big", "write 448"),
        ("--expect some", "5%"),
        ("--flag-top few", "write 20, or a share as --expect 5%"),
        ("--tile=yes", "does not take a value"),
        ("--nope", "No such option"),
        ("--size", "requires an argument"),
    ],
)
def test_a_value_of_another_type_is_wrong_usage(place, monkeypatch, options, words):
    assert_usage(ask(place, monkeypatch, *options.split()), words)


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ("half.safetensors", "cannot read weights"),
        ("header.safetensors", "cannot read weights"),
        ("half.pth", "cannot read weights"),
        ("empty.pth", "cannot read weights"),
        ("mask.txt", "cannot read weights"),
        ("images", "no weights at"),
        ("nowhere.pth", "no weights at"),
        ("one.safetensors", "do not fit test_efficientnet"),
        ("shape.safetensors", "do not fit test_efficientnet"),
        ("trap.pth", "more than weights"),
        ("zipped-trap.pth", "more than weights"),
    ],
)
def test_weights_that_cannot_be_taken_are_one_line(place, monkeypatch, weights, words):
    options = ("--backbone", "test_efficientnet", "--weights", weights)
    assert_one_line(ask(place, monkeypatch, *options), words)
    assert not (place / "trapped").exists()


@pytest.mark.parametrize(
    "options", ["--k 500 --method patchcluster", "--ratio 0.001 --method patchcore"]
)
def test_a_bank_that_turns_out_too_small_is_one_line(place, monkeypatch, tmp_path, options):
    monkeypatch.chdir(place)
    outcome = invoke("scan", "images", "-o", tmp_path / "run", "-q", "--size", 64, *options.split())
    assert_one_line(outcome, "neighbours, but the bank offers", "choose a smaller k")


def test_weights_of_another_network_are_one_line(place, monkeypatch):
    assert_one_line(ask(place, monkeypatch, "--weights", "whole.pth"), "do not fit")


@pytest.mark.parametrize(
    "options",
    [
        "--k 7",
        "--ratio 0.05 --method patchcore",
        "--bank-images 500",
        "--bank-images 2",
        "--size 33",
        "--expect 0",
        "--expect 100%",
        "--flag-top 500",
        "--local-weight 1000",
        "--max-memory 1000TB",
        "--roi images/part1.png",
    ],
)
def test_a_setting_at_its_end_gives_every_image_a_score(place, monkeypatch, tmp_path, options):
    monkeypatch.chdir(place)
    given = ("--size", 64, *options.split(), "--json", "--quiet")
    outcome = invoke("scan", "images", "-o", tmp_path / "run", *given)
    assert outcome.code == 0, outcome.errors
    assert json.loads(outcome.output)["images"] == 8
    run = patchcluster.load_run(tmp_path / "run")
    assert len(set(run.scores)) == 8
