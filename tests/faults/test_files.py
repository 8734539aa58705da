"""File systems as they can be: what a scan reads, and where it writes."""

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import patchcluster
from conftest import textured_image, write_set
from faults.filesystem import UNLISTED, make_cases
from faults.outcomes import (
    Outcome,
    assert_one_line,
    assert_usage,
    invoke,
    invoke_as_user,
    make_read_only,
    mounted,
)
from patchcluster.errors import InputError, RunError

pytestmark = pytest.mark.faults

CASES = make_cases()
SMALL = ("--size", 64, "--quiet")


# --- what is found in a folder --------------------------------------------------------------------


@pytest.fixture(scope="module")
def scanned(tmp_path_factory):
    """One scan of all cases beside 8 ordinary images: its run, and what the command printed."""
    root = tmp_path_factory.mktemp("files")
    write_set(root / "images")
    (root / "outside").mkdir()
    Image.fromarray(textured_image(99)).save(root / "outside" / "one.png")
    for case in CASES:
        case.make(root / "images" / case.name)
    (outcome,) = invoke_as_user([["scan", "images", "-o", "run", *SMALL, "--json"]], root)
    assert outcome.code == 0, outcome.errors
    assert outcome.errors == ""
    return patchcluster.load_run(root / "run"), json.loads(outcome.output)


@pytest.mark.parametrize("case", CASES, ids=lambda case: ascii(case.name)[1:40])
def test_an_entry_is_scored_skipped_with_the_reason_or_left_out(scanned, case):
    run, printed = scanned
    path = f"images/{case.name}"
    skipped = {skip.path: skip.reason for skip in run.skipped}
    if case.reason is None:
        assert path not in skipped
        assert path not in run.paths
    elif case.reason:
        assert case.reason in skipped[path]
        assert {"path": path, "reason": skipped[path]} in printed["skipped"]
        assert path not in run.paths
    else:
        assert path not in skipped, skipped[path]
        assert run.scores[run.index(path)] >= 0
        assert run.map(path).shape == (96, 96)


def test_a_folder_too_deep_for_a_path_is_skipped(scanned):
    deep = [skip for skip in scanned[0].skipped if skip.path.startswith("images/" + "d" * 250)]
    assert [skip.reason for skip in deep] == [os.strerror(errno.ENAMETOOLONG).lower()]


def test_links_to_a_file_are_copies_of_it(scanned):
    run, _ = scanned
    copies = {frozenset(Path(path).name for path in group) for group in run.info.duplicates}
    assert {"part0.png", "to-file.png", "hard-link.png"} in copies
    assert {"one.png", "to-file-outside.png", "to-link.png"} in copies


def test_nothing_is_listed_twice_and_nothing_else_is(scanned):
    run, printed = scanned
    listed = [*run.paths, *(skip.path for skip in run.skipped)]
    assert len(set(listed)) == len(listed)
    expected = {f"images/{case.name}" for case in CASES if case.reason is not None}
    more = {"images/parent/outside/one.png"} | {f"images/part{i}.png" for i in range(8)}
    rest = set(listed) - expected - more
    assert len(rest) == 1  # the deep one
    assert printed["images"] == len(run)


def test_the_same_scan_again_takes_all_names_as_they_are(scanned):
    run, _ = scanned
    (outcome,) = invoke_as_user(
        [["scan", "images", "-o", "run", *SMALL, "--json"]], run.folder.parent
    )
    assert outcome.code == 0, outcome.errors
    assert json.loads(outcome.output)["images"] == len(run)


# --- what changes during the scan -----------------------------------------------------------------


def replace(path: Path, image: np.ndarray, **options: object) -> None:
    Image.fromarray(image).save(path, **options)


def to_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def to_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def to_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


CHANGES = {
    "gone": (Path.unlink, "no such file"),
    "empty": (lambda p: p.write_bytes(b""), "empty file"),
    "text": (lambda p: p.write_text("no image any more"), "not an image"),
    "cut": (lambda p: os.truncate(p, 400), "damaged"),
    "pipe": (to_pipe, "not a regular file"),
    "folder": (to_folder, UNLISTED),
    "loop": (to_loop, "too many levels"),
    "larger": (lambda p: replace(p, textured_image(3, 128, 128)), "changed while"),
    "turned": (lambda p: replace(p, textured_image(3, 90, 96)), "changed while"),
    "deep": (lambda p: replace(p, np.full((96, 96), 4000, np.uint16)), "changed while"),
    "other": (lambda p: replace(p, textured_image(77)), ""),  # it is scored as it is now
    "touched": (lambda p: os.utime(p, (0, 0)), ""),
    "moved": (lambda p: p.rename(p.with_suffix(".gone")), "no such file"),
}


