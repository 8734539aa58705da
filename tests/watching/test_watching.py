"""Images that arrive in a folder: settling, the table that remembers, the command."""

import csv
import dataclasses
import hashlib
import json
import os
import resource
import shutil
import signal
import tempfile
import threading
from contextlib import closing
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from conftest import PATIENCE, save_image, textured_image, wait_until, write_set
from faults.processes import Command
from patchcluster import watching
from patchcluster.errors import InputError, RunError, SettingError, UnreadableImage
from patchcluster.images.finding import find_images
from patchcluster.pipeline.scoring import Scorer, score
from patchcluster.runs import runfolder
from patchcluster.scores.remarks import REMARKS
from patchcluster.watching import Box, Row, watch
from patchcluster.watching.arrivals import Arrivals, Known
from patchcluster.watching.table import HEADER, open_table


@pytest.fixture
def incoming(tmp_path):
    folder = tmp_path / "incoming"
    folder.mkdir()
    return folder


class Quick(Scorer):
    """Scores by the bytes alone, at once: b"bad..." cannot be read, b"9..." is flagged."""

    def __init__(self, scorer):
        self.run, self.device = scorer.run, torch.device("cpu")
        self._like = scorer.score(Path(scorer.run.paths[0]).read_bytes())
        self.scored = []

    def score(self, data, path=""):
        if data.startswith(b"bad"):
            raise UnreadableImage("bad")
        self.scored.append((path, data))
        sha256 = hashlib.sha256(data).hexdigest()
        record = dataclasses.replace(self._like.record, path=path, sha256=sha256, bytes=len(data))
        flagged = data.startswith(b"9")
        return dataclasses.replace(self._like, record=record, flagged=flagged, same_as="")


@pytest.fixture
def quick(scorer):
    return Quick(scorer)


def take(run, folder, **given):
    """The rows of a watch that ends when what is there is scored."""
    given = {"output": folder.parent / "table.csv", "settle": 0, "tell": lambda _: None} | given
    return list(watch(run, folder, once=True, **given))


def read_rows(path):
    """The rows of a table, as any reader of CSV files finds them."""
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        rows = [to_row(cells) for cells in reader]
    assert reader.fieldnames == HEADER
    return rows


def to_row(cells):
    boxes = [Box(**box) for box in json.loads(cells.pop("boxes") or "[]")]
    assert cells.pop("regions") == (str(len(boxes)) if cells["score"] else "")
    for name in ("score", "probability", "percentile"):
        cells[name] = float(cells[name]) if cells[name] else None
    cells["flagged"] = {"true": True, "false": False, "": None}[cells["flagged"]]
    for name, kind in (("file_size", int), ("modified", int), ("threshold", float)):
        cells[name] = kind(cells[name])
    remarks = [one for one in cells.pop("remarks").split("; ") if one]
    return Row(**cells, regions=boxes, remarks=remarks)


# --- arrivals -----------------------------------------------------------------------------------


class Looking:
    """Looks at a folder at times that the test chooses."""

    def __init__(self, folder, settle=2.0):
        self.told = []
        table = folder / "table.csv"
        self.arrivals = Arrivals(folder, settle, table, self.told.append)

    def at(self, now):
        found = self.arrivals.look(now)
        for path, stamp in found:
            self.arrivals.known[path] = Known(stamp)
        return [os.path.basename(path) for path, _ in found]


def test_a_file_settles_when_it_has_not_changed_for_so_long(incoming):
    looking = Looking(incoming)
    assert looking.at(0) == []
    (incoming / "slow.png").write_bytes(b"1")
    (incoming / "whole.png").write_bytes(b"1")
    assert looking.at(10) == []
    assert looking.at(11.9) == []
    (incoming / "slow.png").write_bytes(b"12")
    assert looking.at(12) == ["whole.png"]
    assert looking.at(13.9) == []
    assert list(looking.arrivals.waiting) == [str(incoming / "slow.png")]
    assert looking.at(14) == ["slow.png"]
    assert looking.at(100) == []
    assert not looking.arrivals.waiting


