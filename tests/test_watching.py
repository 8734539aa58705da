"""Images that arrive in a folder: settling, the table that remembers, who is told."""

import dataclasses
import hashlib
import http.server
import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from PIL import Image

from conftest import PATIENCE, textured_image, wait_for_the_hub, wait_until, write_set
from patchcluster import runfolder, watching
from patchcluster.errors import InputError, RunError, SettingError, UnreadableImage
from patchcluster.inputs import find_images
from patchcluster.scoring import Scorer, score
from patchcluster.watching import Box, Row, notices, watch
from patchcluster.watching.arrivals import RETRY, Arrivals, Memory
from patchcluster.watching.table import HEADER, companion, open_table


@pytest.fixture(scope="module")
def scorer(small_run):
    return Scorer(small_run, device="cpu")


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
    with open_table(path, lambda line: pytest.fail(line)) as table:
        return [Row.from_cells(cells) for cells, _ in table.read() if cells]


# --- arrivals -----------------------------------------------------------------------------------


class Looking:
    """Looks at a folder at times that the test chooses."""

    def __init__(self, folder, settle=2.0, ours=()):
        self.memory, self.told = Memory(), []
        self.arrivals = Arrivals(
            folder, settle, self.memory, runfolder.is_run, ours, self.told.append
        )

    def at(self, now):
        found = self.arrivals.look(now)
        for arrival in found:
            self.memory.note(arrival.path, arrival.stamp, "00")
        return [os.path.basename(arrival.path) for arrival in found]


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
    assert looking.arrivals.waiting == 1
    assert looking.at(14) == ["slow.png"]
    assert looking.at(100) == []
    assert looking.arrivals.waiting == 0


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
    looking = Looking(incoming, settle=0, ours=[incoming / "table.csv"])
    found = {os.path.relpath(one.path, incoming) for one in looking.arrivals.look(0)}
    assert found == expected == {"a.png", "sub/b.png", "notes.txt", "nowhere.png"}