@pytest.fixture(scope="module")
def changed(tmp_path_factory):
    """A scan of images that change after their headers were read."""
    folder = tmp_path_factory.mktemp("changing") / "images"
    write_set(folder)
    for i, name in enumerate(CHANGES):
        replace(folder / f"{name}.png", textured_image(20 + i))

    def step(name, done, total):
        if name == "survey" and done == total:
            for name, (change, _) in CHANGES.items():
                change(folder / f"{name}.png")

    return patchcluster.scan(folder, folder.parent / "run", size=(64,), progress=step)


@pytest.mark.parametrize("name", CHANGES)
def test_a_file_that_changes_during_the_scan_is_skipped_or_scored_as_it_is_now(changed, name):
    reason = CHANGES[name][1]
    skipped = {Path(skip.path).stem: skip.reason for skip in changed.skipped}
    if reason:
        assert reason in skipped[name]
        assert len(changed) + len(skipped) == 8 + len(CHANGES)
        return
    image = changed.images[changed.index(f"{name}.png")]
    assert image.bytes == os.path.getsize(image.path)
    fresh = patchcluster.scan(changed.info.inputs, size=(64,))
    assert fresh.images[fresh.index(f"{name}.png")].sha256 == image.sha256


def test_a_file_that_vanishes_before_its_header_is_read_is_skipped(tmp_path, monkeypatch):
    write_set(tmp_path / "images", 4)
    find = patchcluster.pipeline.scanning.find_images

    def find_and_lose(*args):
        found = find(*args)
        (tmp_path / "images" / "part2.png").unlink()
        return found

    monkeypatch.setattr("patchcluster.pipeline.scanning.find_images", find_and_lose)
    run = patchcluster.scan(tmp_path / "images", size=(64,))
    assert [(Path(s.path).name, s.reason) for s in run.skipped] == [
        ("part2.png", "no such file or directory")
    ]


def test_all_files_vanish(tmp_path):
    images = tmp_path / "images"
    write_set(images, 3)

    def step(name, done, total):
        if name == "survey" and done == total:
            shutil.rmtree(images)

    with pytest.raises(InputError, match="0 of the files are images that can be read"):
        patchcluster.scan(images, tmp_path / "run", size=(64,), progress=step)
    with pytest.raises(RunError, match="not finished"):
        patchcluster.load_run(tmp_path / "run")


def test_a_finished_run_whose_image_is_a_link_to_nothing_by_now(tmp_path):
    write_set(tmp_path / "images", 3)
    replace(tmp_path / "target.png", textured_image(9))
    (tmp_path / "images" / "link.png").symlink_to("../target.png")
    patchcluster.scan(tmp_path / "images", tmp_path / "run", size=(64,))
    (tmp_path / "target.png").unlink()
    outcome = invoke("scan", tmp_path / "images", "-o", tmp_path / "run", *SMALL)
    assert_one_line(outcome, "the images have changed", "--overwrite")


