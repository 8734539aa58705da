"""Images added to a finished run, and removed from it, against a fresh scan of the same set."""

import json
import os
import shutil

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

import patchcluster
from conftest import read_files, run_command, save_image, textured_image, write_set
from patchcluster.errors import InputError, RunError, SettingError, WeightsError
from patchcluster.pipeline import rescoring
from patchcluster.pipeline.flagging import reflag
from patchcluster.pipeline.image_set import ImageSet
from patchcluster.pipeline.loading import load_patches
from patchcluster.runs import runfolder, storage
from patchcluster.scores.thresholds import Flagging
from patchcluster.search import row_index

SIZE = (128,)
WHOLE: dict = {}
BOUNDED = {"bank_images": 6}
ROI = {"roi": "mask.png"}
SIZES = {"size": (64, 128)}
OTHER = {"method": "patchcluster", "size": SIZE, "k": 3}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """14 images, of which 2 are copies, a file that is none, and a mask."""
    root = tmp_path_factory.mktemp("update")
    paths = write_set(root / "images", 12, blots=2)
    shutil.copy(paths[1], root / "images" / "copy1.png")
    shutil.copy(paths[8], root / "images" / "copy8.png")
    (root / "images" / "broken5.png").write_bytes(b"no image")
    mask = np.zeros((96, 96), bool)
    mask[16:80, 16:90] = True
    save_image(root / "mask.png", mask)
    return root


def names_of(root, first, last):
    """Files of the images from one number to another, with their copies."""
    found = [root / "images" / f"part{i}.png" for i in range(first, last)]
    for name in ("copy1.png", "copy8.png", "broken5.png"):
        if first <= int(name[-5]) < last:
            found.append(root / "images" / name)
    return [str(path) for path in found]


def scan_of(files, folder, given):
    return patchcluster.scan(files, folder, **{"size": SIZE, **given})


def given_for(root, given):
    return {n: str(root / v) if n == "roi" else v for n, v in given.items()}


def assert_equal(run, fresh):
    """That two runs of a set say the same of it."""
    for name in ("scores.csv", "regions.csv"):
        assert (run.folder / name).read_text() == (fresh.folder / name).read_text()
    assert [skip.path for skip in run.skipped] == [skip.path for skip in fresh.skipped]
    for name in ("duplicates", "near_duplicates", "labels", "roi_sha256", "settings", "baseline"):
        assert getattr(run.info, name) == getattr(fresh.info, name)
    for path in run.paths:
        np.testing.assert_allclose(run.grid(path), fresh.grid(path), rtol=2e-3, atol=1e-3)
        assert run.neighbours(path, 50, 50) == fresh.neighbours(path, 50, 50)
    thumbnails = [len(list((one.folder / "thumbnails").iterdir())) for one in (run, fresh)]
    assert thumbnails[0] == thumbnails[1] == len(run.paths)


@pytest.mark.slow
@pytest.mark.parametrize(
    "given",
    [WHOLE, BOUNDED, ROI, {**ROI, **BOUNDED}, SIZES, OTHER],
    ids=["whole", "bounded", "masked", "masked-bounded", "sizes", "patchcluster"],
)
def test_scores_equal_those_of_a_fresh_scan(images, tmp_path, given):
    given = given_for(images, given)
    run = scan_of(names_of(images, 2, 10), tmp_path / "run", given)
    added = names_of(images, 0, 2) + names_of(images, 10, 12)
    before = {path: os.stat(path).st_mtime_ns for path in run.folder.glob("thumbnails/*")}
    updated = patchcluster.update(run, add=added, remove=["part3.png", "images/copy8.png"])
    gone = {"part3.png", "copy8.png"}
    left = [f for f in names_of(images, 0, 12) if os.path.basename(f) not in gone]
    assert_equal(updated, scan_of(left, tmp_path / "fresh", given))
    kept = {path: os.stat(path).st_mtime_ns for path in run.folder.glob("thumbnails/*")}
    assert sum(before.get(path) == time for path, time in kept.items()) == len(before) - 2
    assert not (run.folder / ".work").exists()