def test_files_that_change_or_are_replaced_arrive_again(incoming, tmp_path):
    looking, path = Looking(incoming, settle=0), incoming / "a.png"
    path.write_bytes(b"1")
    assert looking.at(0) == ["a.png"]
    path.write_bytes(b"12")
    assert looking.at(1) == ["a.png"]
    os.utime(path, ns=(1, 1))
    assert looking.at(2) == ["a.png"]
    # Another file of the same size and time, renamed into its place.
    other = tmp_path / "other"
    other.write_bytes(b"34")
    os.utime(other, ns=(1, 1))
    os.replace(other, path)
    assert os.stat(path).st_mtime_ns == 1
    assert looking.at(3) == ["a.png"]
    path.unlink()
    assert looking.at(4) == looking.at(5) == []


def test_those_that_settled_first_come_first_and_then_by_name(incoming):
    looking = Looking(incoming, settle=1)
    (incoming / "z.png").touch()
    looking.at(0)
    for name in ("part10.png", "part2.png"):
        (incoming / name).touch()
    looking.at(0.5)
    assert looking.at(5) == ["z.png", "part2.png", "part10.png"]


def test_the_files_are_those_that_a_scan_would_find(incoming, small_run):
    for name in ("a.png", "sub/b.png", ".hidden.png", ".hidden/c.png", "notes.txt"):
        (incoming / name).parent.mkdir(exist_ok=True)
        (incoming / name).touch()
    (incoming / "loop").symlink_to(incoming)
    (incoming / "sub" / "up").symlink_to("..")
    (incoming / "nowhere.png").symlink_to("none")
    shutil.copytree(small_run.folder, incoming / "run")
    expected = {
        os.path.relpath(path, incoming) for path in find_images([incoming], runfolder.is_run)
    }
    (incoming / "table.csv").touch()
    found = {os.path.relpath(path, incoming) for path, _ in Looking(incoming, 0).arrivals.look(0)}
    assert found == expected == {"a.png", "sub/b.png", "notes.txt", "nowhere.png"}


def test_a_folder_that_goes_and_comes_back_is_told_once_and_forgets_nothing(incoming):
    looking = Looking(incoming, settle=0)
    (incoming / "a.png").touch()
    assert looking.at(0) == ["a.png"]
    incoming.rename(incoming.with_name("away"))
    assert looking.at(1) == looking.at(2) == []
    assert looking.told == [
        f"{str(incoming)!r} cannot be listed (no such file or directory): waiting until it can"
    ]
    incoming.with_name("away").rename(incoming)
    (incoming / "b.png").touch()
    assert looking.at(3) == ["b.png"]
    assert looking.told[1:] == [f"{str(incoming)!r} can be listed again"]


# --- the table ----------------------------------------------------------------------------------

# As names of files are: any bytes but NUL.
TEXT = st.lists(
    st.sampled_from([b'"', b",", b"\n", b"\r", b";", b" ", b"a", "é".encode(), b"\xff", b"\xc2"]),
    max_size=8,
).map(lambda parts: os.fsdecode(b"".join(parts)))
# 9 digits, as tables have figures.
FIGURE = st.integers(-(10**8), 10**8).map(lambda n: n / 1000)
BOX = st.builds(Box, *[st.integers(0, 5000)] * 5, FIGURE)
HEX = st.sampled_from(["", "00" * 32, "ab" * 32])


@st.composite
def rows(draw):
    path, why, nearest = (draw(TEXT) for _ in range(3))
    row = Row(
        path=path, sha256=draw(HEX), file_size=draw(st.integers(0, 10**9)),
        modified=draw(st.integers(-1, 2**63)), threshold=draw(FIGURE),
    )  # fmt: skip
    if draw(st.booleans()):
        return dataclasses.replace(row, skipped=why)
    return dataclasses.replace(
        row, score=draw(FIGURE), percentile=draw(st.integers(0, 10000)) / 100,
        flagged=draw(st.booleans()), regions=draw(st.lists(BOX, max_size=2)), nearest=nearest,
        same_as=draw(TEXT), remarks=draw(st.lists(st.sampled_from(REMARKS), unique=True)),
    )  # fmt: skip


