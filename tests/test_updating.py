"""Images added to a finished run, and removed from it, against a fresh scan of the same set."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import patchcluster
from conftest import run_command, textured_image, write_set
from patchcluster import runfolder, scanning
from patchcluster.comparing import ImageSet, load_batches, read_comparison
from patchcluster.errors import InputError, RunError, SettingError, WeightsError
from patchcluster.inputs import hash_file
from patchcluster.reflagging import load_method, reflag
from patchcluster.thresholds import Flagging

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
    Image.fromarray(mask).save(root / "mask.png")
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
    assert run.paths == fresh.paths
    np.testing.assert_allclose(run.scores, fresh.scores, rtol=1e-5)
    assert run.flagged.tolist() == fresh.flagged.tolist()
    assert run.nearest == fresh.nearest
    assert [skip.path for skip in run.skipped] == [skip.path for skip in fresh.skipped]
    for name in ("duplicates", "near_duplicates", "labels", "roi_sha256", "settings", "levels"):
        assert getattr(run.info, name) == getattr(fresh.info, name)
    for path in run.paths:
        np.testing.assert_allclose(run.grid(path), fresh.grid(path), rtol=2e-3, atol=1e-3)
        assert run.regions(path) == fresh.regions(path)
        x, y = 50, 50
        assert run.neighbours(path, x, y) == fresh.neighbours(path, x, y)
    for name in ("scores.csv", "regions.csv"):
        assert (run.folder / name).read_text() == (fresh.folder / name).read_text()
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


def test_updated_again_and_back_it_is_what_it_was(images, tmp_path):
    run = scan_of(names_of(images, 0, 8), tmp_path / "run", BOUNDED)
    scores, table = run.scores, (run.folder / "scores.csv").read_text()
    more = patchcluster.update(run.folder, add=names_of(images, 8, 12))
    assert len(more) > len(scores)
    back = patchcluster.update(
        run.folder, remove=["part8.png", "part9.png", "part1[01].png", "copy8.png"]
    )
    np.testing.assert_allclose(back.scores, scores, rtol=1e-5)
    assert (run.folder / "scores.csv").read_text() == table
    assert len(back.info.inputs) == len(run.info.inputs) + 5


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
        list(load_batches(one.folder, ImageSet.of(one.images), 2, 128)[0])
        for one in (updated, fresh)
    )
    assert all(map(torch.equal, mine, theirs))
    again = patchcluster.update(run, remove=["part7.png", "part8.png", "copy8.png", "part9.png"])
    assert not runfolder.kept_paths(run.folder)
    left = names_of(images, 0, 7) + names_of(images, 10, 12)
    assert_equal(again, scan_of(left, tmp_path / "left", WHOLE))


def test_of_comparisons_of_another_version_nothing_is_taken(images, tmp_path, monkeypatch):
    """What the run keeps of its comparisons is looked at, and named by all that it depends on."""
    monkeypatch.setattr("patchcluster.methods.patchcluster_plus._REFERENCES", 1)
    every = names_of(images, 0, 12)
    added = sorted(every, key=hash_file)[-1:]  # not the one that all are centred on
    run = scan_of([file for file in every if file not in added], tmp_path / "run", BOUNDED)
    kept = sorted((run.folder / runfolder.COMPARISONS_FOLDER).iterdir())
    assert kept
    for path in kept:
        comparison = read_comparison(path)
        note = runfolder.storage.read_note(path)
        tensors = comparison.tensors()
        for stage in range(3):
            tensors[f"trace.{stage}.distances"] *= 100
        runfolder.storage.write_tensors(path, tensors, note)
    shutil.copytree(run.folder, tmp_path / "copy")
    fresh = scan_of(every, tmp_path / "fresh", BOUNDED)
    misled = patchcluster.update(tmp_path / "copy", add=added)
    assert not np.allclose(misled.scores, fresh.scores, rtol=0.1)
    monkeypatch.setattr("patchcluster.scanning.__version__", "another")
    assert_equal(patchcluster.update(run, add=added), fresh)


@pytest.mark.slow
@pytest.mark.parametrize("edit", ["blocks", "names", "rows", "type"])
def test_comparisons_that_cannot_be_of_the_run_are_made_anew(edit, images, tmp_path, monkeypatch):
    monkeypatch.setattr("patchcluster.methods.patchcluster_plus._REFERENCES", 1)
    every = names_of(images, 0, 12)
    added = sorted(every, key=hash_file)[-1:]  # not the one that all are centred on
    run = scan_of([file for file in every if file not in added], tmp_path / "run", BOUNDED)
    for path in (run.folder / runfolder.COMPARISONS_FOLDER).iterdir():
        tensors, note = runfolder.storage.read_tensors(path)
        if edit == "blocks":
            tensors["trace.0.blocks"] = torch.full_like(tensors["trace.0.blocks"], 200)
        elif edit == "names":
            tensors["trace.0.others"] = tensors.pop("trace.0.blocks")
        elif edit == "rows":
            tensors["trace.1.reach"] = tensors["trace.1.reach"][:-1]
        else:
            tensors["trace.2.before"] = tensors["trace.2.before"].int()
        runfolder.storage.write_tensors(path, tensors, note)
    fresh = scan_of(every, tmp_path / "fresh", BOUNDED)
    assert_equal(patchcluster.update(run, add=added), fresh)


def compare_one_by_one(patch):
    """A batch for each image; all are centred on one."""
    patch.setattr("patchcluster.methods.patchcluster_plus._REFERENCES", 1)
    patch.setattr("patchcluster.methods.base.COMPARED_PATCHES", 64)


@pytest.fixture(scope="module")
def scanned(images, tmp_path_factory):
    """A run, an image to add to it that leaves its bank as it is, and a fresh scan of both."""
    root, every = tmp_path_factory.mktemp("settled"), names_of(images, 0, 12)
    with pytest.MonkeyPatch.context() as patch:
        compare_one_by_one(patch)
        fresh = scan_of(every, root / "fresh", BOUNDED)
        for file in every:
            run = scan_of([one for one in every if one != file], root / "run", BOUNDED)
            if bank_of(run) == bank_of(fresh) and len(run.info.duplicates) == 2:
                return run, file, fresh
            shutil.rmtree(run.folder)
    raise AssertionError("each image changes the bank")


@pytest.fixture
def settled(scanned, tmp_path, monkeypatch):
    """The same, to be changed."""
    compare_one_by_one(monkeypatch)
    run, added, fresh = scanned
    shutil.copytree(run.folder, tmp_path / "run")
    return patchcluster.load_run(tmp_path / "run"), added, fresh


def bank_of(run):
    """Contents of the images that all are compared with."""
    contents = ImageSet.of(run.images).shas
    return [contents[image] for image in load_method(run, 128).members]


def comparisons_of(folder):
    return sorted((folder / runfolder.COMPARISONS_FOLDER).iterdir())


def test_batches_that_nothing_has_changed_for_are_the_same_files(settled):
    run, added, fresh = settled
    before = {path.stat().st_ino for path in comparisons_of(run.folder)}
    assert_equal(patchcluster.update(run, add=added), fresh)
    after = {path.stat().st_ino for path in comparisons_of(run.folder)}
    assert before < after
    assert len(after) == len(before) + 1
    for mine, theirs in zip(*map(comparisons_of, (run.folder, fresh.folder)), strict=True):
        assert mine.read_bytes() == theirs.read_bytes()


def test_maps_that_nothing_has_changed_for_stay(settled):
    run, added, fresh = settled
    first, *others = sorted((run.folder / "maps").iterdir())
    before = {path: path.stat().st_ino for path in others}
    first.unlink()  # so that it must be written
    assert_equal(patchcluster.update(run, add=added), fresh)
    assert {path: path.stat().st_ino for path in others} == before


def test_those_of_another_version_are_written_anew(settled, monkeypatch):
    run, added, fresh = settled
    for image in run.images:
        runfolder.write_map(run.folder, image.id, 2 * run.grid(image.path))
    monkeypatch.setattr("patchcluster.scanning.__version__", "another")
    assert_equal(patchcluster.update(run, add=added), fresh)


def test_they_are_written_anew_if_the_bank_has_changed(images, settled, tmp_path):
    run, added, _ = settled
    member = bank_of(run)[0]
    gone = next(image.path for image in run.images if image.sha256 == member)
    updated = patchcluster.update(run, remove=[gone])
    left = [file for file in names_of(images, 0, 12) if file not in (gone, added)]
    assert_equal(updated, scan_of(left, tmp_path / "fresh", BOUNDED))


def test_they_are_copied_where_the_file_system_knows_no_links(settled, monkeypatch):
    run, added, fresh = settled

    def refused(*_):
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refused)
    before = {path.stat().st_ino for path in comparisons_of(run.folder)}
    assert_equal(patchcluster.update(run, add=added), fresh)
    assert not before & {path.stat().st_ino for path in comparisons_of(run.folder)}


@pytest.mark.slow
@pytest.mark.parametrize(
    "edit", ["distances", "kinds", "neighbours", "near_duplicates", "pairs", "explained", "trace"]
)
def test_they_are_made_anew_if_they_cannot_be_of_the_run(edit, settled):
    run, added, fresh = settled
    for path in comparisons_of(run.folder):
        tensors, note = runfolder.storage.read_tensors(path)
        edited = {
            "distances": {"distances": tensors["distances"][:-1]},
            "kinds": {"distances": tensors["distances"].double()},
            "neighbours": {"neighbours": tensors["neighbours"] + len(load_method(run, 128).bank_)},
            "near_duplicates": {"near_duplicates": torch.tensor([[1, 0]])},
            "pairs": {"near_duplicates": torch.tensor([0, 1])},
            "explained": {"neighbour_distances": tensors["neighbour_distances"][:, :-1]},
            "trace": {name: None for name in tensors if name.startswith("trace.")},
        }
        tensors |= edited[edit]
        left = {name: value for name, value in tensors.items() if value is not None}
        runfolder.storage.write_tensors(path, left, note)
    before = {path.stat().st_ino for path in comparisons_of(run.folder)}
    assert_equal(patchcluster.update(run, add=added), fresh)
    assert not before & {path.stat().st_ino for path in comparisons_of(run.folder)}


def test_of_removed_images_no_patches_are_left(images, tmp_path):
    run = scan_of(names_of(images, 0, 12), tmp_path / "run", BOUNDED)
    gone = {run.images[run.index(name)].id for name in ("part2.png", "part7.png")}
    updated = patchcluster.update(run, remove=["part2.png", "part7.png"])
    left = {
        int(name.partition(".")[2])
        for path in runfolder.kept_paths(run.folder)
        for name in runfolder.storage.read_shapes(path)[0]
    }
    assert not left & gone
    assert left == {image.id for image in updated.images}
    assert not any(runfolder.map_path(run.folder, image).exists() for image in gone)
    assert [path[-9:] for path in updated.info.removed] == ["part2.png", "part7.png"]
    assert len(patchcluster.update(run, remove="part2.png")) == len(updated)  # it is gone already
    relabelled = scanning.rescore(run.folder, {updated.paths[0]: "normal"})
    assert relabelled.info.labels == {updated.paths[0]: "normal"}


def test_a_removal_asks_nothing_of_the_network(images, tmp_path, monkeypatch):
    """Not even that its weights are still there."""
    run = scan_of(names_of(images, 0, 12), tmp_path / "run", BOUNDED)

    def missing(*_):
        raise WeightsError("no weights")

    monkeypatch.setattr("patchcluster.scanning.load_backbone", missing)
    updated = patchcluster.update(run.folder, remove=["part2.png"])
    monkeypatch.undo()
    assert updated.info.backbone == run.info.backbone
    left = [file for file in names_of(images, 0, 12) if not file.endswith("part2.png")]
    assert_equal(updated, scan_of(left, tmp_path / "fresh", BOUNDED))
    monkeypatch.setattr("patchcluster.scanning.load_backbone", missing)
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
    Image.fromarray(textured_image(99, blot=True)).save(folder / "part3.png")
    (folder / "part9.png").write_bytes(b"no image")
    changed = patchcluster.update(run, add=folder)
    assert_equal(changed, scan_of([str(folder)], tmp_path / "fresh", WHOLE))
    assert [skip.path for skip in changed.skipped] == [str(folder / "part9.png")]
    Image.fromarray(textured_image(9)).save(folder / "part9.png")
    mended = patchcluster.update(run, add=folder)
    assert_equal(mended, scan_of([str(folder)], tmp_path / "mended", WHOLE))


def test_labels_of_the_others_stay(images, tmp_path):
    files = names_of(images, 0, 10)
    labels = {files[0]: "normal", files[3]: "anomalous"}
    run = scan_of(files, tmp_path / "run", {"labels": labels})
    updated = patchcluster.update(run, add=names_of(images, 10, 12), remove="part3.png")
    left = [f for f in names_of(images, 0, 12) if f != files[3]]
    fresh = scan_of(left, tmp_path / "fresh", {"labels": {files[0]: "normal"}})
    assert_equal(updated, fresh)


def test_flagging_as_it_was_asked_for_stays(images, tmp_path):
    run = scan_of(names_of(images, 0, 10), tmp_path / "run", {"flag_top": 3})
    updated = patchcluster.update(run, add=names_of(images, 10, 12))
    assert updated.flagged.sum() == 3
    assert reflag(run.folder, Flagging(flag_top=1)).flagged.sum() == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"remove": "nobody.png"}, "'nobody.png' is not among the images"),
        ({"remove": "nobody*.png"}, "no image of the run matches 'nobody"),
        ({"add": "nowhere"}, "'nowhere' does not exist"),
        ({"remove": "*.png"}, "give at least 2"),
    ],
)
def test_what_cannot_be_is_refused_and_the_run_stays(images, tmp_path, change, words):
    run = scan_of(names_of(images, 0, 5), tmp_path / "run", WHOLE)
    files = {p: p.read_bytes() for p in sorted(run.folder.rglob("*")) if p.is_file()}
    with pytest.raises((InputError, SettingError), match=words):
        patchcluster.update(run, **change)
    for path, data in files.items():
        assert path.name == ".lock" or path.read_bytes() == data


def test_a_run_without_patches_is_refused(images, tmp_path):
    run = scan_of(names_of(images, 0, 9), tmp_path / "run", {**BOUNDED, "cache": False})
    with pytest.raises(RunError, match="without --no-cache"):
        patchcluster.update(run, remove="part1.png")
    np.testing.assert_array_equal(patchcluster.load_run(run.folder).scores, run.scores)


def test_deep_images_that_change_the_scale_of_all_are_refused(tmp_path):
    folder = tmp_path / "deep"
    folder.mkdir()
    for i, top in enumerate((900, 1000, 4000, 4000, 60_000)):
        values = textured_image(i)[:, :, 0].astype(np.uint16) * (top // 255)
        Image.fromarray(values).save(folder / f"part{i}.png")
    files = [str(folder / f"part{i}.png") for i in range(5)]
    run = scan_of(files[:3], tmp_path / "run", WHOLE)
    updated = patchcluster.update(run, add=files[3])
    assert_equal(updated, scan_of(files[:4], tmp_path / "fresh", WHOLE))
    with pytest.raises(RunError, match="more than 8 bits would be scaled in another way"):
        patchcluster.update(run, add=files[4])


UPDATE = """
import sys, os, signal, patchcluster
from patchcluster import storage, report, updating
stop, run, *added = sys.argv[1:]
def killed(*_, **__): os.kill(os.getpid(), signal.SIGKILL)
def progress(step, done, total):
    if step == stop and done: killed()
