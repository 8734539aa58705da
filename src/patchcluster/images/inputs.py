"""Read the bytes of files: local paths and fsspec URLs."""

import errno
import hashlib
import io
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ..errors import InputError, UnreadableImage

_HEAD = 64 * 1024  # bytes of a remote file that are fetched to read its header
_SMALL = 256 * 1024  # bytes up to which a second request would take longer than all of the file
_VERSION_FIELDS = (  # what file systems say of the version of a file, what says most first
    "ETag", "etag", "generation", "blob_id", "oid", "md5Hash", "content_hash", "Content-MD5",
    "mtime", "LastModified", "last_modified", "Last-Modified", "modified", "modify", "created",
)  # fmt: skip
# Classes of errors of a connection or of credentials, in the standard library, botocore, requests,
# aiohttp, httpx and google.auth, of which not all are installed.
_ACCESS_ERRORS = {
    "ConnectionError", "TimeoutError", "HTTPClientError", "ClientConnectionError", "TransportError",
    "NoCredentialsError", "CredentialRetrievalError", "SSOError", "RefreshError",
}  # fmt: skip
_ACCESS_CODES = {  # of S3, which s3fs turns into the error of a forbidden file
    "ExpiredToken", "InvalidToken", "TokenRefreshRequired", "InvalidAccessKeyId",
    "SignatureDoesNotMatch", "RequestTimeTooSkewed",
}  # fmt: skip
_ACCESS_STATUS = (401, 429, 500, 502, 503, 504)  # HTTP: not logged in, busy
_BUSY = {errno.EBUSY, getattr(errno, "EREMOTEIO", errno.EBUSY)}
_PACKAGES = {  # that fsspec asks for, by protocol
    "s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub",
    "http": "aiohttp", "https": "aiohttp", "abfs": "adlfs", "abfss": "adlfs", "az": "adlfs",
    "sftp": "paramiko", "ssh": "paramiko",
}  # fmt: skip


def natural_key(path: str) -> list[tuple[int, int, str]]:
    """Sort key that puts `part2.png` before `part10.png`."""
    pieces = re.split(r"(\d+)", path)
    return [(0, int(p), p) if p.isdecimal() and p.isascii() else (1, 0, p) for p in pieces]