@given(st.lists(rows(), max_size=4), rows(), st.data())
@settings(max_examples=60, deadline=None)
def test_a_table_torn_at_any_byte_keeps_its_whole_rows(written, after, data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "table.csv")
        with open_table(path, pytest.fail) as table:
            ends = [path.stat().st_size]
            for row in written:
                table.append(row)
                ends.append(path.stat().st_size)
        assert read_rows(path) == written
        whole = path.read_bytes()
        cut = data.draw(st.integers(0, len(whole)))
        path.write_bytes(whole[:cut])
        told = []
        with open_table(path, told.append) as table:
            table.append(after)
        kept = [row for row, end in zip(written, ends[1:], strict=True) if end <= cut]
        assert read_rows(path) == [*kept, after]
        with open_table(path, pytest.fail) as table:
            assert list(table.known) == list(dict.fromkeys(row.path for row in [*kept, after]))
        assert len(told) == (cut > ends[0] and cut not in ends)


def make_row(path="a.png", sha256="ab" * 32):
    return Row(path=path, sha256=sha256, file_size=3, modified=4, threshold=1.0, skipped="no image")


def test_other_files_and_damaged_tables_are_left_as_they_are(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("path,label\na.png,normal\n")
    with (
        pytest.raises(RunError, match="another file than the table"),
        open_table(path, pytest.fail),
    ):
        pass
    assert path.read_text() == "path,label\na.png,normal\n"
    path.unlink()
    with open_table(path, pytest.fail) as table:
        for name in "abc":
            table.append(make_row(f"{name}.png"))
    damaged = path.read_bytes().replace(b"a.png", b'"a.png')
    path.write_bytes(damaged)
    with pytest.raises(RunError, match="damaged after byte"), open_table(path, pytest.fail):
        pass
    assert path.read_bytes() == damaged


def test_a_full_disk_leaves_whole_rows(tmp_path):
    path = tmp_path / "table.csv"
    with open_table(path, pytest.fail) as table:
        table.append(make_row())
        before = path.read_bytes()
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, hard))
        try:
            with pytest.raises(RunError, match=r"cannot write .* Make room"):
                table.append(make_row("b.png"))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert path.read_bytes() == before
        table.append(make_row("c.png"))
    assert [row.path for row in read_rows(path)] == ["a.png", "c.png"]


def test_a_table_that_is_moved_away_is_not_written_to(tmp_path):
    path = tmp_path / "table.csv"
    with open_table(path, pytest.fail) as table:
        path.rename(tmp_path / "elsewhere.csv")
        with pytest.raises(RunError, match="moved or removed"):
            table.append(make_row())


# --- the watch ----------------------------------------------------------------------------------


def test_rows_are_what_score_says_and_the_table_has_them(scorer, small_run, incoming):
    write_set(incoming, 8)
    (incoming / "notes.txt").write_text("no image")
    found = take(scorer, incoming)
    expected = score(small_run, incoming, device="cpu")
    assert len(found) == 9
    rows = {os.path.basename(row.path): row for row in found}
    for one in expected.images:
        row = rows[os.path.basename(one.path)]
        assert row.path == one.path
        assert row.score == pytest.approx(one.score, rel=1e-4)
        assert (row.flagged, row.nearest, row.same_as) == (one.flagged, one.nearest, one.same_as)
        assert row.remarks == list(one.remarks)
        assert row.flagged == (row.score > row.threshold)
        assert len(row.regions) == len(one.regions)
        status = os.stat(one.path)
        assert (row.file_size, row.modified) == (status.st_size, status.st_mtime_ns)
        assert row.sha256 == hashlib.sha256(Path(one.path).read_bytes()).hexdigest()
    assert rows["part7.png"].flagged
    unread = rows["notes.txt"]
    assert (unread.score, unread.percentile, unread.flagged) == (None, None, None)
    assert unread.skipped == expected.skipped[0].reason
    assert read_rows(incoming.parent / "table.csv") == found
    assert [json.loads(row.as_json())["path"] for row in found] == [row.path for row in found]
    assert take(scorer, incoming) == []


def test_a_file_that_cannot_be_read_is_tried_again_without_another_row(
    quick, incoming, monkeypatch
):
    path, table = incoming / "a.png", incoming.parent / "table.csv"
    path.write_bytes(b"1")
    refused = True

    def read(name):
        if refused:
            raise UnreadableImage("permission denied")
        return Path(name).read_bytes()

    monkeypatch.setattr(watching, "read_input", read)
    assert [row.skipped for row in take(quick, incoming)] == ["permission denied"]
    assert take(quick, incoming) == []
    assert len(read_rows(table)) == 1
    refused = False
    assert [row.score is None for row in take(quick, incoming)] == [False]


