"""The flagged files of a run: copied, moved, linked, and back; kills at any instant."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

import patchcluster
from conftest import textured_image
from patchcluster import cli, storage
from patchcluster.errors import RunError, SettingError
from patchcluster.exporting import flagged
from patchcluster.exporting.flagged import take_flagged, undo_flagged
from patchcluster.inputs import hash_file
from synthetic import write_run

FILES = ["photos/a.png", "photos/sub/a.png", "photos/b.png", "photos/c.png", "photos/d.png"]
HOWS = ("copy", "move", "symlink")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run in tmp_path of 5 images, of which the first three are flagged; two share a name."""
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(FILES):
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(textured_image(i, 8, 8).tobytes())
        os.utime(path, (1_000_000 + i, 1_000_000 + i))
    write_run(tmp_path / "run", FILES, defective=3)
    info = json.loads(Path("run/run.json").read_text())
    for image in info["images"]:
        image["sha256"] = hash_file(image["path"])
    Path("run/run.json").write_text(json.dumps(info))
    return patchcluster.load_run("run")


def read_all(folder="."):
    """Files and links by name, but for the run and the lock."""
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = ("link", os.readlink(path))
        elif path.is_file() and not name.startswith("run/") and path.name != ".lock":
            time = 0 if path.name == "undo.json" else path.stat().st_mtime_ns
            found[name] = (path.read_bytes(), time)
    return found


def refuse_link(*_args, **_options):
    raise OSError(errno.EXDEV, "cross-device link")


@pytest.mark.parametrize("by", HOWS)
def test_there_and_back(run, tmp_path, by):
    before = read_all()
    outcome = take_flagged(run, Path("pulled"), by)
    assert (outcome.done, outcome.left) == (FILES[:3], {})
    taken = {"a.png": FILES[0], "a-2.png": FILES[1], "b.png": FILES[2]}
    assert {p.name for p in Path("pulled").iterdir()} == {*taken, "undo.json", ".lock"}
    for name, source in taken.items():
        target = Path("pulled", name)
        assert target.is_symlink() == (by == "symlink")
        assert target.read_bytes() == before[source][0]
        assert Path(source).exists() == (by != "move")
        if by == "symlink":
            assert os.readlink(target) == str(tmp_path / source)
    listed = json.loads(Path("pulled/undo.json").read_text())
    assert (listed["run"], listed["by"]) == (str(tmp_path / "run"), by)
    assert listed["files"][1] == {
        "path": FILES[1],
        "source": str(tmp_path / FILES[1]),
        "name": "a-2.png",
        "sha256": run.images[1].sha256,
    }
    outcome = undo_flagged("run/", Path("pulled"))
    assert (len(outcome.done), outcome.left) == (3, {})
    assert read_all() == before
    assert not Path("pulled").exists()


@pytest.mark.parametrize("by", HOWS)
def test_the_same_again_changes_nothing(run, by):
    take_flagged(run, Path("pulled"), by)
    before = read_all()
    assert take_flagged(run, Path("pulled"), by).done == FILES[:3]
    assert read_all() == before
    with pytest.raises(RunError, match="holds the files of another --flagged-to"):
        take_flagged(run, Path("pulled"), "copy" if by == "move" else "move")
    assert read_all() == before


def test_moved_across_file_systems(run, monkeypatch):
    monkeypatch.setattr(flagged.os, "link", refuse_link)
    before = read_all()
    assert take_flagged(run, Path("pulled"), "move").left == {}
    assert read_all()["pulled/a-2.png"] == before[FILES[1]]  # with its time
    assert not Path(FILES[1]).exists()
    assert undo_flagged("run", Path("pulled")).left == {}
    assert read_all() == before


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="no second file system")
def test_moved_to_another_disk(run, tmp_path):
    other = Path("/dev/shm") / f"patchcluster-{os.getpid()}"
    if os.stat("/dev/shm").st_dev == os.stat(tmp_path).st_dev:
        pytest.skip("one file system")
    before = read_all()
    try:
        assert take_flagged(run, other, "move").left == {}
        assert (other / "b.png").read_bytes() == before[FILES[2]][0]
        assert not Path(FILES[2]).exists()
        assert undo_flagged("run", other).left == {}
    finally:
        shutil.rmtree(other, ignore_errors=True)
    assert read_all() == before


