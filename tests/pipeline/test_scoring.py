"""New images against a run's bank."""

import csv
import errno
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import patchcluster
from conftest import left_half, read_files, run_command, save_image, textured_image, write_set
from patchcluster.errors import InputError, RunError
from patchcluster.methods import METHODS
from patchcluster.network.backbones import load_backbone
from patchcluster.pipeline.flagging import reflag
from patchcluster.pipeline.in_memory import extract_files
from patchcluster.pipeline.scoring import Scorer, score
from patchcluster.runs import storage
from patchcluster.runs.tables import IMAGE_HEADER
from patchcluster.scores.finish import SetBaseline
from patchcluster.scores.maps import find_regions
from patchcluster.scores.thresholds import Flagging
from patchcluster.settings import resolve

SIZE = (128,)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """8 images; the last one, part7.png, has a blot."""
    return write_set(tmp_path_factory.mktemp("new") / "images")


@pytest.fixture(scope="module")
def ordinary(images, tmp_path_factory):
    """A run on part0.png to part5.png, which are ordinary. Do not change it."""
    return scan_some(images[:6], tmp_path_factory.mktemp("ordinary"), size=SIZE)


def scan_some(paths, root, **settings):
    (root / "images").mkdir(parents=True)
    for path in paths:
        shutil.copy(path, root / "images")
    return patchcluster.scan(root / "images", root / "run", **settings)


def patches_of(paths, settings):
    """Patches [h, w, c] of images, with nothing on disk, and their network."""
    backbone = load_backbone(settings.backbone, None, "cpu", settings.strides)
    return extract_files([str(path) for path in paths], backbone, settings)[0], backbone


@pytest.mark.parametrize("name", METHODS)
def test_every_method_scores_as_it_does_arrays_in_memory(images, tmp_path, name, monkeypatch):
    monkeypatch.setattr("patchcluster.methods.reverse_distillation._STEPS", 1)  # for speed
    given = {"method": name, "size": (96,), "device": "cpu"}
    run = scan_some(images[:6], tmp_path, **given)
    before = read_files(run.folder)
    found = score(run, images[6:])
    assert read_files(run.folder) == before
    assert not found.skipped
    assert np.isfinite(run.scores).all()

    settings = resolve(**given)
    grids, backbone = patches_of(run.paths, settings)
    order = np.argsort([image.sha256 for image in run.images])  # a set is ordered by content
    method = settings.make_method(backbone.channels, backbone.strides)
    if name == "reverse-distillation":  # its training is not exact: take the trained one
        method = type(method).from_state(state_of(run, 96), **method.parameters())
    else:
        method.fit([grids[i] for i in order])
    new, _ = patches_of(images[6:], settings)
    for one, expected in zip(found.images, method.score(new), strict=True):
        scale = float(expected.abs().max())
        np.testing.assert_allclose(one.grid, expected.numpy(), rtol=5e-3, atol=2e-3 * scale)
    assert found.images[1].score > found.images[0].score
    assert found.images[1].map().shape == (96, 96)
    without_a_bank = name in ("padim", "reverse-distillation")
    for places in (
        found.images[1].neighbours(*found.images[1].place),
        run.neighbours("part5.png", 50, 50),
    ):
        assert len(places) == (0 if without_a_bank else 3)
    assert (found.images[1].nearest == "") == without_a_bank


def state_of(run, size):
    tensors, _ = storage.read_tensors(run.folder / "bank.safetensors")
    start = f"{size}."
    return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}


def test_a_new_image_gets_about_the_score_it_would_have_had_in_the_set(tmp_path):
    paths = write_set(tmp_path / "set", 20)
    new = [paths[17], paths[19]]  # without near-duplicates, whose number would count; with a blot
    ordinary = patchcluster.scan([*paths[:17], paths[18]], tmp_path / "ordinary", size=(128,))
    run = patchcluster.scan(paths, tmp_path / "all", size=(128,))
    assert not {str(path) for path in new} & {p for g in run.info.near_duplicates for p in g}
    found, blind = score(ordinary, new), scores_by_name(run)
    for one in found.images:
        assert one.score == pytest.approx(blind[Path(one.path).name], rel=0.1)
    assert found.images[1].score > 1.5 * ordinary.scores.max()
    assert found.images[0].score < 1.2 * ordinary.scores.max()
    assert found.images[1].percentile == 100