def test_a_running_watch_tries_again_after_a_while(quick, incoming, monkeypatch):
    (incoming / "a.png").write_bytes(b"1")
    reads = iter([UnreadableImage("a share that failed")] * 3 + [b"1"])

    def read(_):
        result = next(reads)
        if isinstance(result, bytes):
            return result
        raise result

    monkeypatch.setattr(watching, "read_input", read)
    monkeypatch.setattr(watching, "_RETRY", 0.05)
    options = {"output": incoming.parent / "t.csv", "settle": 0, "interval": 0.01}
    with closing(watch(quick, incoming, tell=lambda _: None, **options)) as rows:
        assert next(rows).skipped == "a share that failed"
        assert next(rows).score is not None


def test_a_file_that_changes_while_it_is_read_is_not_scored(quick, incoming, monkeypatch):
    path = incoming / "a.png"
    path.write_bytes(b"1")

    def read_and_change(name):
        data = Path(name).read_bytes()
        path.write_bytes(b"12")
        return data

    monkeypatch.setattr(watching, "read_input", read_and_change)
    assert take(quick, incoming) == []
    monkeypatch.undo()
    assert len(take(quick, incoming)) == 1
    assert quick.scored == [(str(path), b"12")]


def test_a_bug_in_one_image_does_not_end_the_watch(quick, incoming, monkeypatch):
    for name in "abc":
        (incoming / f"{name}.png").write_bytes(name.encode())
    usual = quick.score

    def fail_at_b(data, path=""):
        if data == b"b":
            raise ZeroDivisionError("by\nzero")
        return usual(data, path)

    monkeypatch.setattr(quick, "score", fail_at_b)
    found = take(quick, incoming)
    assert [row.score is None for row in found] == [False, True, False]
    assert found[1].skipped.startswith("unexpected ZeroDivisionError: by zero")


def test_a_fault_of_the_run_ends_the_watch(quick, incoming, monkeypatch):
    (incoming / "a.png").write_bytes(b"1")

    def fail(*_):
        raise RunError("cannot read its mask")

    monkeypatch.setattr(quick, "score", fail)
    with pytest.raises(RunError, match="its mask"):
        take(quick, incoming)
    monkeypatch.undo()
    assert len(take(quick, incoming)) == 1


def test_what_was_there_may_be_left_out(quick, incoming):
    old, new = incoming / "old.png", incoming / "new.png"
    old.write_bytes(b"1")
    options = {
        "output": incoming.parent / "t.csv",
        "settle": 0,
        "interval": 0.01,
        "existing": False,
    }
    ready = threading.Event()
    with closing(watch(quick, incoming, tell=lambda _: ready.set(), **options)) as rows:
        threading.Thread(target=lambda: ready.wait(PATIENCE) and new.write_bytes(b"2")).start()
        assert next(rows).path == str(new)
        old.write_bytes(b"3")
        assert next(rows).path == str(old)
    assert quick.scored == [(str(new), b"2"), (str(old), b"3")]


def test_the_folder_by_another_name_is_the_same(quick, incoming, monkeypatch):
    (incoming / "a.png").write_bytes(b"1")
    assert len(take(quick, incoming)) == 1
    monkeypatch.chdir(incoming.parent)
    assert take(quick, Path("incoming"), output="table.csv") == []


def test_the_table_lies_beside_the_run_and_never_in_it(quick, small_run, incoming):
    with closing(watch(quick, incoming, once=True, settle=0, tell=lambda _: None)) as rows:
        assert list(rows) == []
    expected = small_run.folder.parent / f"{small_run.folder.name}-watch.csv"
    assert expected.read_text() == ",".join(HEADER) + "\n"
    with pytest.raises(RunError, match="lies in a run"):
        watch(quick, incoming, output=small_run.folder / "maps" / "table.csv")
    with pytest.raises(RunError, match="is a folder"):
        watch(quick, incoming, output=incoming)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"settle": -1}, "settle -1: give seconds"),
        ({"interval": 0}, "interval 0: give seconds"),
        ({"interval": float("nan")}, "interval nan"),
        ({"folder": "none"}, "not a folder that is there"),
        ({"folder": "s3://bucket/new"}, "on this machine"),
        ({"output": "s3://bucket/table.csv"}, "on this machine"),
    ],
)
def test_what_cannot_work_is_said_at_once(quick, incoming, given, said):
    with pytest.raises((SettingError, InputError), match=said):
        watch(quick, **{"folder": incoming} | given)