@pytest.mark.parametrize("given", [WHOLE, BOUNDED], ids=["whole", "bounded"])
def test_they_do_so_where_an_inverted_file_is_searched(images, tmp_path, given, monkeypatch):
    """As of large banks; the same rows in the same order are searched in the same way."""
    monkeypatch.setattr(row_index, "_EXACT_ROWS", 200)
    run = scan_of(names_of(images, 2, 10), tmp_path / "run", given)
    updated = patchcluster.update(run, add=names_of(images, 0, 2), remove=["part3.png"])
    left = [file for file in names_of(images, 0, 10) if not file.endswith("part3.png")]
    assert_equal(updated, scan_of(left, tmp_path / "fresh", given))


def test_a_bank_of_all_that_becomes_one_of_some(images, tmp_path, monkeypatch):
    """And the other way round: patches move from the bank to files and back."""
    monkeypatch.setattr("patchcluster.methods.patchcluster_plus._BANK_IMAGES", 9)
    monkeypatch.setattr("patchcluster.methods.patchcluster_plus._BANK_PATCHES", 9 * 64)
    run = scan_of(names_of(images, 0, 7), tmp_path / "run", WHOLE)
    assert not runfolder.kept_paths(run.folder)
    updated = patchcluster.update(run, add=names_of(images, 7, 12))
    assert runfolder.kept_paths(run.folder)
    fresh = scan_of(names_of(images, 0, 12), tmp_path / "fresh", WHOLE)
    assert_equal(updated, fresh)
    mine, theirs = (
        list(load_patches(one, ImageSet.of(one.images), 128)[0]) for one in (updated, fresh)
    )
    assert all(map(torch.equal, mine, theirs))
    again = patchcluster.update(run, remove=["part7.png", "part8.png", "copy8.png", "part9.png"])
    assert not runfolder.kept_paths(run.folder)
    left = names_of(images, 0, 7) + names_of(images, 10, 12)
    assert_equal(again, scan_of(left, tmp_path / "left", WHOLE))


def test_of_removed_images_no_patches_are_left(images, tmp_path):
    run = scan_of(names_of(images, 0, 12), tmp_path / "run", BOUNDED)
    gone = {run.images[run.index(name)].id for name in ("part2.png", "part7.png")}
    updated = patchcluster.update(run, remove=["part2.png", "part7.png"])
    left = {
        int(name.partition(".")[2])
        for path in runfolder.kept_paths(run.folder)
        for name in storage.read_shapes(path)[0]
    }
    assert not left & gone
    assert left == {image.id for image in updated.images}
    assert not any(runfolder.map_path(run.folder, image).exists() for image in gone)
    assert [path[-9:] for path in updated.info.removed] == ["part2.png", "part7.png"]
    assert len(patchcluster.update(run, remove="part2.png")) == len(updated)  # it is gone already
    relabelled = rescoring.rescore(run.folder, {updated.paths[0]: "normal"})
    assert relabelled.info.labels == {updated.paths[0]: "normal"}


def test_a_removal_asks_nothing_of_the_network(images, tmp_path):
    """Not even that its weights are still there."""
    weights = tmp_path / "weights.safetensors"
    torch.manual_seed(0)
    save_file(timm.create_model("test_efficientnet").state_dict(), weights)
    given = {**BOUNDED, "backbone": "test_efficientnet", "weights": str(weights)}
    files = names_of(images, 0, 12)
    run = scan_of(files, tmp_path / "run", given)
    left = [file for file in files if not file.endswith("part2.png")]
    fresh = scan_of(left, tmp_path / "fresh", given)
    weights.unlink()
    updated = patchcluster.update(run.folder, remove=["part2.png"])
    assert updated.info.backbone == run.info.backbone
    assert_equal(updated, fresh)
    with pytest.raises(WeightsError):
        patchcluster.update(run.folder, add=names_of(images, 2, 3))


def test_what_the_run_has_is_left_as_it_is_but_for_other_contents(tmp_path):
    folder = tmp_path / "photos"
    write_set(folder, 8)
    run = scan_of([str(folder)], tmp_path / "run", WHOLE)
    written = (run.folder / "run.json").read_bytes()
    same = patchcluster.update(run, add=folder)
    assert (run.folder / "run.json").read_bytes() == written
    np.testing.assert_array_equal(same.scores, run.scores)
    save_image(folder / "part3.png", textured_image(99, blot=True))
    (folder / "part9.png").write_bytes(b"no image")
    changed = patchcluster.update(run, add=folder)
    assert_equal(changed, scan_of([str(folder)], tmp_path / "fresh", WHOLE))
    assert [skip.path for skip in changed.skipped] == [str(folder / "part9.png")]
    save_image(folder / "part9.png", textured_image(9))
    mended = patchcluster.update(run, add=folder)
    assert_equal(mended, scan_of([str(folder)], tmp_path / "mended", WHOLE))