def test_a_folder_that_goes_and_comes_back_is_told_once_and_forgets_nothing(incoming):
    looking = Looking(incoming, settle=0)
    (incoming / "a.png").touch()
    assert looking.at(0) == ["a.png"]
    incoming.rename(incoming.with_name("away"))
    assert looking.at(1) == looking.at(2) == []
    assert looking.told == [
        f"{str(incoming)!r} cannot look into it (no such file or directory): waiting"
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
    rest = (draw(HEX), draw(st.integers(0, 10**9)), draw(st.integers(-1, 2**63)))
    common = {"time": "2026-01-02T03:04:05.678+00:00", "threshold": draw(FIGURE)}
    if draw(st.booleans()):
        row = Row.of_unreadable(path, why, *rest, common["threshold"])
        return dataclasses.replace(row, **common)
    percentile = draw(st.integers(0, 10000)) / 100
    boxes = draw(st.lists(BOX, max_size=2))
    return Row(
        path, draw(FIGURE), percentile, draw(st.booleans()), boxes, nearest, common["time"], *rest,
        common["threshold"], draw(TEXT), "",
    )  # fmt: skip


@given(st.lists(rows(), max_size=4), rows(), st.data())
@settings(max_examples=60, deadline=None)
def test_a_table_torn_at_any_byte_keeps_its_whole_rows(written, after, data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "table.csv")
        ends = []
        with open_table(path, pytest.fail) as table:
            ends.append(table.end)
            for row in written:
                table.append(row)
                ends.append(table.end)
        assert read_rows(path) == written
        whole = path.read_bytes()
        assert len(whole) == ends[-1]
        cut = data.draw(st.integers(0, len(whole)))
        path.write_bytes(whole[:cut])
        told = []
        with open_table(path, told.append) as table:
            table.append(after)
        kept = [row for row, end in zip(written, ends[1:], strict=True) if end <= cut]
        assert read_rows(path) == [*kept, after]
        assert len(told) == (cut > ends[0] and cut not in ends)


def make_row(path="a.png", sha256="ab" * 32):
    return Row.of_unreadable(path, "no image", sha256, 3, 4, 1.0)


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
    damaged = path.read_bytes().replace(b"a.png", b'a".png')
    path.write_bytes(damaged)
    with pytest.raises(RunError, match="damaged after byte"), open_table(path, pytest.fail):
        pass
    assert path.read_bytes() == damaged


def test_a_table_has_one_writer(tmp_path):
    path = tmp_path / "table.csv"
    with open_table(path, pytest.fail):
        said = "is written by another process: end it, or choose another -o"
        with pytest.raises(RunError, match=said), open_table(path, pytest.fail):
            pass
    with open_table(path, pytest.fail):
        pass


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


def test_new_bytes_are_scored_again_and_a_touched_file_is_not(quick, incoming):
    path = incoming / "a.png"
    path.write_bytes(b"1")
    assert len(take(quick, incoming)) == 1
    os.utime(path, ns=(5, 5))
    assert take(quick, incoming) == []
    path.write_bytes(b"2")
    (again,) = take(quick, incoming)
    assert again.sha256 == hashlib.sha256(b"2").hexdigest()
    path.unlink()
    assert take(quick, incoming) == []
    path.write_bytes(b"bad")
    assert [row.skipped for row in take(quick, incoming)] == ["bad"]
    assert take(quick, incoming) == []


def test_a_half_written_file_has_a_reason_and_is_scored_when_it_is_whole(scorer, incoming):
    whole, path = write_set(incoming.parent / "new", 1)[0].read_bytes(), incoming / "a.png"
    path.write_bytes(whole[:2000])
    (row,) = take(scorer, incoming)
    assert row.score is None
    assert "damaged image" in row.skipped
    path.write_bytes(whole)
    (row,) = take(scorer, incoming)
    assert row.score is not None
    assert not row.skipped


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


def test_a_running_watch_tries_again_after_a_while():
    memory, stamp = Memory(), (1, 2, 3)
    memory.note_unread("a", stamp, "permission denied", retry=100 + RETRY)
    assert memory.is_known("a", stamp, 100)
    assert not memory.is_known("a", stamp, 100 + RETRY)
    assert not memory.is_known("a", (1, 2, 4), 100)  # somebody changed its permissions


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
        ({"timeout": float("nan")}, "timeout nan"),
        ({"folder": "none"}, "not a folder that is there"),
        ({"folder": "s3://bucket/new"}, "on this machine"),
        ({"output": "s3://bucket/table.csv"}, "on this machine"),
        ({"on_flagged": "no-such-command-here {path}"}, "there is no command"),
        ({"on_flagged": ""}, "there is no command"),
        ({"on_flagged": "echo 'a"}, "cannot read the command"),
        ({"on_flagged": "sh -c 'cp {path} x'"}, r'"\$PATCHCLUSTER_PATH"'),
        ({"on_flagged": "echo --file={path}"}, "argument of its own"),
        ({"webhook": "file:///etc/passwd"}, "http:// or https://"),
        ({"webhook": "http://"}, "http:// or https://"),
        ({"webhook": "http://host:port/"}, "the address of the webhook is none"),
        ({"webhook": "http://host/a\r\nb"}, "http:// or https://"),
        ({"webhook": "https://me:secret@host/"}, "no user or password"),
    ],
)
def test_what_cannot_work_is_said_at_once(quick, incoming, given, said):
    with pytest.raises((SettingError, InputError), match=said) as error:
        watch(quick, **{"folder": incoming} | given)
    assert "secret" not in str(error.value)


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


# --- a command ----------------------------------------------------------------------------------

TOLD = """
import json, os, sys
with open(sys.argv[1], "a") as file:
    path = os.environ["PATCHCLUSTER_PATH"]
    row = json.loads(os.environ["PATCHCLUSTER_JSON"])
    print(json.dumps([sys.argv[2:], path, row["path"], row["flagged"]]), file=file)
"""
NAMES = [
    "a.png",
    "-rf.png",
    "$(touch pwned).png",
    "; touch pwned;.png",
    "a b\n'\".png",
    "\udcff.png",
]


def shell_line(*words):
    return shlex.join(map(str, words)).replace("'{path}'", "{path}").replace("'{score}'", "{score}")


