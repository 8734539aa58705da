"""Images and runs on shared storage: an S3 server in this process, HTTP, and memory that fails."""

import errno
import http.server
import io
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image
from typer.testing import CliRunner

import patchcluster
from conftest import textured_image, write_set
from killing import kill_scan, scan_apart
from patchcluster import cli, extraction, remote, runfolder
from patchcluster.demo import write_parts
from patchcluster.errors import InputError, RunError, UnreadableImage
from patchcluster.images import load_image, survey
from patchcluster.inputs import find_images, open_input, stamp
from patchcluster.methods import base
from patchcluster.runs import Run
from patchcluster.scanning import refresh
from patchcluster.thresholds import Flagging

URL = "faulty:///bucket/run"


class Faulty(MemoryFileSystem):
    """Storage in memory that breaks off at the n-th call that changes something."""

    protocol = "faulty"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    left: ClassVar[int | None] = None  # calls until it breaks off
    reads: ClassVar[list[tuple[str, int | None]]] = []  # name and end of what was read

    def _count(self) -> None:
        if Faulty.left is not None:
            if Faulty.left == 0:
                raise ConnectionResetError("the network is gone")
            Faulty.left -= 1

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("faulty://", "memory://")))

    def put_file(self, *args: Any, **kwargs: Any) -> Any:
        self._count()
        return super().put_file(*args, **kwargs)

    def pipe_file(self, *args: Any, **kwargs: Any) -> Any:
        self._count()
        return super().pipe_file(*args, **kwargs)

    def rm_file(self, path: str) -> Any:
        self._count()
        return super()._rm(path)

    _rm = rm_file

    def rm(self, path: list[str]) -> None:
        for one in path:
            self.rm_file(one)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        self._count()
        self.reads.append((path, end))
        return super().cat_file(path, start, end)


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faulty]:
    """Empty storage at faulty://, and an empty cache of this machine."""
    fsspec.register_implementation("faulty", Faulty, clobber=True)
    monkeypatch.setenv("PATCHCLUSTER_CACHE", str(tmp_path / "cache"))
    Faulty.store.clear()
    Faulty.reads.clear()
    Faulty.left = None
    yield fsspec.filesystem("faulty")
    Faulty.left = None


@contextmanager
def another_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("PATCHCLUSTER_CACHE", str(tmp_path / "another"))
        yield


def parts(folder: Path) -> dict[str, bytes]:
    """What a run in a folder holds."""
    files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if runfolder.is_part(name)}


def parts_at(fs: Any, root: str) -> dict[str, bytes]:
    """All that storage holds at a place."""
    fs.invalidate_cache()
    return {name[len(root) + 1 :]: fs.cat_file(name) for name in fs.find(root)}


def put_run(folder: Path, overwrite: bool = False) -> None:
    """Write a finished run to URL as a scan does, from one in a folder."""
    with remote.writing(URL, overwrite, lambda _: None) as (work, done):
        if not done:
            shutil.copytree(folder, work, dirs_exist_ok=True)