class Life(RuleBasedStateMachine):
    """Files come, change and go; the watch is ended, killed with a torn row, and started again."""

    quick: Quick
    names = st.sampled_from(["a.png", "b.png", "sub/c.png"])
    contents = st.sampled_from([b"1", b"2", b"93", b"bad1", b"bad2"])

    def __init__(self):
        super().__init__()
        self._root = tempfile.TemporaryDirectory()
        self.folder = Path(self._root.name, "incoming")
        (self.folder / "sub").mkdir(parents=True)
        self.table = Path(self._root.name, "table.csv")
        self.seen = {}  # name -> content of its last row
        self.said = []  # of each row: name, content
        self.clock = 0

    def teardown(self):
        self._root.cleanup()

    def _date(self, path):
        self.clock += 1  # a clock that never stands still
        os.utime(path, ns=(self.clock, self.clock))

    @rule(name=names, content=contents)
    def write(self, name, content):
        (self.folder / name).write_bytes(content)
        self._date(self.folder / name)

    @rule(name=names)
    def touch(self, name):
        if (self.folder / name).exists():
            self._date(self.folder / name)

    @rule(name=names)
    def remove(self, name):
        (self.folder / name).unlink(missing_ok=True)

    @rule(old=names, new=names)
    def rename(self, old, new):
        if (self.folder / old).exists():
            os.replace(self.folder / old, self.folder / new)
            self._date(self.folder / new)

    @rule()
    def look(self):
        found = take(self.quick, self.folder, output=self.table)
        expected = {}
        for path in self.folder.rglob("*.png"):
            name, content = str(path.relative_to(self.folder)), path.read_bytes()
            if self.seen.get(name) != content:
                expected[name] = content
        assert {os.path.relpath(row.path, self.folder) for row in found} == set(expected)
        for row in found:
            name = os.path.relpath(row.path, self.folder)
            assert row.sha256 == hashlib.sha256(expected[name]).hexdigest()
            assert (row.score is None) == expected[name].startswith(b"bad")
            self.seen[name] = expected[name]
            self.said.append((name, expected[name]))

    @rule(share=st.floats(0.01, 0.99))
    def tear(self, share):
        """The last row was not whole on disk when the process was killed."""
        if not self.said:
            return
        data = self.table.read_bytes()
        start = data.rstrip(b"\n").rfind(b"\n") + 1
        self.table.write_bytes(data[: start + max(1, int(share * (len(data) - start)))])
        self.said.pop()
        self.seen = dict(self.said)
        self.look()

    @invariant()
    def table_has_what_was_said(self):
        if self.table.exists():
            rows = read_rows(self.table)
            assert [os.path.relpath(row.path, self.folder) for row in rows] == [
                name for name, _ in self.said
            ]


def test_nothing_is_scored_twice_or_missed(quick):
    run_state_machine_as_test(
        type("Life", (Life,), {"quick": quick}),
        settings=settings(max_examples=25, stateful_step_count=15, deadline=None),
    )


# --- the command line ---------------------------------------------------------------------------


def test_the_command_prints_rows_until_it_is_ended(small_run, incoming):
    table = incoming.parent / "table.csv"
    words = ["watch", small_run.folder, incoming, "-o", table, "--device", "cpu"]
    words += ["--settle", 0.2, "--interval", 0.05]
    command = Command([*map(str, words)], incoming.parent)
    wait_until(lambda: "\n" in command.printed or command.has_ended())
    assert command.printed.startswith("patchcluster: watching "), command.printed
    (incoming / "notes.txt").write_text("no image")
    save_image(incoming / "1.png", textured_image(49, blot=True))
    wait_until(lambda: len(printed_rows(command)) == 2 or command.has_ended())
    with pytest.raises(RunError, match="is written by another process"):
        next(watch(small_run, incoming, output=table))
    os.kill(command.pid, signal.SIGTERM)
    command.finish()
    assert "Traceback" not in command.printed
    rows = printed_rows(command)
    assert rows == [dataclasses.asdict(row) for row in read_rows(table)]
    said = {os.path.basename(row["path"]): (row["flagged"], row["score"] is None) for row in rows}
    assert said == {"1.png": (True, False), "notes.txt": (None, True)}


def printed_rows(command):
    return [json.loads(line) for line in command.printed.splitlines() if line.startswith("{")]
