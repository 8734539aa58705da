"""Sets of images as they can be: too few, all alike, of many kinds, with copies of a defect."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

import patchcluster
from conftest import cut_batches, save_image, scan_until, textured_image, write_set
from faults.outcomes import Outcome, assert_one_line, invoke
from patchcluster.methods import METHODS
from patchcluster.runs.run import Run

pytestmark = pytest.mark.faults

SMALL = ("--size", 64, "--quiet")


def save(folder: Path, **images: np.ndarray) -> None:
    for name, image in images.items():
        save_image(folder / f"{name}.png", image)


def grey(value: int, side: int = 96) -> np.ndarray:
    return np.full((side, side, 3), value, np.uint8)


def save_alike(folder: Path, image: np.ndarray, count: int) -> None:
    """Files of different bytes and the same pixels."""
    for i in range(count):
        save_image(folder / f"alike{i}.png", image, compress_level=i)


def scan(root: Path, *options: object) -> tuple[Run, Outcome]:
    """Scan the folder images with the command, which must succeed."""
    outcome = invoke("scan", root / "images", "-o", root / "run", *SMALL, *options)
    assert outcome.code == 0, outcome.errors
    run = patchcluster.load_run(root / "run")
    assert np.isfinite(run.scores).all()
    return run, outcome


def draw_kind(kind: int, seed: int, blot: bool = False) -> np.ndarray:
    """An image of one of many kinds, uint8 [96, 96, 3]: each has its pattern and its colours."""
    looks, rng = np.random.default_rng(kind), np.random.default_rng([kind, seed])
    y, x = np.mgrid[:96, :96]
    a, b, c, d = looks.uniform(0.05, 0.6, 4)
    waves = np.sin(a * x + b * y + rng.uniform(0, 6)) + np.sin(c * x - d * y + rng.uniform(0, 6))
    image = np.where((waves > 0)[..., None], looks.uniform(60, 200, 3), looks.uniform(20, 250, 3))
    if blot:
        image[(x - 50) ** 2 + (y - 40) ** 2 < 100] = 20
    return np.clip(image + rng.normal(0, 6, image.shape), 0, 255).astype(np.uint8)


# --- too few, or nothing to tell apart ------------------------------------------------------------


def nothing(folder: Path) -> None:
    folder.mkdir()


def no_image(folder: Path) -> None:
    folder.mkdir()
    (folder / "notes.txt").write_text("x")
    (folder / "empty.png").touch()


def one(folder: Path) -> None:
    write_set(folder, 1)


def one_and_text(folder: Path) -> None:
    write_set(folder, 1)
    (folder / "notes.txt").write_text("x")


def all_identical(folder: Path) -> None:
    first = write_set(folder, 1)[0]
    for i in range(4):
        shutil.copy(first, folder / f"copy{i}.png")


def all_one_grey(folder: Path) -> None:
    save(folder, **{f"grey{i}": grey(100) for i in range(5)})


def pairs_of_two(folder: Path) -> None:
    for path in write_set(folder, 2):
        shutil.copy(path, folder / f"copy-{path.name}")


@dataclass(frozen=True)
class Refused:
    make: Callable[[Path], object]
    words: str


@pytest.mark.parametrize(
    "case",
    [
        Refused(nothing, "no files in .*: name a folder that holds images"),
        Refused(no_image, r"none of the 2 files is an image that can be read \(empty file"),
        Refused(one, "one image has nothing to be compared with: give at least 2 images"),
        Refused(one_and_text, "one image has nothing to be compared with: give at least 2 images"),
        Refused(
            all_identical, "5 of the files are images that can be read, and 1 differ: .*least 2"
        ),
        Refused(
            all_one_grey, "5 of the files are images that can be read, and 1 differ: .*least 2"
        ),
    ],
    ids=lambda case: case.make.__name__,
)
def test_a_set_without_two_different_images_is_refused(tmp_path, case):
    case.make(tmp_path / "images")
    outcome = invoke("scan", tmp_path / "images", "-o", tmp_path / "run", *SMALL)
    assert_one_line(outcome)
    assert re.search(case.words, outcome.errors)
    again = invoke("scan", tmp_path / "images", "-o", tmp_path / "run", *SMALL)
    assert_one_line(again)  # and the run that there may be by now says the same


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (lambda folder: write_set(folder, 2, blots=0), 2),
        (pairs_of_two, 4),
        (lambda folder: save_alike(folder, textured_image(1), 5), 5),
        (lambda folder: save_alike(folder, grey(100), 5), 5),
        (lambda folder: save(folder, black=grey(0), white=grey(255)), 2),
        (lambda folder: save(folder, **{f"g{v}": grey(v) for v in range(100, 106)}), 6),
        (lambda folder: save(folder, dot=grey(0, 4), spot=grey(9, 4), pixel=grey(99, 4)), 3),
    ],
    ids=["two", "two-twice", "alike", "alike-grey", "black-white", "greys", "pixels"],
)
def test_a_set_in_which_nothing_stands_out_is_scored_and_nothing_flagged(tmp_path, make, count):
    make(tmp_path / "images")
    run, outcome = scan(tmp_path, "--json")
    printed = json.loads(outcome.output)
    assert (printed["images"], printed["flagged"]) == (count, 0)
    assert "none is flagged" in printed["threshold"]["meaning"]
    assert all(np.isfinite(run.map(path)).all() for path in run.paths)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_scores_constant_and_equal_images(tmp_path, name, monkeypatch):
    monkeypatch.setattr("patchcluster.methods.reverse_distillation._STEPS", 1)  # for speed
    save_alike(tmp_path / "images", grey(99), 3)
    save(tmp_path / "images", lighter=grey(101), black=grey(0))
    run, _ = scan(tmp_path, "--method", name)
    scores = {Path(path).name: score for path, score in zip(run.paths, run.scores, strict=True)}
    assert scores["alike0.png"] == scores["alike1.png"] == scores["alike2.png"]


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"reverse-distillation"}))  # it takes long
def test_every_method_scores_two_images(tmp_path, name):
    write_set(tmp_path / "images", 2, blots=0)
    run, _ = scan(tmp_path, "--method", name)
    assert len(run) == 2


# --- copies of the one defect ---------------------------------------------------------------------


def rank_of(run: Run, name: str) -> int:
    return [Path(run.paths[i]).name for i in run.ranking].index(name)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """12 images, one with a defect."""
    folder = tmp_path_factory.mktemp("alone") / "images"
    write_set(folder, 12)
    return patchcluster.scan(folder, folder.parent / "run", size=(64,))


def test_exact_copies_rank_where_one_would(tmp_path, alone):
    images = tmp_path / "images"
    shutil.copytree(alone.info.inputs[0], images)
    for name in ("b.png", "z.png"):
        shutil.copy(images / "part11.png", images / name)
    run, outcome = scan(tmp_path)
    assert "copies  3 images in 1 group, scored once: see run.json" in outcome.output
    assert {rank_of(run, name) for name in ("b.png", "part11.png", "z.png")} == {0, 1, 2}
    for name in ("b.png", "part11.png", "z.png"):
        score = run.scores[run.index(name)]
        assert score == pytest.approx(alone.scores[alone.index("part11.png")], rel=1e-3)
    assert [{Path(path).name for path in group} for group in run.info.duplicates] == [
        {"b.png", "part11.png", "z.png"}
    ]
    for path in alone.paths:  # nor do the copies change the others
        assert run.scores[run.index(Path(path).name)] == pytest.approx(
            alone.scores[alone.index(path)], rel=1e-3
        )
    assert "1 group of exact duplicates" in (tmp_path / "run" / "report.html").read_text()


def save_again(image: Image.Image, path: Path) -> None:
    image.save(path, quality=85)


def brighten(image: Image.Image, path: Path) -> None:
    ImageEnhance.Brightness(image).enhance(1.03).save(path)


def shift(image: Image.Image, path: Path) -> None:
    Image.fromarray(np.roll(np.asarray(image), 1, axis=1)).save(path)


def add_noise(image: Image.Image, path: Path) -> None:
    noise = np.random.default_rng(0).normal(0, 2, (96, 96, 3))
    Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)).save(path)


def scale(image: Image.Image, path: Path) -> None:
    image.resize((80, 80), Image.Resampling.LANCZOS).resize((96, 96)).save(path)


@pytest.mark.parametrize(
    ("change", "ending"),
    [(save_again, "jpg"), (brighten, "png"), (shift, "png"), (add_noise, "png"), (scale, "png")],
    ids=["jpeg", "brighter", "shifted", "noise", "scaled"],
)
def test_near_duplicates_of_the_defect_do_not_hide_it_and_are_reported(
    tmp_path, alone, change, ending
):
    images = tmp_path / "images"
    shutil.copytree(alone.info.inputs[0], images)
    with Image.open(images / "part11.png") as image:
        change(image, images / f"again.{ending}")
    run, outcome = scan(tmp_path)
    assert {rank_of(run, "part11.png"), rank_of(run, f"again.{ending}")} == {0, 1}
    once = alone.scores[alone.index("part11.png")]
    assert run.scores[run.index("part11.png")] > 0.9 * once
    groups = [{Path(path).name for path in group} for group in run.info.near_duplicates]
    assert {"part11.png", f"again.{ending}"} in groups
    assert re.search(r"near-duplicates  \d+ images in \d+ groups?, not compared", outcome.output)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "of near-duplicates: not compared with each other" in page
    assert f"<li>{images}/again.{ending}, {images}/part11.png</li>" in page


def test_a_scan_that_goes_on_and_one_that_scores_again_know_the_near_duplicates(
    tmp_path, monkeypatch
):
    cut_batches(monkeypatch, patches=16)
    images, out = tmp_path / "images", tmp_path / "run"
    write_set(images, 8)
    save(images, again=np.roll(textured_image(7, 96, 96, True), 1, axis=1))
    scan_until("maps", images, out, size=(64,))
    resumed = patchcluster.scan(images, out, size=(64,)).info.near_duplicates
    assert resumed == patchcluster.scan(images, size=(64,)).info.near_duplicates
    pair = {str(images / "again.png"), str(images / "part7.png")}
    assert any(pair <= set(group) for group in resumed)
    labels = {"part7.png": "anomalous", "again.png": "normal"}
    labelled = patchcluster.scan(images, out, size=(64,), labels=labels)
    assert labelled.info.labels
    assert labelled.info.near_duplicates == resumed


def test_near_duplicates_within_a_mask_and_in_tiles(tmp_path):
    images = tmp_path / "images"
    for i in range(8):
        save(images, **{f"part{i}": textured_image(i, 160, 160, i == 7)})
    save(images, again=np.roll(textured_image(7, 160, 160, True), 1, axis=1))
    inside = np.zeros((160, 160), bool)
    inside[32:128, 32:] = True
    mask = save_image(tmp_path / "mask.png", inside)
    run = patchcluster.scan(images, size=(64,), tile=True, roi=mask)
    assert [str(images / "again.png"), str(images / "part7.png")] in run.info.near_duplicates


# --- of many shapes and kinds ---------------------------------------------------------------------


def test_a_constant_image_among_others_stands_out(tmp_path):
    write_set(tmp_path / "images", 10, blots=0)
    save(tmp_path / "images", black=grey(0))
    _, outcome = scan(tmp_path, "--json")
    printed = json.loads(outcome.output)
    assert Path(printed["top"][0]["path"]).name == "black.png"
    assert printed["top"][0]["flagged"]


def test_sizes_and_aspects_of_all_kinds_in_one_set(tmp_path):
    shapes = [
        (96, 96), (96, 100), (100, 96), (300, 40), (40, 300), (4, 4), (4, 700), (700, 4), (33, 31),
        (640, 480), (480, 640), (1200, 90), (64, 64), (2000, 1500),
    ]  # fmt: skip
    for i, (width, height) in enumerate(shapes):
        save(tmp_path / "images", **{f"p{i}": textured_image(i, width, height, i == 9)})
    run, _ = scan(tmp_path)
    for i, (width, height) in enumerate(shapes):
        assert run.map(f"p{i}.png").shape == (height, width)
    padim = invoke("scan", tmp_path / "images", "--method", "padim", *SMALL)
    assert_one_line(padim, "padim needs images of one shape")


def test_ten_kinds_in_one_folder(tmp_path):
    """Images of a kind are compared with each other, not taken for photographs of one part."""
    for kind in range(10):
        for i in range(8):
            blot = (kind, i) == (3, 2)
            save(tmp_path / "images", **{f"kind{kind}-{i}": draw_kind(kind, i, blot)})
    run = patchcluster.scan(tmp_path / "images", tmp_path / "run", size=(64,))
    assert rank_of(run, "kind3-2.png") == 0
    assert run.flagged[run.paths.index(str(tmp_path / "images" / "kind3-2.png"))]
    nearest = [
        Path(path).name[:5] == Path(other).name[:5]
        for path, other in zip(run.paths, run.nearest, strict=True)
    ]
    assert np.mean(nearest) > 0.9
