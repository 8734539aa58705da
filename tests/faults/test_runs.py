"""Runs that were edited, cut short, or made by somebody who means harm."""

import base64
import contextlib
import csv
import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import patchcluster
from conftest import PATIENCE, read_files, scan_until, write_set
from faults.outcomes import Outcome, assert_one_line, invoke
from patchcluster.errors import PatchclusterError

pytestmark = pytest.mark.faults

SECRET = b"what nobody has asked for"
# Every command that reads a run, on the run "run" beside new images in "images".
READERS = (
    ("report", "run"),
    ("score", "run", "images", "--quiet"),
    ("evaluate", "run", "--truth", "truth"),
    ("scan", "images", "-o", "run", "--size", "64", "--quiet"),
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with images, truth and a finished run of them; and a secret outside of it."""
    root = tmp_path_factory.mktemp("runs") / "inside"
    write_set(root / "images")
    (root / "truth").mkdir()
    (root.parent / "secret.npy").write_bytes(SECRET)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patchcluster.scan("images", "run", size=(64,))
    return root


@pytest.fixture
def place(whole, tmp_path, monkeypatch):
    """A copy that may be changed, as the working folder."""
    shutil.copytree(whole, tmp_path / "inside")
    shutil.copy(whole.parent / "secret.npy", tmp_path)
    monkeypatch.chdir(tmp_path / "inside")
    return tmp_path / "inside"


def edit(path: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    """A change of what lies at a path of run.json, such as "images.0.id"."""

    def apply(run: Path) -> None:
        value = json.loads((run / "run.json").read_text())
        *steps, last = [int(step) if step.isdigit() else step for step in path.split(".")]
        at = value
        for step in steps:
            at = at[step]
        at[last] = change(at[last] if isinstance(at, list) else at.get(last))
        (run / "run.json").write_text(json.dumps(value))

    return apply


def put(path: str, value: Any) -> Callable[[Path], None]:
    return edit(path, lambda _: value)


def remove(name: str) -> Callable[[Path], None]:
    def apply(run: Path) -> None:
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return apply


def cut(name: str, share: float = 0.5) -> Callable[[Path], None]:
    def apply(run: Path) -> None:
        data = (run / name).read_bytes()
        (run / name).write_bytes(data[: int(share * len(data))])

    return apply


def fill(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda run: (run / name).write_bytes(data) and None


def make_folder(name: str) -> Callable[[Path], None]:
    def apply(run: Path) -> None:
        (run / name).unlink()
        (run / name).mkdir()

    return apply


def edit_scores(change: Callable[[list[list[str]]], Any]) -> Callable[[Path], None]:
    def apply(run: Path) -> None:
        with open(run / "scores.csv", newline="") as file:
            rows = list(csv.reader(file))
        change(rows)
        with open(run / "scores.csv", "w", newline="") as file:
            csv.writer(file).writerows(rows)

    return apply


def set_score(text: str) -> Callable[[Path], None]:
    return edit_scores(lambda rows: rows[1].__setitem__(2, text))


DAMAGED_INFO = {
    "no run.json": remove("run.json"),
    "run.json cut": cut("run.json"),
    "run.json empty": fill("run.json", b""),
    "run.json binary": fill("run.json", bytes(range(256))),
    "run.json a list": fill("run.json", b"[]"),
    "run.json null": fill("run.json", b"null"),
    "run.json deep": fill("run.json", b"[" * 100_000),
    "run.json a folder": make_folder("run.json"),
    "no images": put("images", None),
    "images text": put("images", "part1.png"),
    "id negative": put("images.0.id", -1),
    "id text": put("images.0.id", "../../secret"),
    "id huge": put("images.0.id", 10**30),
    "ids equal": put("images.0.id", 1),
    "paths equal": edit("images", lambda images: [images[0] | {"id": 90}, *images]),
    "path no text": put("images.0.path", 7),
    "width zero": put("images.0.width", 0),
    "height a share": put("images.0.height", 9.5),
    "roi outside": put("images.0.roi", "../../secret"),
    "hash no hash": put("images.0.sha256", "../../x"),
    "unknown key": put("surprise", 1),
    "state unknown": put("state", "perfect"),
    "newer format": put("format", 99),
    "earlier format": put("format", 1),
    "format text": put("format", "newest"),
    "settings no settings": put("settings", 5),
    "setting unknown": put("settings.surprise", 5),
    "method unknown": put("settings.method", "nope"),
    "threshold gone": put("threshold", {}),
    "threshold text": put("threshold.value", "high"),
    "threshold nan": put("threshold.value", float("nan")),
    "baseline text": put("baseline", {"surprise": 1}),
    "set of no images": put("set_scores.images", 0),
    "set that deviates below 0": put("set_scores.deviation", -0.1),
    "channels text": put("backbone.channels", ["wide"]),
    "labels unknown": put("labels", {"images/part1.png": "lovely"}),
    "flagging unknown": put("flagging", {"surprise": 3}),
}


@pytest.mark.parametrize("name", DAMAGED_INFO)
def test_a_damaged_run_json_is_one_line_from_every_command(place, name):
    DAMAGED_INFO[name](place / "run")
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    with pytest.raises(PatchclusterError):
        patchcluster.load_run("run")
    for command in READERS[:-1] if name == "no run.json" else READERS:
        assert_one_line(invoke(*command))
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before


DAMAGED_SCORES = {
    "no scores.csv": remove("scores.csv"),
    "scores.csv cut": cut("scores.csv"),
    "scores.csv empty": fill("scores.csv", b""),
    "scores.csv binary": fill("scores.csv", bytes(range(256))),
    "scores.csv a folder": make_folder("scores.csv"),
    "a row gone": edit_scores(lambda rows: rows.pop()),
    "a column gone": edit_scores(lambda rows: [row.pop(2) for row in rows]),
    "score text": set_score("high"),
    "score empty": set_score(""),
    "score nan": set_score("nan"),
    "score infinite": set_score("inf"),
    "another path": edit_scores(lambda rows: rows[1].__setitem__(1, "../../secret.npy")),
}


@pytest.mark.parametrize("name", DAMAGED_SCORES)
def test_damaged_scores_are_one_line_from_what_reads_them(place, name):
    DAMAGED_SCORES[name](place / "run")
    with pytest.raises(PatchclusterError, match=r"scores\.csv"):
        patchcluster.load_run("run")
    for command in READERS[:-1]:
        assert_one_line(invoke(*command), "scores.csv")


@dataclass(frozen=True)
class Part:
    """A file of a run that is damaged, and what a command that needs it must say."""

    damage: Callable[[Path], None]
    command: tuple[str, ...]
    words: str


REPORT, SCORE = READERS[0], READERS[1]
PARTS = {
    "no map": Part(remove("maps/000003.npy"), REPORT, "000003.npy"),
    "map cut": Part(cut("maps/000003.npy"), REPORT, "000003.npy"),
    "map empty": Part(fill("maps/000003.npy", b""), REPORT, "000003.npy"),
    "map pickled": Part(
        lambda run: np.save(run / "maps/000003.npy", np.array([{}], object)), REPORT, "000003.npy"
    ),
    "map of text": Part(
        lambda run: np.save(run / "maps/000003.npy", np.array([["a"]])), REPORT, "000003.npy"
    ),
    "map of one dimension": Part(
        lambda run: np.save(run / "maps/000003.npy", np.zeros(5, np.float16)), REPORT, "000003.npy"
    ),
    "map of nothing": Part(
        lambda run: np.save(run / "maps/000003.npy", np.zeros((0, 4), np.float16)),
        REPORT,
        "000003.npy",
    ),
    "map of nan": Part(
        lambda run: np.save(run / "maps/000003.npy", np.full((8, 8), np.nan, np.float16)),
        REPORT,
        "000003.npy",
    ),
    "no thumbnail": Part(remove("thumbnails/000001.jpg"), REPORT, "000001.jpg"),
    "no neighbours": Part(remove("neighbours.safetensors"), REPORT, "neighbours.safetensors"),
    "neighbours cut": Part(cut("neighbours.safetensors"), REPORT, "neighbours.safetensors"),
    "no bank": Part(remove("bank.safetensors"), SCORE, "bank.safetensors"),
    "bank cut": Part(cut("bank.safetensors"), SCORE, "bank.safetensors"),
    "bank text": Part(fill("bank.safetensors", b"bank"), SCORE, "bank.safetensors"),
    "bank of another": Part(
        lambda run: shutil.copy(run / "neighbours.safetensors", run / "bank.safetensors"),
        SCORE,
        "bank.safetensors",
    ),
    "weights of another network": Part(put("backbone.sha256", "00"), SCORE, "weights"),
    "network unknown": Part(put("settings.backbone", "nope"), SCORE, "nope"),
    "weights gone": Part(put("settings.weights", "../gone.pth"), SCORE, "gone.pth"),
}


@pytest.mark.parametrize("name", PARTS)
def test_a_damaged_part_is_one_line_from_what_needs_it(place, name):
    part = PARTS[name]
    part.damage(place / "run")
    assert_one_line(invoke(*part.command), part.words)


DAMAGED_REGIONS = {
    "gone": remove("regions.csv"),
    "cut in the header": cut("regions.csv", 0.3),
    "cut in a row": cut("regions.csv", 0.8),
    "without its last byte": lambda run: fill(
        "regions.csv", (run / "regions.csv").read_bytes()[:-1]
    )(run),
    "bytes": fill("regions.csv", bytes(range(256))),
}


@pytest.mark.parametrize("damage", DAMAGED_REGIONS)
def test_regions_that_are_damaged_are_one_line_and_the_report_finds_them_again(place, damage):
    expected = patchcluster.load_run("run").regions("part7.png")
    assert expected
    DAMAGED_REGIONS[damage](place / "run")
    with pytest.raises(PatchclusterError, match=r"regions\.csv"):
        patchcluster.load_run("run").regions("part7.png")
    outcome = invoke("report", "run")
    assert outcome.code == 0, outcome.errors
    assert patchcluster.load_run("run").regions("part7.png") == expected


def test_nothing_outside_the_run_is_read_for_a_path_of_it(place):
    """An image's own path may lie anywhere; what the run says of its files may not."""
    put("images.0.path", "../secret.npy")(place / "run")
    edit_scores(
        lambda rows: [r.__setitem__(1, "../secret.npy") for r in rows if r[1].endswith("part0.png")]
    )(place / "run")
    outcome = invoke("report", "run")
    assert outcome.code == 0, outcome.errors
    written = b"".join(data for data, _ in read_files(place / "run").values())
    assert SECRET not in written
    assert base64.b64encode(SECRET) not in written


def fill_history(statement: str) -> Callable[[Path], None]:
    def apply(run: Path) -> None:
        with contextlib.closing(sqlite3.connect(run / "labels.sqlite")) as connection:
            connection.executescript(statement)

    return apply


HISTORY = """
create table history (id, time, path, label, who, action, undoes);
insert into history values (1, '', 'images/part1.png', 'lovely', 'me', 1, null);
"""
LABELS = {
    "text": fill("labels.sqlite", b"labels"),
    "zeros": fill("labels.sqlite", b"SQLite format 3\0" + b"\0" * 84),
    "another table": fill_history("create table history (surprise);"),
    "label unknown": fill_history(HISTORY),
}


@pytest.mark.parametrize("name", LABELS)
def test_damaged_labels_are_one_line(place, name):
    LABELS[name](place / "run")
    command = [sys.executable, "-m", "patchcluster", "review", "run", "--no-browser"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert_one_line(Outcome(done.returncode, done.stdout, done.stderr), "labels.sqlite")


def test_a_run_in_progress_of_another_is_not_gone_on_with(place):
    put("state", "running")(place / "run")
    put("settings.frame", 200)(place / "run")
    outcome: Outcome = invoke(*READERS[-1])
    assert_one_line(outcome, "other inputs or settings", "--overwrite")


@pytest.mark.parametrize(
    "damage",
    [
        cut(".work/features-000000.safetensors"),
        fill(".work/features-000000.safetensors", b""),
        fill(".work/fitted-64.safetensors", b"fitted"),
        fill(".work/comparison-64-000000.safetensors", b"\0" * 400),
    ],
)
def test_damaged_work_of_an_unfinished_scan_is_done_again(place, damage):
    expected = patchcluster.load_run("run").scores
    shutil.rmtree("run")
    scan_until("maps", "images", place / "run", size=(64,))  # when all work lies there
    damage(place / "run")
    assert patchcluster.scan("images", "run", size=(64,)).scores.tolist() == expected.tolist()
