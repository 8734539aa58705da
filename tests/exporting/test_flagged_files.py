"""The flagged files of a run, copied or linked into a folder; kills at any instant."""

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

import patchcluster
from conftest import textured_image
from patchcluster import cli
from patchcluster.errors import RunError, SettingError
from patchcluster.exporting import flagged
from patchcluster.exporting.flagged import take_flagged
from patchcluster.images.inputs import hash_file
from synthetic import write_run

FILES = ["photos/a.png", "photos/sub/a.png", "photos/b.png", "photos/c.png", "photos/d.png"]
TAKEN = {"a.png": FILES[0], "a-2.png": FILES[1], "b.png": FILES[2]}
HOWS = ("copy", "hardlink", "symlink")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run in tmp_path of 5 images, of which the first three are flagged; two share a name."""
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(FILES):
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(textured_image(i, 8, 8).tobytes())
        os.utime(path, (1_000_000 + i, 1_000_000 + i))
    write_run(tmp_path / "run", FILES, defective=3, hashed=True)
    return patchcluster.load_run("run")


def read_all(folder="."):
    """Files and links by name, but for the run and the lock."""
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = ("link", os.readlink(path))
        elif path.is_file() and not name.startswith("run/") and path.name != ".lock":
            found[name] = (path.read_bytes(), path.stat().st_mtime_ns)
    return found


def refuse(number):
    def fail(*_args, **_options):
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("by", HOWS)
def test_flagged_files_are_taken_and_the_others_stay(run, tmp_path, by):
    before = read_all()
    outcome = take_flagged(run, Path("pulled"), by)
    assert (outcome.done, outcome.left) == (FILES[:3], {})
    assert {name: v for name, v in read_all().items() if not name.startswith("pulled")} == before
    assert set(read_all("pulled")) == set(TAKEN)
    for name, source in TAKEN.items():
        target = Path("pulled", name)
        assert target.read_bytes() == before[source][0]
        assert target.stat().st_mtime_ns == before[source][1]
        assert target.is_symlink() == (by == "symlink")
        assert os.path.samefile(target, source) == (by != "copy")
        if by == "symlink":
            assert os.readlink(target) == str(tmp_path / source)


@pytest.mark.parametrize("by", HOWS)
def test_more_flags_add_the_missing_files(run, by):
    """The first of two with one name is taken after the second: neither is taken for the other."""
    flags = run.flagged.copy()
    run.flagged[:] = [False, True, False, False, False]
    assert take_flagged(run, Path("pulled"), by).done == [FILES[1]]
    run.flagged[:] = flags
    assert take_flagged(run, Path("pulled"), by).done == FILES[:3]
    found = {name: hash_file(f"pulled/{name}") for name in read_all("pulled")}
    a, sub_a, b = (image.sha256 for image in run.images[:3])
    assert found == {"a.png": sub_a, "a-2.png": a, "b.png": b}


# --- what is there stays ------------------------------------------------------------------------


@pytest.mark.parametrize("by", HOWS)
def test_nothing_in_the_folder_is_overwritten(run, by):
    Path("pulled/b.png").mkdir(parents=True)
    Path("pulled/a.png").write_bytes(b"mine")
    Path("pulled/a-3.png").symlink_to("nowhere")
    mine = read_all("pulled")
    for _ in range(2):
        assert take_flagged(run, Path("pulled"), by).done == FILES[:3]
        found = read_all("pulled")
        assert set(found) == {*mine, "a-2.png", "a-4.png", "b-2.png"}
        assert {name: found[name] for name in mine} == mine
    for name, image in zip(["a-2.png", "a-4.png", "b-2.png"], run.images, strict=False):
        assert hash_file(f"pulled/{name}") == image.sha256


def test_a_link_is_not_taken_for_a_copy(run):
    take_flagged(run, Path("pulled"), "symlink")
    take_flagged(run, Path("pulled"), "copy")
    shutil.rmtree("photos")
    found = {hash_file(str(path)) for path in Path("pulled").glob("*.png")}
    assert found >= {image.sha256 for image in run.images[:3]}


def test_links_to_equal_files_of_one_name_are_told_apart(run, tmp_path):
    shutil.copy(FILES[0], FILES[1])
    run.images[1] = replace(run.images[1], sha256=run.images[0].sha256)
    run.flagged[0] = False
    take_flagged(run, Path("pulled"), "symlink")
    run.flagged[0] = True
    assert take_flagged(run, Path("pulled"), "symlink").left == {}
    found = {os.readlink(path) for path in Path("pulled").glob("a*.png")}
    assert found == {str(tmp_path / FILES[0]), str(tmp_path / FILES[1])}


def test_no_file_is_hidden(run):
    Path(FILES[2]).rename("photos/.lock")
    run.images[2] = replace(run.images[2], path="photos/.lock")
    assert take_flagged(run, Path("pulled"), "copy").left == {}
    assert hash_file("pulled/lock") == run.images[2].sha256


def test_names_that_differ_only_in_case_are_told_apart(run):
    Path(FILES[2]).rename("photos/A.PNG")
    run.images[2] = replace(run.images[2], path="photos/A.PNG")
    assert take_flagged(run, Path("pulled"), "copy").left == {}
    assert set(read_all("pulled")) == {"a.png", "a-2.png", "A-3.PNG"}


@pytest.mark.parametrize("by", HOWS)
def test_a_file_that_is_gone_or_another_is_left_out(run, by):
    Path(FILES[0]).write_bytes(b"another image")
    Path(FILES[2]).unlink()
    before = read_all()
    outcome = take_flagged(run, Path("pulled"), by)
    assert outcome.done == [FILES[1]]
    assert list(outcome.left) == [FILES[0], FILES[2]]
    assert "has changed since the scan" in outcome.left[FILES[0]]
    assert outcome.left[FILES[2]] == "no such file or directory"
    after = read_all()
    assert hash_file("pulled/a.png") == run.images[1].sha256
    assert {name: value for name, value in after.items() if name != "pulled/a.png"} == before


def test_a_copy_stays_when_its_source_is_gone_or_changes(run):
    take_flagged(run, Path("pulled"), "copy")
    before = read_all("pulled")
    Path(FILES[0]).write_bytes(b"another image")
    Path(FILES[2]).unlink()
    assert take_flagged(run, Path("pulled"), "copy").done == FILES[:3]
    assert read_all("pulled") == before


def test_a_hard_link_to_a_symbolic_link_is_one_to_its_file(run):
    Path(FILES[0]).rename("photos/real.png")
    Path(FILES[0]).symlink_to("real.png")
    assert take_flagged(run, Path("pulled"), "hardlink").left == {}
    assert not Path("pulled/a.png").is_symlink()
    assert os.path.samefile("pulled/a.png", "photos/real.png")


def test_what_cannot_be_linked_says_so(run, monkeypatch):
    monkeypatch.setattr(flagged.os, "link", refuse(errno.EXDEV))
    outcome = take_flagged(run, Path("pulled"), "hardlink")
    assert set(outcome.left) == set(FILES[:3])
    assert outcome.left[FILES[0]] == "invalid cross-device link: take it with --by copy"
    run.images[0] = replace(run.images[0], path="memory://photos/a.png")
    for by in ("hardlink", "symlink"):
        outcome = take_flagged(run, Path("other"), by)
        reason = outcome.left["memory://photos/a.png"]
        assert reason == "it lies at a URL: take it with --by copy"


def test_a_copy_gets_its_name_when_it_is_on_the_disk(run, monkeypatch):
    shown = []
    monkeypatch.setattr(flagged.os, "fsync", lambda _: shown.append(set(read_all("pulled"))))
    take_flagged(run, Path("pulled"), "copy")
    parts = [f".{name}.part" for name in TAKEN]
    assert shown == [{*list(TAKEN)[:i], part} for i, part in enumerate(parts)]


def test_a_full_disk_ends_it_in_one_line_and_leaves_no_part(run, monkeypatch):
    words = r"no space left on device\. Make room; the same command resumes"
    with monkeypatch.context() as patch:
        patch.setattr(flagged.os, "fsync", refuse(errno.ENOSPC))
        with pytest.raises(RunError, match=words):
            take_flagged(run, Path("pulled"), "copy")
    assert not Path("pulled").exists()
    assert take_flagged(run, Path("pulled"), "copy").left == {}


def test_another_way_is_refused(run):
    with pytest.raises(SettingError, match="choose from copy, hardlink, symlink"):
        take_flagged(run, Path("new"), "move")
    assert not Path("new").exists()


@pytest.mark.usefixtures("run")
def test_files_are_looked_for_beside_the_run_too(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = patchcluster.load_run(tmp_path / "run")
    assert take_flagged(again, tmp_path / "pulled", "symlink").left == {}
    assert os.readlink(tmp_path / "pulled" / "b.png") == str(tmp_path / FILES[2])


# --- kills --------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", HOWS)
def test_killed_before_any_change(run, tmp_path, by, kill_at_each_change):
    """After a kill each file in the folder is whole, and the same call completes it."""

    def start():
        return take_flagged(run, Path("pulled"), by)

    start()
    after = read_all()
    shutil.rmtree("pulled")
    for kill in kill_at_each_change(tmp_path, start):
        shown = {name: v for name, v in read_all().items() if not Path(name).name.startswith(".")}
        assert {name: value[0] for name, value in shown.items()}.items() <= {
            name: value[0] for name, value in after.items()
        }.items(), kill
        assert start().left == {}
        assert read_all() == after, kill
        shutil.rmtree("pulled")
    assert kill > 4


# --- the command --------------------------------------------------------------------------------


def invoke(*options):
    return CliRunner().invoke(cli.app, ["export", "run", "--quiet", *options])


@pytest.mark.usefixtures("run")
def test_the_command_lists_what_is_left_out():
    Path(FILES[2]).unlink()
    result = invoke("--flagged-to", "pulled", "--by", "hardlink")
    assert (result.exit_code, result.stdout) == (0, "2 flagged files taken, 1 left\n")
    assert result.stderr == "left  photos/b.png: no such file or directory\n"
    result = invoke("--flagged-to", "pulled", "--by", "hardlink", "--json")
    left = {FILES[2]: "no such file or directory"}
    assert json.loads(result.stdout) == {"done": FILES[:2], "left": left}


@pytest.mark.usefixtures("run")
def test_the_command_fails_if_no_file_is_there():
    shutil.rmtree("photos")
    result = invoke("--flagged-to", "pulled")
    assert (result.exit_code, result.stdout) == (1, "0 flagged files taken, 3 left\n")