if stop == "results": patchcluster.runfolder.write_bank = killed
if stop == "settle": patchcluster.runfolder.keep_batches = killed
if stop == "page": patchcluster.scanning.write_report = killed
patchcluster.update(run, add=added, remove="part3.png", progress=progress)
"""


@pytest.mark.slow
@pytest.mark.parametrize("given", [WHOLE, BOUNDED], ids=["whole", "bounded"])
def test_killed_at_any_step_the_run_is_the_old_one_or_can_be_finished(images, tmp_path, given):
    run = scan_of(names_of(images, 0, 9), tmp_path / "run", given)
    scores, added = run.scores, names_of(images, 9, 12)
    left = [f for f in names_of(images, 0, 12) if not f.endswith("part3.png")]
    fresh = scan_of(left, tmp_path / "fresh", given)
    for stop in ("features", "compare"):
        command = [sys.executable, "-c", UPDATE, stop, str(run.folder), *added]
        assert subprocess.run(command).returncode == -9
        np.testing.assert_array_equal(patchcluster.load_run(run.folder).scores, scores)
    for stop in ("maps", "results", "settle", "page"):
        if stop == "settle" and not given:
            continue
        copy = tmp_path / stop
        shutil.copytree(run.folder, copy)
        command = [sys.executable, "-c", UPDATE, stop, str(copy), *added]
        assert subprocess.run(command).returncode == -9
        assert json.loads((copy / "run.json").read_text())["state"] in ("rescoring", "flagging")
        with pytest.raises(RunError, match="finishes it"):
            patchcluster.load_run(copy)
        if stop == "maps":  # or the same command
            patchcluster.update(copy, add=added, remove="part3.png")
        scanning.finish(copy)
        assert_equal(patchcluster.load_run(copy), fresh)
        assert not (copy / ".work").exists()


def test_on_the_command_line(images, tmp_path):
    run = scan_of(names_of(images, 0, 8), tmp_path / "run", WHOLE)
    nothing = run_command("update", run.folder)
    assert nothing.exit_code == 2
    assert "nothing to do: give --add INPUT or --remove NAME" in nothing.stderr
    added = names_of(images, 9, 10)[0]
    done = run_command("update", run.folder, "--add", added, "--remove", "part0.png", "--json")
    assert json.loads(done.stdout)["images"] == len(run)
    assert "1 images to add, 1 to remove" in done.stderr