# --- what is not as it was stays ----------------------------------------------------------------


@pytest.mark.parametrize("by", HOWS)
def test_a_file_that_is_gone_or_another_stays_where_it_is(run, by):
    Path(FILES[0]).write_bytes(b"another image")
    Path(FILES[2]).unlink()
    before = read_all()
    outcome = take_flagged(run, Path("pulled"), by)
    assert outcome.done == [FILES[1]]
    assert "has changed since the scan" in outcome.left[FILES[0]]
    assert list(outcome.left) == [FILES[0], FILES[2]]
    assert {p.name for p in Path("pulled").iterdir()} == {"a-2.png", "undo.json", ".lock"}
    undo_flagged("run", Path("pulled"))
    assert {name: value for name, value in read_all().items() if "pulled" not in name} == before


@pytest.mark.parametrize("by", HOWS)
def test_undo_writes_over_nothing_and_removes_nothing_else(run, by):
    take_flagged(run, Path("pulled"), by)
    Path("pulled/a.png").unlink()
    Path("pulled/a.png").write_bytes(b"mine")  # in its place
    if by == "move":
        Path(FILES[1]).write_bytes(b"new")  # where it was
    Path("pulled/other.txt").write_text("mine")
    outcome = undo_flagged("run", Path("pulled"))
    assert set(outcome.left) == {FILES[0], *([FILES[1]] if by == "move" else [])}
    assert Path("pulled/a.png").read_bytes() == b"mine"
    assert Path("pulled/other.txt").read_text() == "mine"
    assert Path("pulled/a-2.png").exists() == (by == "move")
    if by == "move":
        assert Path(FILES[1]).read_bytes() == b"new"
        Path(FILES[1]).unlink()  # out of the way: the list still knows
        assert undo_flagged("run", Path("pulled")).done == [FILES[1]]
        assert hash_file(FILES[1]) == run.images[1].sha256


def test_a_moved_file_that_was_copied_back_leaves_one(run):
    take_flagged(run, Path("pulled"), "move")
    shutil.copy("pulled/b.png", FILES[2])
    assert undo_flagged("run", Path("pulled")).left == {}
    assert hash_file(FILES[2]) == run.images[2].sha256
    assert not Path("pulled").exists()


def test_a_link_in_the_place_of_a_target_costs_no_file(run):
    """The source looks as if it were there already: to remove it would lose it."""
    take_flagged(run, Path("pulled"), "move")
    Path("pulled/b.png").rename(FILES[2])
    Path("pulled/b.png").symlink_to(Path(FILES[2]).absolute())
    assert list(take_flagged(run, Path("pulled"), "move").left) == [FILES[2]]
    assert hash_file(FILES[2]) == run.images[2].sha256


def test_links_are_not_moved(run):
    Path(FILES[0]).rename("photos/real.png")
    Path(FILES[0]).symlink_to("real.png")
    outcome = take_flagged(run, Path("pulled"), "move")
    assert outcome.left == {FILES[0]: "it is a symbolic link: take it with --by copy or symlink"}
    assert Path(FILES[0]).is_symlink()
    undo_flagged("run", Path("pulled"))
    assert take_flagged(run, Path("pulled"), "copy").left == {}


def test_other_folders_are_refused(run):
    Path("mine").mkdir()
    Path("mine/x").write_text("x")
    with pytest.raises(RunError, match=r"holds other files \(x\)"):
        take_flagged(run, Path("mine"), "move")
    with pytest.raises(RunError, match=r"has no undo\.json"):
        undo_flagged("run", Path("mine"))
    with pytest.raises(SettingError, match="choose from copy, move, symlink"):
        take_flagged(run, Path("new"), "steal")
    take_flagged(run, Path("pulled"), "copy")
    with pytest.raises(RunError, match="holds files of the run"):
        undo_flagged("other-run", Path("pulled"))
    Path("pulled/undo.json").write_text('{"files": [{"name": "../../x"}]}')
    with pytest.raises(RunError, match="is damaged"):
        undo_flagged("run", Path("pulled"))