def is_url(path: str) -> bool:
    """Whether a path names a remote file system (`s3://...`) rather than a local file."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", path) is not None


def local_path(place: str | os.PathLike[str]) -> Path:
    """Return the path of a run, or of a file or folder to write. Raises InputError for a URL."""
    name = os.fspath(place)
    if is_url(name):
        raise InputError(
            f"{name!r} is a URL, and only images can be at one: name a path on this machine"
        )
    return Path(name)


def open_place(url: str) -> tuple[Any, str]:
    """Return the fsspec file system of a URL and the name in it. Raises InputError."""
    import fsspec

    try:
        fs, root = fsspec.core.url_to_fs(url)
    except ImportError as error:
        protocol = url.split("://")[0].lower()
        package = _PACKAGES.get(protocol)
        advice = f": pip install {package}" if package else f": {reason(error)}"
        raise InputError(
            f"cannot open {url!r}, a package for {protocol}:// is missing{advice}"
        ) from error
    except ValueError as error:
        raise InputError(f"cannot open {url!r}: {reason(error)}") from error
    return fs, root


def open_input(path: str, head: bool = False) -> IO[bytes]:
    """Open a local file or a URL for reading and seeking.

    head: only the beginning may be needed; of a URL no more is then fetched before it is asked for.
    A pipe or a device is never opened: it could block for ever.

    Raises UnreadableImage with the reason, and InputError if the storage cannot be reached: that
    says nothing of the image.
    """
    file = _open_url(path, head) if is_url(path) else _open_local(path)
    if not file.read(1):
        file.close()
        raise UnreadableImage("empty file (0 bytes)")
    file.seek(0)
    return file


def read_input(path: str) -> bytes:
    """Read all bytes of a local file or a URL. Raises as `open_input`."""
    with open_input(path) as file:
        try:
            return file.read()
        except OSError as error:  # a disk or a share that fails in the middle
            raise UnreadableImage(reason(error)) from error


def locate(path: str) -> str:
    """Return an absolute path, which does not depend on the current folder, or the URL."""
    return path if is_url(path) else os.path.join(os.getcwd(), path)


def find_again(path: str, run: Path) -> Path:
    """Find a local file that a scan read: by its path, or relative to the folder of the run.

    Raises UnreadableImage if it is in neither place.
    """
    for file in (Path(path), run.absolute().parent / path):
        if file.is_file():
            return file
    raise UnreadableImage("the file is not where it was when it was scanned")


def hash_file(path: str) -> str:
    """Return the SHA-256 of a file or URL; "" if it cannot be read."""
    try:
        with open_input(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    except (UnreadableImage, OSError):
        return ""


def _open_local(path: str) -> IO[bytes]:
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise UnreadableImage("a folder that cannot be listed")
        if not stat.S_ISREG(mode):
            raise UnreadableImage("not a regular file")
        return open(path, "rb")
    except OSError as error:
        raise UnreadableImage(reason(error)) from error


def _open_url(url: str, head: bool) -> IO[bytes]:
    with _reaching(url):
        fs, name = open_place(url)
        size = fs.info(name).get("size") if head else None
        whole = name.lower().endswith(".png")  # gone through to its end: see `decode._has_metadata`
        if whole or size is None or size <= _SMALL:
            return io.BytesIO(fs.cat_file(name))
        return io.BufferedReader(_Beginning(url, fs.cat_file(name, start=0, end=_HEAD), size))


class _Beginning(io.RawIOBase):
    """The first bytes of a remote file; a read beyond them fetches the whole file."""

    def __init__(self, url: str, data: bytes, size: int) -> None:
        super().__init__()
        self._url, self._data, self._size, self._at = url, data, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError("before the beginning of the file")
        self._at = start + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        if len(self._data) <= self._at < self._size:
            with _reaching(self._url):
                fs, name = open_place(self._url)
                self._data = fs.cat_file(name)
            self._size = len(self._data)
        part = self._data[self._at : self._at + len(buffer)]
        buffer[: len(part)] = part
        self._at += len(part)
        return len(part)


@contextmanager
def _reaching(url: str) -> Iterator[None]:
    """Raise UnreadableImage for a bad file, InputError for a lost connection."""
    try:
        yield
    except (InputError, UnreadableImage):
        raise
    except Exception as error:  # each file system raises its own classes
        if is_of_access(error):
            raise InputError(
                f"cannot reach {url!r} ({reason(error)}): check connection and credentials; the "
                "same command resumes"
            ) from error
        raise UnreadableImage(reason(error)) from error


def is_of_access(error: Exception) -> bool:
    """Whether an error is of the connection or credentials, not of the file."""
    names = {one.__name__ for one in type(error).__mro__}
    busy = isinstance(error, OSError) and error.errno in _BUSY
    status = getattr(error, "status", getattr(error, "code", None))
    answer = getattr(error.__cause__, "response", None)  # botocore's
    code = answer.get("Error", {}).get("Code") if isinstance(answer, dict) else None
    return bool(names & _ACCESS_ERRORS) or busy or status in _ACCESS_STATUS or code in _ACCESS_CODES


def stamp(path: str) -> list[int]:
    """Return size in bytes and modification time in ns of a file, to notice that it changed.

    For a URL the second number stands for the version that its file system reports (ETag,
    generation, time); 0: none. Raises UnreadableImage with the reason, and InputError as
    `open_input`.
    """
    if is_url(path):
        with _reaching(path):
            fs, name = open_place(path)
            info = fs.info(name)
            return [int(info.get("size") or 0), version_of(info)]
    try:
        status = os.stat(path)
    except OSError as error:
        raise UnreadableImage(reason(error)) from error
    return [status.st_size, status.st_mtime_ns]


def version_of(info: Mapping[str, Any]) -> int:
    """Return a number for the version that an fsspec file system reports; 0: none."""
    said = next((info[field] for field in _VERSION_FIELDS if info.get(field)), None)
    if said is None:
        return 0
    return int.from_bytes(hashlib.sha256(str(said).encode()).digest()[:6], "big")


def reason(error: Exception) -> str:
    """Return the cause in one line: the system's words for an OSError, else the message."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return " ".join(str(error).split()) or type(error).__name__


class PathFinder:
    """Finds images by their full path, or by the end of it if that is unique."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._positions = {path: i for i, path in enumerate(paths)}
        self._by_name: dict[str, list[tuple[list[str], int]]] = {}
        for i, path in enumerate(paths):
            parts = _split(path)
            self._by_name.setdefault(parts[-1], []).append((parts, i))

    def find(self, path: str) -> int:
        """Return the index of an image. Raises InputError if none or several match."""
        if path in self._positions:
            return self._positions[path]
        end = _split(path)
        named = self._by_name.get(end[-1], [])
        fitting = [i for parts, i in named if parts[-len(end) :] == end]
        if len(fitting) == 1:
            return fitting[0]
        what = f"fits {len(fitting)} images" if fitting else "is not among the images"
        raise InputError(f"{path!r} {what}: give the path as scores.csv has it")


def _split(path: str) -> list[str]:
    return path.replace("\\", "/").lstrip("/").split("/")
