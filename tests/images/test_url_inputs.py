"""Images at URLs: an S3 server in this process, HTTP, and storage in memory that fails."""

import errno
import http.server
import io
import json
import logging
import re
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

import patchcluster
from conftest import run_command, save_image, scan_until, textured_image, write_set
from patchcluster.errors import InputError, RunError, UnreadableImage
from patchcluster.images.decode import load_image, read_header
from patchcluster.images.finding import find_images
from patchcluster.images.inputs import open_input, stamp
from patchcluster.images.raster import encode
from patchcluster.runs import runfolder
from patchcluster.runs.run import Run


class Faulty(MemoryFileSystem):
    """Storage in memory whose connection is lost after a number of reads."""

    protocol = "faulty"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    left: ClassVar[int | None] = None  # reads before the connection is lost
    reads: ClassVar[list[tuple[str, int | None]]] = []  # name and end of what was read

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("faulty://", "memory://")))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        if Faulty.left is not None:
            if Faulty.left == 0:
                raise ConnectionResetError("the network is gone")
            Faulty.left -= 1
        self.reads.append((path, end))
        return super().cat_file(path, start, end)


@pytest.fixture
def storage() -> Iterator[Faulty]:
    """Empty storage at faulty://."""
    fsspec.register_implementation("faulty", Faulty, clobber=True)
    Faulty.store.clear()
    Faulty.reads.clear()
    Faulty.left = None
    yield fsspec.filesystem("faulty")
    Faulty.left = None


def test_a_lost_connection_ends_a_scan_and_is_no_fault_of_an_image(storage, tmp_path):
    for path in write_set(tmp_path / "images", 3):
        storage.pipe_file(f"/bucket/{path.name}", path.read_bytes())
    Faulty.left = 4  # of 3 headers and 3 images
    with pytest.raises(InputError, match=r"cannot reach .* the same command resumes"):
        patchcluster.scan("faulty://bucket", tmp_path / "run", size=(64,))
    Faulty.left = None
    run = patchcluster.scan("faulty://bucket", tmp_path / "run", size=(64,))
    assert (len(run), run.skipped) == (3, [])


def test_hidden_and_system_files_at_a_url_are_left_out_unless_named(storage):
    names = ("a.png", "@eaDir/a.png/1.jpg", "@eaDir/b.png/1.jpg", "x/Thumbs.db", "x/.b.png")
    for name in names:
        storage.pipe_file(f"/bucket/{name}", b"x")
    lines: list[str] = []
    assert find_images(["faulty://bucket"], tell=lines.append) == ["faulty:///bucket/a.png"]
    assert lines == ["files and folders of the system left out: 2 (@eaDir, Thumbs.db)"]
    assert find_images(["faulty://bucket/**"]) == ["faulty:///bucket/a.png"]
    assert len(find_images(["faulty://bucket/@eaDir"])) == 2
    assert len(find_images(["faulty://bucket/@eaDir/*/1.jpg", "faulty://bucket/x/Thumbs.db"])) == 3


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
    header = read_header("faulty://bucket/a.jpg")
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
    assert read_header("faulty://bucket/a.tif") == read_header(buffer.getvalue())


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


def test_an_image_over_http(tmp_path, small_run):
    pytest.importorskip("aiohttp", reason="fsspec reads http:// by way of aiohttp")
    path = save_image(tmp_path / "new part.png", textured_image(7, blot=True))
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
        local = patchcluster.score(small_run, path)
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
def s3() -> Iterator[Any]:
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
    for name in ("run/run.json", "run/maps/1.npy", "b.png"):
        s3.pipe_file(f"bucket/mixed/{name}", b"x")
    found = find_images(["s3://bucket/mixed"], leave_out_remote=runfolder.find_runs)
    assert found == ["s3://bucket/mixed/b.png"]


@pytest.fixture(scope="module")
def scanned(
    images: Path, requested: _Requests, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Run, list[str]]:
    """The run of s3://bucket/a set, and the requests that its scan made."""
    assert images.is_dir()
    requested.seen.clear()
    out = tmp_path_factory.mktemp("scanned") / "run"
    return patchcluster.scan("s3://bucket/a set", out, size=(128,)), list(requested.seen)


def test_a_scan_of_a_bucket_is_that_of_local_files(images, scanned, tmp_path):
    run, requests = scanned
    read = [line for line in requests if "teil" in line]
    assert all(line.startswith("GET") for line in read)
    tried = 3 * torch.get_num_threads()  # to predict the time
    assert len(read) <= 7 * 2 + tried  # of each its header and its pixels
    assert run.skipped[0].path == "s3://bucket/a set/broken.png"
    local = patchcluster.scan(images, tmp_path / "run", size=(128,))
    table = (run.folder / "scores.csv").read_text().replace("s3://bucket/a set", str(images))
    assert table == (local.folder / "scores.csv").read_text()


def test_a_finished_scan_of_a_bucket_only_lists_it_again(scanned, requested):
    run, _ = scanned
    requested.seen.clear()
    patchcluster.scan("s3://bucket/a set", run.folder, size=(128,))
    assert requested.seen
    assert not [line for line in requested.seen if "teil" in line]


def test_a_scan_of_a_bucket_that_is_interrupted_ends_as_if_undisturbed(
    scanned, requested, tmp_path
):
    out = tmp_path / "run"
    scan_until("compare", "s3://bucket/a set", out, size=(128,))
    requested.seen.clear()
    resumed = patchcluster.scan("s3://bucket/a set", out, size=(128,))
    read = [line for line in requested.seen if "teil" in line]
    assert len(read) <= 7 + 3 * torch.get_num_threads()  # headers, and to predict the time
    for name in ("scores.csv", "regions.csv"):
        assert (out / name).read_bytes() == (scanned[0].folder / name).read_bytes()
    assert resumed.skipped == scanned[0].skipped


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
    return encode(textured_image(seed), "BMP")


def test_commands_take_images_at_urls(s3, scanned, tmp_path):
    for path in write_set(tmp_path / "new", 3):
        s3.put(str(path), f"bucket/new/{path.name}")
    run, new = tmp_path / "run", [f"s3://bucket/new/part{i}.png" for i in range(3)]
    first = run_command("scan", new[0], new[1], "-o", run, "--size", 128, "--json")
    assert json.loads(first.stdout)["images"] == 2
    scored = run_command("score", scanned[0].folder, "s3://bucket/new", "--json")
    assert [one["path"] for one in json.loads(scored.stdout)["images"]] == new
    assert run_command("update", run, "--add", new[2]).exit_code == 0
    assert patchcluster.load_run(run).paths == new
    told = run_command("scan", "s3://none/images", "-o", tmp_path / "none")
    assert (told.exit_code, len(told.stderr.splitlines())) == (1, 1)