def test_a_command_is_told_of_flagged_images_whatever_their_names(quick, incoming, monkeypatch):
    monkeypatch.chdir(incoming.parent)
    Path("told.py").write_text(TOLD)
    for name in NAMES:
        (incoming / name).write_bytes(b"9" + os.fsencode(name))
    (incoming / "ordinary.png").write_bytes(b"1")
    (incoming / "bad.png").write_bytes(b"bad")
    line = shell_line(sys.executable, "told.py", "told.txt", "{path}", "{score}")
    found = take(quick, incoming, on_flagged=line, output="table.csv")
    flagged = [row for row in found if row.flagged]
    assert len(flagged) == len(NAMES)
    told = [json.loads(line) for line in Path("told.txt").read_text().splitlines()]
    assert told == [[[r.path, f"{r.score:.9g}"], r.path, r.path, True] for r in flagged]
    assert not Path("pwned").exists()
    assert not (incoming / "pwned").exists()


def test_a_command_that_fails_or_hangs_is_told_and_ends_nothing(quick, incoming, monkeypatch):
    (incoming / "a.png").write_bytes(b"9")
    (incoming / "b.png").write_bytes(b"99")
    told = []
    line = shell_line(sys.executable, "-c", "import sys; sys.exit(3)")
    assert len(take(quick, incoming, on_flagged=line, tell=told.append)) == 2
    assert [one for one in told if "exit code 3" in one] == [
        f"command for {str(incoming / name)!r}: exit code 3" for name in ("a.png", "b.png")
    ]
    (incoming / "c.png").write_bytes(b"999")
    pid = incoming.parent / "pid"
    # What it starts is ended with it.
    line = f"sh -c 'sleep 600 & echo $! > {shlex.quote(str(pid))}; wait'"
    usual = notices.Command._wait

    def wait_when_it_hangs(self, process):
        wait_until(lambda: pid.exists() and pid.read_text().endswith("\n"))
        return usual(self, process)

    monkeypatch.setattr(notices.Command, "_wait", wait_when_it_hangs)
    take(quick, incoming, on_flagged=line, timeout=0.1, tell=told.append)
    assert told[-1] == f"command for {str(incoming / 'c.png')!r}: not done within 0.1 s: ended"
    wait_until(lambda: has_ended(int(pid.read_text())))


