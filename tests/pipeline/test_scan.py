"""The main job, end to end, on small images."""

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import patchcluster
from conftest import cut_batches, read_files, save_image, scan_until, textured_image, write_set
from patchcluster.errors import InputError, PatchclusterError, RunError, SettingError
from patchcluster.runs import tables
from patchcluster.scores.maps import find_regions, fuse

SIZE = (128,)  # small and fast


def scores_of(run):
    return {Path(path).name: score for path, score in zip(run.paths, run.scores, strict=True)}


# --- what a run holds ---------------------------------------------------------------------------


def test_the_odd_image_ranks_first_and_is_located(small_run):
    worst = small_run.paths[small_run.ranking[0]]
    assert worst.endswith("part7.png")
    image = np.asarray(Image.open(worst)).astype(int)
    blot_y, blot_x = (float(v.mean()) for v in np.nonzero(image.sum(2) < 150))
    peak_y, peak_x = np.unravel_index(small_run.map(worst).argmax(), (96, 96))
    assert np.hypot(peak_y - blot_y, peak_x - blot_x) < 12


def test_scores_csv_is_ranked_and_agrees_with_the_run(small_run):
    with open(small_run.folder / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == tables.SCORES_HEADER
    assert [int(row["rank"]) for row in rows] == list(range(1, 9))
    assert [row["path"] for row in rows] == [small_run.paths[i] for i in small_run.ranking]
    values = [float(row["score"]) for row in rows]
    assert values == sorted(values, reverse=True)
    assert float(rows[0]["percentile"]) == 100
    assert float(rows[-1]["percentile"]) == 0
    flags = {row["path"]: row["flagged"] == "true" for row in rows}
    assert [flags[path] for path in small_run.paths] == small_run.flagged.tolist()
    assert (small_run.flagged == (small_run.scores > small_run.threshold.value)).all()
    assert all(row["nearest"] in small_run.paths and row["nearest"] != row["path"] for row in rows)


def test_regions_csv_agrees_with_the_maps(small_run):
    with open(small_run.folder / "regions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows
    assert list(rows[0]) == tables.REGIONS_HEADER
    for path in small_run.paths:
        expected = find_regions(small_run.map(path), small_run.map_threshold(path))
        found = small_run.regions(path)
        assert len(found) == len(expected) == sum(row["path"] == path for row in rows)
        for a, b in zip(found, expected, strict=True):
            assert (a.x, a.y, a.width, a.height, a.area) == (b.x, b.y, b.width, b.height, b.area)
            assert a.peak == pytest.approx(b.peak)


def test_maps_are_plain_arrays_at_the_resolution_of_the_score_grid(small_run):
    for image in small_run.images:
        grid = np.load(small_run.folder / "maps" / f"{image.id:06d}.npy", allow_pickle=False)
        assert (grid.dtype, grid.shape) == (np.float16, (8, 8))


def test_run_json_says_what_was_done(small_run):
    value = json.loads((small_run.folder / "run.json").read_text())
    assert value["state"] == "complete"
    assert value["settings"]["size"] == [128]
    assert value["backbone"]["name"] == "tf_efficientnet_lite0"
    assert len(value["backbone"]["sha256"]) == 64
    assert {"torch", "timm", "numpy", "python"} <= set(value["versions"])
    assert {"survey", "features", "compare"} <= set(value["seconds"])
    assert value["memory"]["predicted"] > 0
    first = value["images"][0]
    assert first["bytes"] == os.path.getsize(first["path"])
    assert not (small_run.folder / ".work").exists()


def test_neighbours_are_places_in_other_images_nearest_first(small_run):
    path = small_run.paths[7]
    found = small_run.neighbours("part7.png", 50.0, 40.0)
    assert len({n.path for n in found}) == 3
    assert path not in [n.path for n in found]
    assert [n.distance for n in found] == sorted(n.distance for n in found)
    assert all(0 < n.x < 96 and 0 < n.y < 96 for n in found)
    with pytest.raises(InputError, match="outside"):
        small_run.neighbours("part7.png", 96, 0)


def test_images_are_named_by_path_or_by_an_end_of_it_that_fits_one(small_run):
    assert small_run.index("part2.png") == small_run.index(small_run.paths[2]) == 2
    assert small_run.index("images/part2.png") == 2
    with pytest.raises(InputError, match="not among the images"):
        small_run.map("art2.png")


def test_a_run_loads_again_from_disk(small_run):
    again = patchcluster.load_run(small_run.folder)
    np.testing.assert_array_equal(again.scores, small_run.scores)
    assert again.paths == small_run.paths
    assert "8 images" in repr(again)


# --- what may not change the scores -------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_do_not_change_the_scores(tmp_path, small_run, threads):
    usual = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        run = patchcluster.scan(small_run.info.inputs, tmp_path / "run", size=SIZE)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(usual)
    np.testing.assert_allclose(run.scores, small_run.scores, rtol=1e-3)
    assert run.flagged.tolist() == small_run.flagged.tolist()


def test_order_and_names_of_the_files_do_not_change_the_scores(tmp_path, small_run):
    names = {}
    (tmp_path / "other").mkdir()
    for i, path in enumerate(reversed(small_run.paths)):
        name = f"{chr(97 + (i * 5) % 8)}.png"
        names[name] = Path(path).name
        shutil.copy(path, tmp_path / "other" / name)
    run = patchcluster.scan(tmp_path / "other", size=SIZE)
    original = scores_of(small_run)
    for name, score in scores_of(run).items():
        assert score == pytest.approx(original[names[name]], rel=1e-3)


@pytest.mark.usefixtures("small_batches")
def test_batch_size_does_not_change_the_scores(small_run):
    run = patchcluster.scan(small_run.info.inputs, size=SIZE)
    np.testing.assert_allclose(run.scores, small_run.scores, rtol=1e-3)


def test_copies_of_an_anomaly_do_not_hide_it(tmp_path, small_run):
    shutil.copytree(small_run.info.inputs[0], tmp_path / "images")
    for copy in ("copy1.png", "copy2.png"):
        shutil.copy(tmp_path / "images" / "part7.png", tmp_path / "images" / copy)
    run = patchcluster.scan(tmp_path / "images", size=SIZE)
    scores = scores_of(run)
    assert scores["part7.png"] == scores["copy1.png"] == scores["copy2.png"]
    assert scores["part7.png"] == pytest.approx(scores_of(small_run)["part7.png"], rel=1e-3)
    assert [len(group) for group in run.info.duplicates] == [3]


# --- inputs of all kinds ------------------------------------------------------------------------


def test_bad_files_are_listed_with_reasons_and_the_others_are_scored(tmp_path):
    paths = write_set(tmp_path / "images")
    folder = tmp_path / "images"
    (folder / "notes.txt").write_text("not an image")
    (folder / "empty.png").touch()
    data = paths[0].read_bytes()
    (folder / "half.png").write_bytes(data[: len(data) // 2])
    run = patchcluster.scan(folder, tmp_path / "run", size=SIZE)
    reasons = {Path(skip.path).name: skip.reason for skip in run.skipped}
    assert set(reasons) == {"notes.txt", "empty.png", "half.png"}
    assert "not an image" in reasons["notes.txt"]
    assert "0 bytes" in reasons["empty.png"]
    assert "damaged" in reasons["half.png"]
    assert len(run) == 8


def test_it_is_said_of_how_many_files_the_first_page_is_scored(tmp_path):
    first, second = (Image.fromarray(textured_image(seed, 96, 96)) for seed in (1, 2))
    folder, told = tmp_path / "images", []
    folder.mkdir()
    first.save(folder / "one.tif")
    first.save(folder / "two.tif", save_all=True, append_images=[second])
    first.save(folder / "two.webp", save_all=True, append_images=[second], lossless=True)
    second.save(folder / "other.png")
    run = patchcluster.scan(folder, size=SIZE, tell=told.append)
    assert "files with several pages or frames: 2 (the first of each is scored)" in told
    assert scores_of(run)["one.tif"] == pytest.approx(scores_of(run)["two.tif"], rel=1e-3)


def test_sizes_and_aspects_may_be_mixed(tmp_path):
    folder = tmp_path / "images"
    shapes = [(96, 96), (200, 80), (80, 200), (96, 96), (150, 100), (20, 30)]
    for i, (width, height) in enumerate(shapes):
        save_image(folder / f"{i}.png", textured_image(i, width, height))
    run = patchcluster.scan(folder, size=SIZE)
    for i, (width, height) in enumerate(shapes):
        image_map = run.map(f"{i}.png")
        assert (image_map.dtype, image_map.shape) == (np.float32, (height, width))
    assert np.isfinite(run.scores).all()
    found = run.neighbours("1.png", 199, 79)
    assert all((n.x, n.y) < shapes[int(Path(n.path).stem)] for n in found)


def test_two_sizes_are_fused(small_run):
    run = patchcluster.scan(small_run.info.inputs, size=(96, 128))
    assert run.grid("part0.png").shape == (8, 8)
    assert run.paths[run.ranking[0]].endswith("part7.png")
    one = patchcluster.scan(small_run.info.inputs, size=(96,))
    expected = fuse([one.grid("part7.png"), small_run.grid("part7.png")])
    np.testing.assert_allclose(run.grid("part7.png"), expected, rtol=5e-3)


def test_a_method_for_one_size_says_so_before_the_work(tmp_path):
    write_set(tmp_path / "images", 2)
    save_image(tmp_path / "images" / "wide.png", textured_image(7, width=192))
    steps = []
    with pytest.raises(SettingError, match=r"padim needs images of one shape.*96 x 96"):
        patchcluster.scan(
            tmp_path / "images",
            method="padim",
            size=(96,),
            progress=lambda step, *_: steps.append(step),
        )
    assert set(steps) == {"survey"}


# --- the run folder and time --------------------------------------------------------------------


@pytest.fixture
def copied(small_run, tmp_path):
    """The finished run, to be changed."""
    return patchcluster.load_run(shutil.copytree(small_run.folder, tmp_path / "run"))


def test_a_finished_scan_is_not_done_again(copied):
    before, steps = read_files(copied.folder), []
    run = patchcluster.scan(
        copied.info.inputs, copied.folder, size=SIZE, progress=lambda *s: steps.append(s)
    )
    assert len(run) == 8
    assert not steps
    assert read_files(copied.folder) == before


def test_a_run_of_something_else_is_kept_unless_overwrite_is_given(tmp_path):
    paths = write_set(tmp_path / "images", 4)
    out = tmp_path / "run"
    patchcluster.scan(tmp_path / "images", out, size=SIZE)
    with pytest.raises(RunError, match="--overwrite"):
        patchcluster.scan(tmp_path / "images", out, size=(96,))
    save_image(paths[1], textured_image(99))
    with pytest.raises(RunError, match="changed"):
        patchcluster.scan(tmp_path / "images", out, size=SIZE)
    paths[0].unlink()
    with pytest.raises(RunError, match="changed"):
        patchcluster.scan(tmp_path / "images", out, size=SIZE)
    assert len(patchcluster.scan(tmp_path / "images", out, size=SIZE, overwrite=True)) == 3


@pytest.mark.parametrize(
    "mistake", [{"inputs": "nowhere"}, {"backbone": "nope"}, {"max_memory": "1MB"}]
)
def test_overwrite_keeps_the_old_run_until_the_new_one_can_start(copied, mistake):
    before = read_files(copied.folder)
    with pytest.raises(PatchclusterError):
        patchcluster.scan(
            output=copied.folder, overwrite=True, **{"inputs": copied.info.inputs, **mistake}
        )
    assert read_files(copied.folder) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_other_files_are_never_touched(tmp_path, overwrite):
    write_set(tmp_path / "images", 3)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.doc").write_text("dear")
    with pytest.raises(RunError, match=r"thesis\.doc"):
        patchcluster.scan(tmp_path / "images", tmp_path / "out", size=SIZE, overwrite=overwrite)
    assert (tmp_path / "out" / "thesis.doc").read_text() == "dear"


@pytest.mark.usefixtures("small_batches")
def test_a_scan_that_resumes_does_nothing_twice(tmp_path):
    images, out = tmp_path / "images", tmp_path / "run"
    write_set(images, 9)
    kept = {}
    for step in ("features", "compare", "maps"):
        scan_until(step, images, out, size=SIZE)
        with pytest.raises(RunError, match="not finished"):
            patchcluster.load_run(out)
        files = read_files(out / ".work")
        assert kept.items() < files.items()
        kept = files
    resumed = patchcluster.scan(images, out, size=SIZE)
    fresh = patchcluster.scan(images, tmp_path / "fresh", size=SIZE)
    np.testing.assert_array_equal(resumed.scores, fresh.scores)
    assert read_files(out).keys() == read_files(tmp_path / "fresh").keys()


@pytest.mark.usefixtures("small_batches")
def test_files_may_come_and_go_between_an_interruption_and_the_next_start(tmp_path):
    images, out = tmp_path / "images", tmp_path / "run"
    paths = write_set(images, 9)
    scan_until("compare", images, out, size=SIZE)
    for path in paths[:3]:
        path.unlink()
    save_image(images / "new.png", textured_image(50))
    resumed = patchcluster.scan(images, out, size=SIZE)
    fresh = patchcluster.scan(images, tmp_path / "fresh", size=SIZE)
    assert resumed.paths == fresh.paths
    np.testing.assert_array_equal(resumed.scores, fresh.scores)


def test_comparisons_of_other_batches_are_not_taken_up(tmp_path, monkeypatch):
    images, out = tmp_path / "images", tmp_path / "run"
    write_set(images, 9)
    scan_until("maps", images, out, size=SIZE)
    cut_batches(monkeypatch, patches=4 * 8 * 8)
    resumed = patchcluster.scan(images, out, size=SIZE)
    fresh = patchcluster.scan(images, tmp_path / "fresh", size=SIZE)
    np.testing.assert_array_equal(resumed.scores, fresh.scores)


@pytest.mark.parametrize(("written", "words"), [(1, "of an earlier"), (99, "of a newer")])
def test_a_run_of_another_version_is_told_from_a_damaged_one(copied, written, words):
    file = copied.folder / "run.json"
    info = json.loads(file.read_text())
    assert info["format"] not in (written, None)
    file.write_text(json.dumps(info | {"format": written, "new": 1}))
    with pytest.raises(RunError, match=f"is {words} patchcluster"):
        patchcluster.load_run(copied.folder)


def test_deep_images_have_one_window_that_can_be_given(tmp_path):
    for i in range(4):
        values = textured_image(i).astype(np.uint16)[..., 0] * 4 + 51_200
        values[3, i] = 65_535
        save_image(tmp_path / "set" / f"{i}.png", values)
    run = patchcluster.scan(tmp_path / "set", tmp_path / "run", size=SIZE)
    low, high = run.info.windows["integer"]
    assert 51_000 < low < high < 52_600
    assert f"black at {low:g}, white at {high:g}" in (run.folder / "report.html").read_text()
    asked = patchcluster.scan(
        tmp_path / "set", tmp_path / "asked", size=SIZE, window=(51_000, 53_000)
    )
    assert asked.info.windows == {"integer": [51_000, 53_000]}
    assert list(asked.scores) != list(run.scores)


def test_a_window_is_refused_where_no_image_is_deep(tmp_path):
    for i in range(3):
        save_image(tmp_path / "set" / f"{i}.png", textured_image(i))
    with pytest.raises(SettingError, match="more than 8 bits, and none has"):
        patchcluster.scan(tmp_path / "set", tmp_path / "run", size=SIZE, window=(0, 4095))
    with pytest.raises(SettingError, match="the lower one first"):
        patchcluster.scan(tmp_path / "set", tmp_path / "run", size=SIZE, window=(9, 4))