# --- what is named as input or output -------------------------------------------------------------


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A folder with images, and around it what cannot be read or written."""
    root = tmp_path_factory.mktemp("places")
    write_set(root / "images", 3)
    write_set(root / "closed" / "images", 1)
    write_set(root / "unlisted", 1)
    write_set(root / "secret", 1)
    (root / "file").write_text("x")
    (root / "holds-file").mkdir()
    (root / "holds-file" / "thesis.doc").write_text("dear")
    (root / "locked").mkdir()
    (root / "dangling").symlink_to("nowhere")
    (root / "ring").symlink_to("ring")
    os.mkfifo(root / "pipe")
    (root / "empty").mkdir()
    (root / "secret" / "part0.png").chmod(0)
    for name, mode in (("closed", 0), ("unlisted", 0o111), ("locked", 0o555)):
        (root / name).chmod(mode)
    return root


INPUTS = {
    "nowhere": "does not exist",
    "": "does not exist",
    "empty": "no files",
    "closed": UNLISTED,
    "closed/images": "permission denied",
    "closed/images/part0.png": "permission denied",
    "unlisted": UNLISTED,
    "secret/part0.png": "permission denied",
    "pipe": "not a regular file",
    "/dev/null": "not a regular file",
    "dangling": "no such file",
    "ring": "too many levels",
    "file": "not an image",
    "file/below": "does not exist",
    "n" * 300: "file name too long",
    "nowhere/*.png": "nothing matches",
    "images/[": "does not exist|nothing matches",
    "nosuch://bucket/x": "cannot open",
    "file:///nowhere/at/all": "nothing is at",
}

OUTPUTS = {
    "file": "is a file",
    "file/run": "not a directory",
    "pipe": "is a file",
    "/dev/null": "is a file",
    "holds-file": "holds other files",
    "images": "holds other files",  # the input itself
    "": "holds other files",  # the current folder
    "dangling": "file exists",
    "ring": "too many levels|file exists",
    "closed": "permission denied",
    "closed/run": "permission denied",
    "locked/run": "permission denied",
    "locked": "permission denied",
    "n" * 300: "file name too long",
    "/proc/run": "no such file|permission denied",
}


@pytest.fixture(scope="module")
def refused(places):
    """What scans of each input, and into each output, ended with."""
    commands = [["scan", name, "-o", "new-run", *SMALL] for name in INPUTS]
    commands += [["scan", "images", "-o", name, *SMALL] for name in OUTPUTS]
    outcomes = invoke_as_user(commands, places)
    inputs = dict(zip(INPUTS, outcomes[: len(INPUTS)], strict=True))
    return inputs, dict(zip(OUTPUTS, outcomes[len(INPUTS) :], strict=True))


def assert_any(outcome: Outcome, words: str) -> None:
    assert_one_line(outcome)
    assert any(part in outcome.errors for part in words.split("|")), outcome.errors


@pytest.mark.parametrize("name", INPUTS, ids=lambda name: name[:20])
def test_an_input_that_cannot_be_used_is_one_line(refused, places, name):
    assert_any(refused[0][name], INPUTS[name])
    assert not (places / "new-run").exists()


@pytest.mark.parametrize("name", OUTPUTS, ids=lambda name: name[:20])
def test_an_output_that_cannot_be_used_is_one_line(refused, places, name):
    outcome = refused[1][name]
    if outcome.code == 2:  # refused by the parser of options
        assert_usage(outcome, "not readable")
    else:
        assert_any(outcome, OUTPUTS[name])
    assert (places / "file").read_text() == "x"
    assert [p.name for p in (places / "holds-file").iterdir()] == ["thesis.doc"]


def test_an_output_inside_the_input_is_no_input(tmp_path):
    write_set(tmp_path, 4)
    command = ("scan", tmp_path, "-o", tmp_path / "sub" / "run", *SMALL, "--json")
    first, again = invoke(*command), invoke(*command)
    assert (first.code, again.code) == (0, 0), again.errors
    assert json.loads(first.output)["images"] == json.loads(again.output)["images"] == 4
    assert json.loads(first.output)["skipped"] == json.loads(again.output)["skipped"] == []


def test_read_only_and_full_file_systems(tmp_path, small_run):
    """Images on a read-only one are scanned; no run is written there, nor where no room is."""
    with mounted(tmp_path / "images", "size=4m"):
        write_set(tmp_path / "images", 4)
        make_read_only(tmp_path / "images")
        outcome = invoke("scan", tmp_path / "images", "-o", tmp_path / "run", *SMALL, "--json")
        assert outcome.code == 0, outcome.errors
        assert json.loads(outcome.output)["images"] == 4
        inside = invoke("scan", tmp_path / "images", "-o", tmp_path / "images" / "run", *SMALL)
        assert_one_line(inside, "read-only file system", "choose another -o")
    write_set(tmp_path / "few", 3)
    with mounted(tmp_path / "full", "size=64k"):
        with pytest.raises(OSError, match="No space"):
            (tmp_path / "full" / "filler").write_bytes(bytes(1 << 20))
        full = invoke("scan", tmp_path / "few", "-o", tmp_path / "full" / "run", *SMALL)
        assert_one_line(full, "no space left on device")
    with mounted(tmp_path / "inodes", "size=4m,nr_inodes=1"):
        none = invoke("scan", tmp_path / "few", "-o", tmp_path / "inodes" / "run", *SMALL)
        assert_one_line(none, "no space left on device")
    with mounted(tmp_path / "run-only-read", "size=64m"):
        run = shutil.copytree(small_run.folder, tmp_path / "run-only-read" / "run")
        make_read_only(tmp_path / "run-only-read")
        scored = invoke("score", run, tmp_path / "few", "--quiet", "--json")
        assert scored.code == 0, scored.errors
        for command in (["report", run], ["review", run, "--no-browser"]):
            assert_one_line(invoke(*command), "read-only file system")
        table = invoke("score", run, tmp_path / "few", "-o", run / "table.csv", "--quiet")
        assert_one_line(table, "read-only file system")