def has_ended(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


# --- a webhook ----------------------------------------------------------------------------------


class Receiver(http.server.ThreadingHTTPServer):
    """Takes posts on this machine; `answers` are the statuses of the next ones, then 200."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers, self.posts, self.keys = [], [], []
        self.free = threading.Event()
        self.free.set()
        self.url = f"http://127.0.0.1:{self.server_port}/hook"


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.server.free.wait(PATIENCE)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert self.headers["Content-Type"] == "application/json"
        status = self.server.answers.pop(0) if self.server.answers else 200
        self.server.posts.append((status, json.loads(body)))
        self.server.keys.append(self.headers["Idempotency-Key"])
        self.send_response(status)
        self.send_header("Location", self.server.url)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = None

    def log_message(self, *_):
        pass


@contextmanager
def receiving():
    with Receiver() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def receiver():
    with receiving() as server:
        yield server


@pytest.fixture
def hurry(monkeypatch):
    monkeypatch.setattr(notices, "_LONGEST_WAIT", 0.01)


def put(folder, *contents):
    for content in contents:
        (folder / f"{content.decode()}.png").write_bytes(content)


def taken(receiver):
    return [Path(body["path"]).stem for status, body in receiver.posts if status == 200]


@pytest.mark.usefixtures("hurry")
def test_a_webhook_is_posted_each_flagged_row_until_it_takes_it(quick, incoming, receiver):
    put(incoming, b"1", b"91", b"92", b"93")
    receiver.answers = [500, 302, 422]
    told = []
    found = take(quick, incoming, webhook=receiver.url, tell=told.append)
    flagged = [json.loads(row.as_json()) for row in found if row.flagged]
    assert len(flagged) == 3
    # Until it was taken, or refused for good.
    assert [status for status, _ in receiver.posts] == [500, 302, 422, 200, 200]
    assert [body for _, body in receiver.posts] == [flagged[0]] * 3 + flagged[1:]
    assert len(set(receiver.keys[:3])) == 1
    assert len(set(receiver.keys)) == 3
    assert {"path", "score", "threshold", "regions", "time"} <= set(flagged[0])
    assert told[1:] == [
        "webhook failed (HTTP 500): it is tried again",
        f"webhook for {str(incoming / '91.png')!r}: HTTP 422",
    ]


@pytest.mark.usefixtures("hurry")
def test_what_a_webhook_did_not_take_is_posted_by_the_next_start(quick, incoming, receiver):
    with receiving() as other:
        closed = other.url
    put(incoming, b"91", b"92")
    told = []
    assert len(take(quick, incoming, webhook=closed, tell=told.append)) == 2
    assert told[-1] == "webhook failed (connection refused): the next start tells what is left"
    put(incoming, b"93")
    assert len(take(quick, incoming, webhook=receiver.url)) == 1
    assert taken(receiver) == ["91", "92", "93"]
    # Without the option nothing is owed, and what came meanwhile is not told later.
    put(incoming, b"94")
    take(quick, incoming)
    assert not companion(incoming.parent / "table.csv", "webhook").exists()
    put(incoming, b"95")
    take(quick, incoming, webhook=receiver.url)
    assert taken(receiver) == ["91", "92", "93", "95"]


def test_scoring_does_not_wait_for_a_webhook(quick, incoming, receiver):
    put(incoming, *[b"9%d" % i for i in range(30)])
    receiver.free.clear()
    options = {"output": incoming.parent / "table.csv", "settle": 0, "tell": lambda _: None}
    with closing(watch(quick, incoming, once=True, webhook=receiver.url, **options)) as rows:
        assert len([next(rows) for _ in range(30)]) == 30
        assert receiver.posts == []
        receiver.free.set()
        assert list(rows) == []
    assert taken(receiver) == [f"9{i}" for i in range(30)]


def test_nothing_is_sent_unless_asked(quick, incoming, monkeypatch):
    wait_for_the_hub()
    events = []
    monkeypatch.setattr("socket.socket.connect", lambda *args: events.append(args))
    put(incoming, b"9")
    assert take(quick, incoming)[0].flagged
    assert events == []


# --- the command line ---------------------------------------------------------------------------


class Watching:
    """`patchcluster watch` in a process of its own."""

    def __init__(self, run, folder, *options):
        command = [sys.executable, "-m", "patchcluster", "watch", run.folder, folder]
        fast = ["--json", "--device", "cpu", "--settle", "0.2", "--interval", "0.05"]
        self.process = subprocess.Popen(
            [*map(str, command), *fast, *map(str, options)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_until_ready(self):
        line = self.process.stderr.readline()
        assert line.startswith("patchcluster: watching "), line + self.process.stderr.read()

    def row(self):
        return json.loads(self.process.stdout.readline())

    def end(self, number):
        self.process.send_signal(number)
        out, errors = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, out, errors


def test_the_command_is_killed_and_goes_on(small_run, incoming, receiver):
    table = incoming.parent / "table.csv"
    options = ("-o", table, "--webhook", receiver.url)
    receiver.answers = [503] * 1000
    first = Watching(small_run, incoming, *options)
    first.wait_until_ready()
    Image.fromarray(textured_image(49, blot=True)).save(incoming / ".part", "PNG")
    (incoming / ".part").rename(incoming / "1.png")
    row = first.row()
    assert (row["path"], row["flagged"]) == (str(incoming / "1.png"), True)
    with pytest.raises(RunError, match="is written by another process"):
        next(watch(small_run, incoming, output=table))
    assert first.end(signal.SIGKILL)[0] == -signal.SIGKILL

    with open(table, "ab") as file:
        file.write(b'"/torn/by/the kill')
    Image.fromarray(textured_image(51, blot=True)).save(incoming / "2.png")
    receiver.answers = []
    second = Watching(small_run, incoming, *options)
    assert "was torn, and was taken off" in second.process.stderr.readline()
    second.wait_until_ready()
    assert second.row()["path"] == str(incoming / "2.png")
    wait_until(lambda: len(taken(receiver)) == 2 or second.process.poll() is not None)
    code, out, errors = second.end(signal.SIGTERM)
    assert (code, out) == (0, "")
    assert "Traceback" not in errors
    assert taken(receiver) == ["1", "2"]
    assert [Path(one.path).name for one in read_rows(table)] == ["1.png", "2.png"]