def test_a_list_cannot_name_files_outside_its_folder(run):
    take_flagged(run, Path("pulled"), "copy")
    listed = json.loads(Path("pulled/undo.json").read_text())
    listed["files"][0]["name"] = f"../{FILES[3]}"
    storage.write_json(Path("pulled/undo.json"), listed)
    with pytest.raises(RunError, match="is damaged"):
        undo_flagged("run", Path("pulled"))
    assert Path(FILES[3]).exists()


@pytest.mark.usefixtures("run")
def test_files_are_looked_for_beside_the_run_too(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = patchcluster.load_run(tmp_path / "run")
    assert take_flagged(again, tmp_path / "pulled", "move").left == {}
    assert take_flagged(again, tmp_path / "pulled", "move").left == {}
    assert undo_flagged("../run", tmp_path / "pulled").left == {}
    assert (tmp_path / FILES[0]).exists()


# --- kills --------------------------------------------------------------------------------------


@pytest.mark.parametrize("then", ["on", "back"])
@pytest.mark.parametrize("by", ["copy", "move", "move across", "symlink"])
def test_killed_before_any_change(run, tmp_path, by, then, monkeypatch, kill_at_each_change):
    """After a kill each file is at one of its places, whole; and it can go on or back."""
    if by == "move across":
        monkeypatch.setattr(flagged.os, "link", refuse_link)
    before = read_all()

    def start():
        return take_flagged(run, Path("pulled"), by.split()[0])

    start()
    after = read_all()
    undo_flagged("run", Path("pulled"))
    for kill in kill_at_each_change(tmp_path, start):
        check_nothing_lost(before, kill)
        if then == "on":
            assert start().left == {}
            assert read_all() == after, kill
        if Path("pulled/undo.json").exists():
            assert undo_flagged("run", Path("pulled")).left == {}
        shutil.rmtree("pulled", ignore_errors=True)  # before there was a list
        assert read_all() == before, kill
    assert kill > 6


@pytest.mark.parametrize("by", HOWS)
def test_undo_killed_before_any_change(run, tmp_path, by, kill_at_each_change):
    before = read_all()
    take_flagged(run, Path("pulled"), by)
    for kill in kill_at_each_change(tmp_path, lambda: undo_flagged("run", Path("pulled"))):
        check_nothing_lost(before, kill)
        if Path("pulled/undo.json").exists():
            assert undo_flagged("run", Path("pulled")).left == {}
        assert read_all() == before, kill
        shutil.rmtree("pulled", ignore_errors=True)
        take_flagged(run, Path("pulled"), by)
    assert kill > 3


def check_nothing_lost(before, kill):
    """Each image is whole under a name of its own, and nothing else is."""
    now = {name: v for name, v in read_all().items() if not Path(name).name.startswith(".")}
    now.pop("pulled/undo.json", None)
    images = {value[0] for value in before.values()}
    assert {value[0] for value in now.values()} - {"link"} == images, kill


def names_and_bytes(files):
    return {name: value[0] for name, value in files.items()}


# --- the command --------------------------------------------------------------------------------


def invoke(*options):
    return CliRunner().invoke(cli.app, ["export", "run", "--quiet", *options])


@pytest.mark.usefixtures("run")
def test_the_command_there_and_back():
    before = read_all()
    result = invoke("--flagged-to", "pulled", "--by", "move")
    assert (result.exit_code, result.stdout) == (0, "3 flagged files taken, 0 left\n")
    Path("pulled/b.png").write_bytes(b"mine")
    result = invoke("--undo", "pulled")
    assert result.exit_code == 1
    assert result.stdout == "2 taken back, 1 left\n"
    assert "left  photos/b.png: " in result.stderr
    assert "has changed since the scan" in result.stderr
    Path("pulled/b.png").write_bytes(before[FILES[2]][0])
    result = invoke("--undo", "pulled", "--json")
    assert (result.exit_code, json.loads(result.stdout)) == (0, {"done": [FILES[2]], "left": {}})
    assert names_and_bytes(read_all()) == names_and_bytes(before)


@pytest.mark.usefixtures("run")
def test_the_command_fails_if_no_file_is_there():
    shutil.rmtree("photos")
    result = invoke("--flagged-to", "pulled")
    assert (result.exit_code, result.stdout) == (1, "0 flagged files taken, 3 left\n")