def scores_by_name(run):
    return {Path(path).name: value for path, value in zip(run.paths, run.scores, strict=True)}


def test_flag_percentile_regions_and_place_follow_from_map_and_threshold(small_run, images):
    scorer = Scorer(small_run)
    for path in images:
        one = scorer.try_file(str(path))
        assert one.flagged == (one.score > small_run.threshold.value)
        assert one.percentile == pytest.approx(100 * np.mean(small_run.scores < one.score))
        baseline = float(np.quantile(scorer.finish(one.record, one.grid).smoothed, 0.25))
        offset = SetBaseline(**small_run.info.baseline).offset(baseline)
        assert one.regions == find_regions(one.map(), small_run.threshold.value + offset)
        row, column = np.unravel_index(one.grid.argmax(), one.grid.shape)
        assert one.place == ((column + 0.5) * 96 / 8, (row + 0.5) * 96 / 8)
        assert one.nearest == one.neighbours(*one.place)[0].path
    with pytest.raises(InputError, match="outside the image, which is 96 x 96"):
        one.neighbours(96, 0)


def test_an_image_of_the_set_is_known_and_meets_itself(images, tmp_path):
    run = scan_some(images, tmp_path, method="patchcluster", size=(96,), k=1, ratio=1.0)
    shutil.copy(images[7], tmp_path / "other-name.png")
    one = score(run, tmp_path / "other-name.png").images[0]
    assert one.same_as == run.paths[7]
    assert one.score == pytest.approx(0, abs=1e-3)
    assert all(n.distance == pytest.approx(0, abs=1e-2) for n in one.neighbours(50, 50)[:1])
    assert one.neighbours(50, 50)[0].path == run.paths[7]


def test_the_highest_of_the_bank_is_not_over_the_threshold_that_it_is(ordinary, tmp_path):
    shutil.copytree(ordinary.folder, tmp_path / "run")
    run = reflag(tmp_path / "run", Flagging(flag_top=0))
    top = int(run.ranking[0])
    assert run.threshold.value == run.scores[top]
    one = score(run, run.paths[top]).images[0]
    assert one.score == run.scores[top]  # itself is left out as a near-duplicate
    assert not one.flagged
    assert float(f"{one.score:.9g}") == one.score


def test_a_file_whose_reading_fails_gets_a_reason_and_no_score(ordinary, images, monkeypatch):
    class Failing(io.BytesIO):
        def read(self, *_):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("patchcluster.images.inputs.open_input", lambda _: Failing())
    found = score(ordinary, images[6])
    assert not found.images
    assert found.skipped[0].reason == "input/output error"


def test_two_sizes_are_fused_as_in_the_set(images, tmp_path):
    run = scan_some(images[:6], tmp_path, size=(96, 128))
    one = score(run, run.paths[5]).images[0]  # itself is left out as a near-duplicate
    np.testing.assert_allclose(one.grid, run.grid(run.paths[5]), rtol=5e-3)


def test_tiles_and_sizes_of_its_own(tmp_path):
    write_set(tmp_path / "images", 5, blots=0, size=160)
    run = patchcluster.scan(tmp_path / "images", tmp_path / "run", size=(64,), tile=True)
    wide = save_image(tmp_path / "wide.png", textured_image(9, 192, 160, blot=True))
    one = score(run, wide).images[0]
    assert one.grid.shape == (10, 12)  # its own resolution, stride 16
    assert one.map().shape == (160, 192)
    assert one.score > run.scores.max()


def test_one_mask_for_all_is_applied(images, tmp_path):
    mask = save_image(tmp_path / "mask.png", left_half())
    run = scan_some(images[:6], tmp_path, size=SIZE, roi=mask)
    one = score(run, images[7]).images[0]
    assert np.isfinite(one.map()).sum() == 96 * 48
    assert one.neighbours(90, 50) == []
    for near in one.neighbours(10, 50):
        assert near.x < 56  # within a cell of the coarsest stage of the mask
    # the same, had it been in the set: the masked neighbourhood is the run's own
    twin = score(run, images[2]).images[0]
    at = twin.neighbours(10, 50)
    assert [n.path for n in at] == [n.path for n in run.neighbours(str(run.paths[2]), 10, 50)]