@pytest.fixture(scope="module")
def other_run(small_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The small run, flagged otherwise: fewer regions, another report."""
    folder = tmp_path_factory.mktemp("other") / "run"
    shutil.copytree(small_run.folder, folder)
    return refresh(folder, Flagging(flag_top=3))


# --- the files of a run there ---------------------------------------------------------------------


def test_a_run_is_uploaded_whole_and_read_back(storage, small_run, tmp_path, monkeypatch):
    put_run(small_run.folder)
    assert parts_at(storage, "/bucket/run") == parts(small_run.folder)
    with another_machine(monkeypatch, tmp_path):
        run = patchcluster.load_run(URL)
        assert parts(run.folder) == parts(small_run.folder)
        assert run.place == URL
        assert repr(run) == repr(small_run).replace(str(small_run.folder), URL)
        np.testing.assert_array_equal(run.map("part7.png"), small_run.map("part7.png"))


@pytest.mark.usefixtures("storage")
def test_a_copy_is_downloaded_once_and_again_when_the_run_is_another(
    small_run, other_run, tmp_path, monkeypatch
):
    put_run(small_run.folder)
    with another_machine(monkeypatch, tmp_path):
        first = remote.fetch(URL)
        Faulty.reads.clear()
        assert remote.fetch(URL) == first
        assert [name for name, _ in Faulty.reads] == ["/bucket/run/run.json"]
    put_run(other_run.folder, overwrite=True)
    with another_machine(monkeypatch, tmp_path):
        assert parts(remote.fetch(URL)) == parts(other_run.folder)
        (first / "maps" / "000003.npy").unlink()  # as something that cleans caches does
        assert parts(remote.fetch(URL)) == parts(other_run.folder)


def test_a_change_uploads_what_changed(storage, small_run, other_run):
    put_run(small_run.folder)
    bank = Faulty.store["/bucket/run/bank.safetensors"]
    assert refresh(URL, Flagging(flag_top=3)).flagged.sum() == 3
    there = parts_at(storage, "/bucket/run")
    assert Faulty.store["/bucket/run/bank.safetensors"] is bank
    assert json.loads(there["run.json"])["flagging"]["flag_top"] == 3
    for name in ("scores.csv", "regions.csv"):
        assert there[name] == (other_run.folder / name).read_bytes()
    assert f"patchcluster report {URL}".encode() in there["report.html"]


def uploads(before: Path | None, after: Path) -> Iterator[int]:
    """Break off an upload at each of its calls in turn; gives their numbers."""
    for number in range(1000):
        Faulty.store.clear()
        shutil.rmtree(remote.cache_folder(), ignore_errors=True)
        if before:
            put_run(before)
        Faulty.left = number
        try:
            put_run(after, overwrite=before is not None)
            return
        except RunError as error:
            message = str(error)
        finally:
            Faulty.left = None
        assert "the network is gone" in message
        yield number


def test_an_upload_that_breaks_off_anywhere_shows_no_half_run(
    storage, small_run, tmp_path, monkeypatch
):
    expected, seen = parts(small_run.folder), []
    for _ in uploads(None, small_run.folder):
        with another_machine(monkeypatch, tmp_path):
            seen.append(read_there())
        put_run(small_run.folder)
        assert parts_at(storage, "/bucket/run") == expected
    assert seen == ["no run"] * 3 + ["being uploaded"] * (len(seen) - 3)
    assert len(seen) > len(expected)


def read_there() -> str | dict[str, bytes]:
    """What the run at URL holds for who reads it now, or why it cannot be read."""
    try:
        return parts(remote.fetch(URL))
    except RunError as error:
        return "being uploaded" if "is being uploaded" in str(error) else "no run"


def test_an_overwriting_upload_that_breaks_off_shows_the_old_run_or_none(
    storage, small_run, other_run, tmp_path, monkeypatch
):
    old, new, seen = parts(small_run.folder), parts(other_run.folder), []
    for _ in uploads(small_run.folder, other_run.folder):
        with another_machine(monkeypatch, tmp_path):
            found = read_there()
        seen.append("old" if found == old else found)
        put_run(other_run.folder, overwrite=True)
        assert parts_at(storage, "/bucket/run") == new
    kept = seen.count("old")
    assert kept > 2
    assert seen == ["old"] * kept + ["being uploaded"] * (len(seen) - kept)


@pytest.mark.usefixtures("storage")
def test_a_download_that_breaks_off_goes_on(small_run, tmp_path, monkeypatch):
    put_run(small_run.folder)
    monkeypatch.setattr(remote, "_AT_A_TIME", 4)
    got: list[str] = []
    get_file = MemoryFileSystem.get_file

    def break_off(self: Any, name: str, path: str, **kwargs: Any) -> None:
        if len(got) == 6:
            Path(path).write_bytes(b"half")
            got.append(name)
            raise ConnectionResetError("the network is gone")
        got.append(name)
        get_file(self, name, path, **kwargs)

    with another_machine(monkeypatch, tmp_path):
        monkeypatch.setattr(MemoryFileSystem, "get_file", break_off)
        with pytest.raises(RunError, match="the network is gone"):
            remote.fetch(URL)
        assert parts(remote.fetch(URL)) == parts(small_run.folder)
        assert len(got) == len(parts(small_run.folder)) - 1 + 1  # run.json is read; one came twice


def test_a_run_that_is_replaced_while_it_is_read_is_refused(
    storage, small_run, other_run, tmp_path, monkeypatch
):
    put_run(small_run.folder)
    look = remote._Copy.look
    looked: list[str] = []

    def look_and_replace(self: Any) -> Any:
        looked.append(self.url)
        if len(looked) == 2:  # after the files, before run.json
            storage.pipe_file("/bucket/run/run.json", (other_run.folder / "run.json").read_bytes())
        return look(self)

    with another_machine(monkeypatch, tmp_path):
        monkeypatch.setattr(remote._Copy, "look", look_and_replace)
        with pytest.raises(RunError, match="changed while it was read"):
            remote.fetch(URL)


def test_names_of_a_run_there_cannot_lead_out_of_the_copy(
    storage, small_run, tmp_path, monkeypatch
):
    put_run(small_run.folder)
    for name in (
        "maps/../../../out",
        "../out",
        "roi/..",
        "thumbnails/a\\..\\b",
        "/out",
        "other.py",
    ):
        Faulty.store[f"/bucket/run/{name}"] = storage.store["/bucket/run/scores.csv"]
    with another_machine(monkeypatch, tmp_path):
        assert parts(remote.fetch(URL)) == parts(small_run.folder)
        (home,) = (tmp_path / "another" / "runs").iterdir()
        found = [path.relative_to(home / "run") for path in (home / "run").rglob("*")]
        assert all((small_run.folder / path).exists() for path in found)
        assert sorted(os.listdir(home)) == [".lock", "record.json", "run"]
    assert os.listdir(tmp_path / "another") == ["runs"]


# --- several machines -----------------------------------------------------------------------------


def test_of_two_machines_the_second_to_finish_is_told(storage, small_run, tmp_path, monkeypatch):
    def scan_slowly() -> None:
        with remote.writing(URL, False, lambda _: None) as (work, _):
            shutil.copytree(small_run.folder, work)
            with another_machine(monkeypatch, tmp_path):
                put_run(small_run.folder)
            (work / "run.json").write_bytes((work / "run.json").read_bytes() + b"\n")

    with pytest.raises(RunError, match="was written by others since the work here began"):
        scan_slowly()
    assert parts_at(storage, "/bucket/run") == parts(small_run.folder)


def test_an_upload_of_another_machine_is_left_alone(storage, small_run, tmp_path, monkeypatch):
    with another_machine(monkeypatch, tmp_path):
        Faulty.left = 12
        with pytest.raises(RunError, match="the network is gone"):
            put_run(small_run.folder)
        Faulty.left = None
    before = parts_at(storage, "/bucket/run")
    with pytest.raises(RunError, match=r"being uploaded from .* add --overwrite"):
        put_run(small_run.folder)
    with pytest.raises(RunError, match="being uploaded from"):
        refresh(URL, Flagging())
    assert parts_at(storage, "/bucket/run") == before
    put_run(small_run.folder, overwrite=True)
    assert parts_at(storage, "/bucket/run") == parts(small_run.folder)


def test_a_change_that_was_not_uploaded_is_uploaded_by_the_same_command(storage, small_run):
    put_run(small_run.folder)
    Faulty.left = 3
    with pytest.raises(RunError, match="the network is gone"):
        refresh(URL, Flagging(flag_top=3))
    Faulty.left = None
    with pytest.raises(RunError, match="repeat the command"):
        patchcluster.load_run(URL)
    refresh(URL, Flagging(flag_top=3))
    assert patchcluster.load_run(URL).flagged.sum() == 3
    assert b"flag_top" in parts_at(storage, "/bucket/run")["run.json"]


@pytest.mark.usefixtures("storage")
def test_a_run_can_be_read_while_another_process_holds_its_copy(small_run):
    put_run(small_run.folder)
    folder = remote.fetch(URL)
    hold = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'r+'); fcntl.flock(f, fcntl.LOCK_EX); "
        "print('held', flush=True); time.sleep(600)"
    )
    line = [sys.executable, "-c", hold, str(folder.parent / ".lock")]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        assert len(patchcluster.load_run(URL)) == len(small_run)
        with pytest.raises(RunError, match=f"'{URL}' is in use by another process"):
            refresh(URL, Flagging())
        process.kill()


def test_labels_of_a_review_are_uploaded(storage, small_run):
    put_run(small_run.folder)
    with suppress(KeyboardInterrupt), remote.changing(URL) as folder:
        (folder / "labels.sqlite").write_bytes(b"labels")
        raise KeyboardInterrupt  # killed: not uploaded
    assert "labels.sqlite" not in parts_at(storage, "/bucket/run")
    patchcluster.load_run(URL)  # can be read meanwhile
    with remote.changing(URL) as folder:
        assert (folder / "labels.sqlite").read_bytes() == b"labels"
    assert parts_at(storage, "/bucket/run")["labels.sqlite"] == b"labels"


# --- what is refused ------------------------------------------------------------------------------


def test_a_place_with_other_files_is_refused_before_any_work(storage):
    storage.pipe_file("/bucket/run/holiday.jpg", b"x")
    for overwrite in (False, True):
        with pytest.raises(RunError, match=r"holds other files \(holiday.jpg\): choose"):
            patchcluster.scan("nowhere", URL, overwrite=overwrite)
    assert parts_at(storage, "/bucket/run") == {"holiday.jpg": b"x"}


@pytest.mark.usefixtures("storage")
def test_a_place_that_cannot_be_written_is_refused_before_any_work():
    Faulty.left = 0
    with pytest.raises(RunError, match=f"cannot write to '{URL}' .the network is gone."):
        patchcluster.scan("nowhere", URL)


def test_another_scan_is_refused_before_it_is_downloaded(storage, small_run, tmp_path):
    put_run(small_run.folder)
    shutil.rmtree(remote.cache_folder())
    Faulty.reads.clear()
    with pytest.raises(RunError, match=f"'{URL}' holds a scan of other inputs or settings"):
        patchcluster.scan(tmp_path, URL)
    assert [name for name, _ in Faulty.reads] == ["/bucket/run/run.json"]
    assert parts_at(storage, "/bucket/run") == parts(small_run.folder)


@pytest.mark.usefixtures("storage")
@pytest.mark.parametrize(
    ("url", "says"),
    [
        (URL, "is not a run"),
        ("faulty://bucket/a*", "choose another name"),
        ("nosuch://bucket/run", "nosuch"),
        ("gs://bucket/run", "a package for gs:// is missing: pip install gcsfs"),
    ],
)
def test_what_is_no_run_is_refused(url, says):
    with pytest.raises((RunError, InputError), match=re.escape(says)):
        patchcluster.load_run(url)


# --- images ---------------------------------------------------------------------------------------


def test_a_lost_connection_ends_a_scan_and_is_no_fault_of_an_image(storage, tmp_path):
    for path in write_set(tmp_path / "images", 3):
        storage.pipe_file(f"/bucket/{path.name}", path.read_bytes())
    Faulty.left = 4  # of 3 headers and 3 images
    with pytest.raises(InputError, match=r"cannot reach .* the same command resumes"):
        patchcluster.scan("faulty://bucket", tmp_path / "run", size=(64,))
    Faulty.left = None
    run = patchcluster.scan("faulty://bucket", tmp_path / "run", size=(64,))
    assert (len(run), run.skipped) == (3, [])


def answered(code: str) -> Exception:
    """A forbidden file as s3fs says it, with what the server said."""
    error, cause = PermissionError(code), Exception()
    cause.response = {"Error": {"Code": code}}
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (answered("ExpiredToken"), InputError),
        (OSError(errno.EBUSY, "slow down"), InputError),
        (TimeoutError(), InputError),
        (answered("AccessDenied"), UnreadableImage),
        (FileNotFoundError("gone"), UnreadableImage),
        (ValueError("no such thing"), UnreadableImage),
    ],
)
@pytest.mark.usefixtures("storage")
def test_what_is_wrong_with_a_file_is_told_from_the_way_to_it(monkeypatch, error, kind):
    def fail(*_: Any, **__: Any) -> bytes:
        raise error

    monkeypatch.setattr(Faulty, "cat_file", fail)
    with pytest.raises(InputError) as raised:
        open_input("faulty://bucket/a.png")
    assert type(raised.value) is kind


def test_of_a_large_picture_the_survey_fetches_the_beginning(storage):
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (600, 500, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG", quality=95)
    storage.pipe_file("/bucket/a.jpg", buffer.getvalue())
    assert len(buffer.getvalue()) > 300_000
    header = survey("faulty://bucket/a.jpg")
    assert (header.width, header.height) == (500, 600)
    assert Faulty.reads == [("/bucket/a.jpg", 65536)]
    loaded = load_image("faulty://bucket/a.jpg", header, [(64, 64)], {})
    assert loaded.file_size == len(buffer.getvalue())
    assert Faulty.reads[1:] == [("/bucket/a.jpg", None)]


def test_what_lies_behind_the_beginning_is_read_when_it_is_asked_for(storage):
    data = np.random.default_rng(0).bytes(300_000)
    storage.pipe_file("/bucket/a", data)
    with open_input("faulty://bucket/a", head=True) as file:
        assert file.read(10) == data[:10]
        file.seek(65_530)
        assert file.read(100) == data[65_530:65_630]
        assert file.seek(-5, io.SEEK_END) == 299_995
        assert file.read() == data[-5:]
        file.seek(0)
        assert file.read() == data
    assert [end for _, end in Faulty.reads] == [65536, None]
    big = Image.fromarray(np.random.default_rng(0).integers(0, 65535, (500, 500), np.uint16))
    buffer = io.BytesIO()
    big.save(buffer, "TIFF")  # its values are all read for their range
    storage.pipe_file("/bucket/a.tif", buffer.getvalue())
    assert survey("faulty://bucket/a.tif") == survey(buffer.getvalue())


def test_a_stamp_tells_versions_of_equal_size_apart(storage):
    storage.pipe_file("/bucket/a.png", b"one")
    first = stamp("faulty://bucket/a.png")
    assert stamp("faulty://bucket/a.png") == first
    storage.pipe_file("/bucket/a.png", b"two")
    assert stamp("faulty://bucket/a.png")[0] == first[0] == 3
    assert stamp("faulty://bucket/a.png")[1] != first[1] != 0
    with pytest.raises(UnreadableImage):
        stamp("faulty://bucket/none.png")


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


def test_an_image_over_http(tmp_path, small_run):
    pytest.importorskip("aiohttp", reason="fsspec reads http:// by way of aiohttp")
    Image.fromarray(textured_image(7, 96, 96, True)).save(tmp_path / "new part.png")
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(_Quiet, directory=str(tmp_path))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    root = f"http://127.0.0.1:{server.server_port}"
    try:
        url = f"{root}/new%20part.png"
        assert find_images([url]) == [url]
        assert stamp(url)[1] != 0  # Last-Modified
        scores = patchcluster.score(small_run, [url])
        local = patchcluster.score(small_run, tmp_path / "new part.png")
        assert scores.images[0].score == local.images[0].score
        with pytest.raises(InputError, match="nothing is at"):
            find_images([f"{root}/none.png"])
        with pytest.raises(UnreadableImage):
            open_input(f"{root}/none.png")
    finally:
        server.shutdown()
        server.server_close()
    with pytest.raises(InputError, match="cannot reach"):
        open_input(url)


# --- S3 -------------------------------------------------------------------------------------------


class _Requests(logging.Handler):
    """The requests that the server got: method and path."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        line = re.sub(r"\x1b\[[0-9;]*m", "", record.getMessage())
        self.seen += re.findall(r'"([A-Z]+ \S+) HTTP', line)


@pytest.fixture(scope="module")
def requested() -> Iterator[_Requests]:
    handler, log = _Requests(), logging.getLogger("werkzeug")
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    log.propagate = False
    yield handler
    log.removeHandler(handler)


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The file system of an S3 server with an empty bucket."""
    server_module = pytest.importorskip("moto.server", reason="moto is not installed")
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    server = server_module.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("PATCHCLUSTER_CACHE", str(tmp_path_factory.mktemp("cache")))
        # As in the scans that are killed: what they end with must be the same to the last bit.
        patch.setattr(extraction, "BATCH_PIXELS", 2 * 128 * 128)
        patch.setattr(base, "COMPARED_PATCHES", 128)
        fs = fsspec.filesystem("s3")
        fs.mkdir("bucket")
        yield fs
        fs.clear_instance_cache()
    server.stop()


@pytest.fixture(scope="module")
def images(s3: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A local folder of images that lies at s3://bucket/a set too."""
    folder = tmp_path_factory.mktemp("s3") / "a set"
    for i, path in enumerate(write_set(folder, 7)):
        path.rename(path.with_name(f"teil {i} ü#+.png"))
    (folder / "broken.png").write_bytes(b"no image")
    s3.put(f"{folder}/", "bucket/a set/", recursive=True)
    s3.pipe_file("bucket/a set/sub/", b"")  # as web consoles make a folder
    s3.pipe_file("bucket/a set/.hidden.png", b"x")
    return folder


@pytest.mark.usefixtures("images")
def test_files_of_a_bucket_are_listed(s3):
    at = "s3://bucket/a set"
    expected = [f"{at}/broken.png", *(f"{at}/teil {i} ü#+.png" for i in range(7))]
    assert find_images([at]) == find_images([f"{at}/"]) == expected
    assert find_images([f"{at}/teil [34]*.png", expected[1]]) == [expected[i] for i in (1, 4, 5)]
    s3.pipe_file("bucket/odd/a[1]?.png", b"x")
    assert find_images(["s3://bucket/odd/a[1]?.png"]) == ["s3://bucket/odd/a[1]?.png"]
    for name in ("run/run.json", "run/maps/1.npy", "b.png", "half/.uploading", "half/maps/1.npy"):
        s3.pipe_file(f"bucket/mixed/{name}", b"x")
    found = find_images(["s3://bucket/mixed"], leave_out_remote=runfolder.find_runs)
    assert found == ["s3://bucket/mixed/b.png"]


@pytest.fixture(scope="module")
def local(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of s3://bucket/a set in a local folder."""
    assert images.is_dir()
    out = tmp_path_factory.mktemp("local") / "run"
    return patchcluster.scan("s3://bucket/a set", out, size=(128,)).folder


def results(files: dict[str, bytes]) -> dict[str, bytes]:
    """What two scans of the same have in common: not the times."""
    run = json.loads(files["run.json"])
    for name in ("started", "finished", "seconds", "predicted_seconds", "memory"):
        del run[name]
    kept = {name: data for name, data in files.items() if name not in ("run.json", "report.html")}
    return kept | {"run.json": json.dumps(run).encode()}


def test_a_scan_from_s3_to_s3_is_that_of_local_folders(s3, images, local, requested):
    requested.seen.clear()
    run = patchcluster.scan("s3://bucket/a set", "s3://bucket/runs/first", size=(128,))
    read = [line for line in requested.seen if "teil" in line]
    assert all(line.startswith("GET") for line in read)
    assert len(read) <= 7 * 2 + 4  # header, image, and those by which the time is foreseen
    assert run.skipped[0].path == "s3://bucket/a set/broken.png"
    there = parts_at(s3, "bucket/runs/first")
    assert results(there) == results(parts(local))
    of_files = patchcluster.scan(images, images.parent / "local", size=(128,))
    assert there["scores.csv"].decode().replace("s3://bucket/a set", str(images)).encode() == (
        (of_files.folder / "scores.csv").read_bytes()
    )
    requested.seen.clear()
    patchcluster.scan("s3://bucket/a set", "s3://bucket/runs/first", size=(128,))
    changes = [line for line in requested.seen if not line.startswith(("GET", "HEAD"))]
    assert [line for line in changes if ".writable" not in line] == []


@pytest.mark.slow
def test_a_scan_that_is_killed_twice_ends_as_if_undisturbed(s3, local):
    out, small = "s3://bucket/runs/killed", "import patchcluster.remote as r; r._AT_A_TIME = 4\n"
    kill_scan("features", "s3://bucket/a set", out)
    with pytest.raises(RunError, match=f"the scan of '{out}' is not finished: run the same"):
        patchcluster.load_run(out)
    assert parts_at(s3, "bucket/runs/killed") == {}
    kill_scan("upload", "s3://bucket/a set", out, small)
    with pytest.raises(RunError, match="repeat the command that was interrupted"):
        patchcluster.load_run(out)
    uploaded = parts_at(s3, "bucket/runs/killed")
    assert 4 < len(uploaded) < len(parts(local))
    scan_apart("s3://bucket/a set", out)
    assert results(parts_at(s3, "bucket/runs/killed")) == results(parts(local))


def test_an_object_that_was_replaced_is_noticed(s3, tmp_path):
    for i in range(3):
        s3.pipe_file(f"bucket/changing/{i}.bmp", bmp(i))
    patchcluster.scan("s3://bucket/changing", tmp_path / "run", size=(64,))
    patchcluster.scan("s3://bucket/changing", tmp_path / "run", size=(64,))
    s3.pipe_file("bucket/changing/1.bmp", bmp(9))
    with pytest.raises(RunError, match="the images have changed"):
        patchcluster.scan("s3://bucket/changing", tmp_path / "run", size=(64,))


def bmp(seed: int) -> bytes:
    """A picture whose file is as long as that of any other seed."""
    buffer = io.BytesIO()
    Image.fromarray(textured_image(seed)).save(buffer, "BMP")
    return buffer.getvalue()


def test_commands_take_urls(s3, tmp_path, monkeypatch):
    def command(*line: str) -> tuple[int, str, str]:
        result = CliRunner().invoke(cli.app, line)
        return result.exit_code, result.stdout, result.stderr

    monkeypatch.chdir(tmp_path)
    write_parts(tmp_path / "parts", good=4, defective=3)
    s3.put(str(tmp_path / "parts" / "test"), "bucket/parts/test", recursive=True)
    images, out, table = "s3://bucket/parts/test", "s3://bucket/runs/parts", "s3://bucket/new.csv"
    code, shown, progress = command("scan", images, "-o", out, "--size", "64", "--json")
    assert (code, json.loads(shown)["run"]) == (0, out)
    assert "uploading: " in progress
    code, _, told = command("report", out, "--flag-top", "2")
    assert (code, told.splitlines()[-1][:23]) == (0, "2 of 7 images flagged: ")
    code, shown, _ = command("evaluate", out, "--truth", "parts", "--json")
    assert code == 0
    assert json.loads(shown)["image_auroc"] is not None
    assert command("score", out, images, "-o", table)[0] == 0
    s3.invalidate_cache()
    assert len(s3.cat_file(table).splitlines()) == 1 + 7
    assert command("demo", "-o", "s3://bucket/demo")[0] == 2
    code, _, told = command("scan", images, "-o", "s3://none/run")
    assert (code, len(told.splitlines())) == (1, 1)
    assert os.listdir() == ["parts"]