def test_labels_of_the_others_and_the_flagging_stay(images, tmp_path):
    files = names_of(images, 0, 10)
    labels = {files[0]: "normal", files[3]: "anomalous"}
    run = scan_of(files, tmp_path / "run", {"labels": labels, "flag_top": 3})
    updated = patchcluster.update(run, add=names_of(images, 10, 12), remove="part3.png")
    left = [f for f in names_of(images, 0, 12) if f != files[3]]
    given = {"labels": {files[0]: "normal"}, "flag_top": 3}
    assert_equal(updated, scan_of(left, tmp_path / "fresh", given))
    assert updated.flagged.sum() == 3
    assert reflag(run.folder, Flagging(flag_top=1)).flagged.sum() == 1


def test_an_update_that_was_interrupted_keeps_its_features_while_others_flag(images, tmp_path):
    run = scan_of(names_of(images, 0, 5), tmp_path / "run", WHOLE)

    def stop(step, *_):
        if step == "compare":
            raise KeyboardInterrupt

    added = names_of(images, 10, 12)
    with pytest.raises(KeyboardInterrupt):
        patchcluster.update(run.folder, add=added, progress=stop)
    reflag(run.folder, Flagging(flag_top=1))
    steps = []
    patchcluster.update(run.folder, add=added, progress=lambda *one: steps.append(one))
    assert ("features", 2, 2) in steps
    assert ("features", 0, 2) not in steps


@pytest.fixture(scope="module")
def five(images, tmp_path_factory):
    """A run of 5 images. Do not change it."""
    return scan_of(names_of(images, 0, 5), tmp_path_factory.mktemp("five") / "run", WHOLE)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"remove": "nobody.png"}, "'nobody.png' is not among the images"),
        ({"remove": "nobody*.png"}, "no image of the run matches 'nobody"),
        ({"add": "nowhere"}, "'nowhere' does not exist"),
        ({"remove": "*.png"}, "give at least 2"),
    ],
)
def test_what_cannot_be_is_refused_and_the_run_stays(five, change, words):
    before = read_files(five.folder)
    with pytest.raises((InputError, SettingError), match=words):
        patchcluster.update(five, **change)
    assert before.items() <= read_files(five.folder).items()


def test_a_run_without_patches_is_refused(images, tmp_path):
    run = scan_of(names_of(images, 0, 9), tmp_path / "run", {**BOUNDED, "cache": False})
    with pytest.raises(RunError, match="without --no-cache"):
        patchcluster.update(run, remove="part1.png")
    np.testing.assert_array_equal(patchcluster.load_run(run.folder).scores, run.scores)


def test_deep_images_that_change_the_window_of_all_are_refused(tmp_path):
    files = []
    for i, top in enumerate((900, 1000, 4000, 4000, 60_000)):
        values = textured_image(i)[:, :, 0].astype(np.uint16) * (top // 255)
        files.append(str(save_image(tmp_path / "deep" / f"part{i}.png", values)))
    run = scan_of(files[:3], tmp_path / "run", WHOLE)
    updated = patchcluster.update(run, add=files[3])
    assert_equal(updated, scan_of(files[:4], tmp_path / "fresh", WHOLE))
    with pytest.raises(RunError, match="would have another window with this set"):
        patchcluster.update(run, add=files[4])


def test_on_the_command_line(images, tmp_path):
    run = scan_of(names_of(images, 0, 8), tmp_path / "run", WHOLE)
    nothing = run_command("update", run.folder)
    assert nothing.exit_code == 2
    assert "nothing to do: give --add INPUT or --remove NAME" in nothing.stderr
    added = names_of(images, 9, 10)[0]
    done = run_command("update", run.folder, "--add", added, "--remove", "part0.png", "--json")
    assert json.loads(done.stdout)["images"] == len(run)
    assert "1 images to add, 1 to remove" in done.stderr