def test_a_mask_for_each_image_cannot_be_applied(images, tmp_path):
    masks = tmp_path / "masks"
    for i, path in enumerate(images[:4]):
        save_image(masks / path.name, left_half(96 + 2 * i)[:, :96])
    run = scan_some(images[:4], tmp_path, size=SIZE, roi=masks)
    with pytest.raises(RunError, match="scan with one mask for all"):
        Scorer(run)


def test_deep_images_need_the_window_of_the_set(ordinary, images, tmp_path):
    grey = np.asarray(Image.open(images[6]).convert("L")).astype(np.uint16) * 257
    found = score(ordinary, save_image(tmp_path / "deep.png", grey))
    assert not found.images
    assert "no image of the set has" in found.skipped[0].reason
    for i in range(4):
        deep = np.asarray(Image.open(images[i]).convert("L")).astype(np.uint16) * 16
        save_image(tmp_path / "set" / f"{i}.png", deep)
    run = patchcluster.scan(tmp_path / "set", tmp_path / "run", size=SIZE)
    low, high = run.info.windows["integer"]
    assert 0 <= low < high <= 4096
    new = save_image(tmp_path / "new.png", grey // 257 * 16)
    assert score(run, new).images[0].score < 1.5 * run.scores.max()


def test_a_method_for_one_size_says_so(images, tmp_path):
    run = scan_some(images[:4], tmp_path, method="padim", size=(96,))
    found = score(run, save_image(tmp_path / "wide.png", textured_image(1, 192, 96)))
    assert "padim needs images of one size" in found.skipped[0].reason


def test_labels_do_not_shift_new_images(images, tmp_path):
    run = scan_some(images, tmp_path, size=SIZE)
    plain = run.grid("part6.png")  # of which part1.png is a near-duplicate
    labelled = patchcluster.scan(
        run.info.inputs, run.folder, size=SIZE, labels={run.paths[1]: "normal"}
    )
    shift = labelled.grid("part6.png").mean() - plain.mean()
    one = score(labelled, images[6]).images[0]
    settings = resolve(size=SIZE)
    (patches,), backbone = patches_of(images[6:7], settings)
    method = settings.make_method(backbone.channels, backbone.strides)
    method = type(method).from_state(state_of(labelled, 128), **method.parameters())
    (expected,) = method.score([patches])
    assert abs(shift) > 0.02
    np.testing.assert_allclose(one.grid, expected.numpy(), atol=abs(shift) / 10)


# --- the command --------------------------------------------------------------------------------


def test_the_command_prints_a_table_and_writes_it(ordinary, images, tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    out = tmp_path / "scores.csv"
    chosen = (images[0], images[7], tmp_path / "notes.txt")
    result = run_command("score", ordinary.folder, *chosen, "-o", out)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["score", "probability", "flagged", "regions", "image"]
    assert sum("part7.png" in line for line in lines) == 1
    assert "notes.txt: not an image" in result.stdout
    assert lines[-1] == "2 scored, 1 flagged, 1 skipped"
    assert "1 of the images are in the set" in result.stderr
    with open(out, newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == IMAGE_HEADER
    expected = {one.path: one for one in score(ordinary, chosen[:2]).images}
    for row in rows:
        one = expected[row["path"]]
        assert float(row["score"]) == pytest.approx(one.score, rel=1e-6)
        assert (row["flagged"] == "true") == one.flagged
        assert int(row["regions"]) == len(one.regions)


def test_the_command_as_json(ordinary, images):
    result = run_command("score", ordinary.folder, images[7], "--json", "-q")
    assert result.stderr == ""
    value = json.loads(result.stdout)
    assert value["skipped"] == []
    row = value["images"][0]
    assert row["flagged"] is True
    assert row["regions"][0]["peak"] > ordinary.threshold.value


def test_the_command_fails_if_nothing_can_be_scored(ordinary, tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    result = run_command("score", ordinary.folder, tmp_path / "notes.txt", "-q")
    assert result.exit_code == 1
    assert "0 scored, 0 flagged, 1 skipped" in result.stdout
    result = run_command("score", tmp_path, tmp_path / "notes.txt", "-q")
    assert result.exit_code == 1
    assert "is not a run" in result.stderr
