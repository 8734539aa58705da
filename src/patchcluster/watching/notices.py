"""Who is told of flagged images: a command on this machine, or an address that the user gave.

What is to be told is in the table, and how far it was told in a small file beside it, so that each
flagged image is told at least once, in the order of the table, whatever is killed in between.
"""

import http.client
import json
import os
import shlex
import shutil
import signal
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from .. import __version__, storage
from ..errors import RunError, SettingError
from ..inputs import reason
from .table import Row, Table, companion

_LONGEST_WAIT = 60.0  # seconds between two tries
_TRIES_AT_END = 3  # of one image, when nothing else is left to do
_GRACE = 5.0  # seconds that what is being told has to end in
_REFUSED = {400, 413, 415, 422}  # HTTP: the same message will not be taken later either
_PLACEHOLDERS = ("{path}", "{score}", "{threshold}")


class Failed(Exception):
    """An image could not be told, and may be later; `str(error)` is the reason."""


class Notice(Protocol):
    """A way to tell of a flagged image."""

    name: str  # in messages and in the name of a file

    def tell(self, row: Row) -> str:
        """Tell of an image; gives "", or why it was not taken and never will be. Raises Failed."""

    def abort(self) -> None:
        """End what is being told, if that can be."""


class Command:
    """A command that is run for each flagged image, without a shell.

    `{path}`, `{score}` and `{threshold}`, each as an argument of its own, are replaced;
    PATCHCLUSTER_PATH, _SCORE, _THRESHOLD and _JSON are in its environment. Paths are absolute, so
    that none looks like an option. Raises SettingError if there is no such command.
    """

    name = "command"

    def __init__(self, line: str, limit: float) -> None:
        try:
            self._arguments = shlex.split(line)
        except ValueError as error:
            raise SettingError(f"cannot read the command {line!r}: {error}") from error
        for argument in self._arguments:
            within = [one for one in _PLACEHOLDERS if one in argument and one != argument]
            if within:  # a shell would read a file name as code there
                variable = f'"$PATCHCLUSTER_{within[0][1:-1].upper()}"'
                raise SettingError(
                    f"{within[0]} in {argument!r}: write it as an argument of its own, or in a "
                    f"shell {variable}"
                )
        if not self._arguments or shutil.which(self._arguments[0]) is None:
            raise SettingError(f"there is no command {' '.join(self._arguments[:1])!r}: look at it")
        self._limit = limit
        self._process: subprocess.Popen[bytes] | None = None

    def tell(self, row: Row) -> str:
        values = {
            "path": row.path,
            "score": f"{row.score:.9g}",
            "threshold": f"{row.threshold:.9g}",
        }
        replaced = {f"{{{name}}}": value for name, value in values.items()}
        told = {f"PATCHCLUSTER_{name.upper()}": value for name, value in values.items()}
        try:
            with subprocess.Popen(
                [replaced.get(one, one) for one in self._arguments],
                env=os.environ | told | {"PATCHCLUSTER_JSON": row.as_json()},
                stdin=subprocess.DEVNULL,
                stdout=2,  # standard output is for rows
                start_new_session=True,  # so that what it starts ends with it, and Ctrl-C is ours
            ) as self._process:
                return self._wait(self._process)
        except OSError as error:
            return reason(error)

    def _wait(self, process: "subprocess.Popen[bytes]") -> str:
        try:
            code = process.wait(self._limit)
        except subprocess.TimeoutExpired:
            self.abort()
            return f"not done within {self._limit:g} s: ended"
        return f"exit code {code}" if code else ""

    def abort(self) -> None:
        process = self._process
        if process is None or process.poll() is not None:
            return
        with suppress(OSError):
            if os.name == "posix":
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None  # a POST would become a GET: it is an error then


class Webhook:
    """An address that each flagged image is posted to as JSON, as `Row.as_json` has it.

    The header Idempotency-Key is the same whenever the same row is posted. Raises SettingError if
    the address is none of HTTP.
    """

    name = "webhook"

    def __init__(self, url: str, limit: float) -> None:
        try:
            parts = urlsplit(url)
            parts.port  # noqa: B018 (raises ValueError)
        except ValueError as error:
            raise SettingError(f"the address of the webhook is none: {error}") from error
        plain = url.isascii() and url.isprintable() and " " not in url
        if parts.scheme not in ("http", "https") or not parts.hostname or not plain:
            raise SettingError(
                "the address of a webhook begins with http:// or https:// and a host"
            )
        if parts.username is not None or parts.password is not None:
            raise SettingError("a webhook takes no user or password in its address")
        self._url = url
        self._limit = limit
        self._opener = urllib.request.build_opener(_NoRedirect)

    def tell(self, row: Row) -> str:
        data = row.as_json().encode("ascii")
        key = sha256(json.dumps([row.path, row.sha256, row.time]).encode()).hexdigest()
        request = urllib.request.Request(
            self._url,
            data,
            {
                "Content-Type": "application/json",
                "User-Agent": f"patchcluster/{__version__}",
                "Idempotency-Key": key,
            },
            method="POST",
        )
        try:
            self._opener.open(request, timeout=self._limit).close()
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in _REFUSED:
                return f"HTTP {error.code}"
            raise Failed(f"HTTP {error.code}") from error
        except urllib.error.URLError as error:
            cause = error.reason
            raise Failed(reason(cause) if isinstance(cause, Exception) else str(cause)) from error
        except (OSError, http.client.HTTPException) as error:
            raise Failed(reason(error)) from error
        return ""

    def abort(self) -> None:
        pass  # its time is limited


class Courier:
    """Tells of the flagged rows of a table in a thread of its own, so that nothing waits for it."""

    def __init__(self, table: Table, notice: Notice, tell: Callable[[str], None]) -> None:
        """Begin where an earlier start stopped; at the first one with what is appended from now on.

        Raises RunError if the file that says how far it is cannot be written.
        """
        self._table = table
        self._notice = notice
        self._tell = tell
        self._path = companion(table.path, notice.name)
        self._done = self._read()
        self._save()
        self._news = threading.Condition()
        self._ending = False  # no more rows come
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=notice.name, daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Say that a row was appended."""
        with self._news:
            self._news.notify()

    def finish(self) -> None:
        """Tell what is left; what nobody takes stays for the next start."""
        with self._news:
            self._ending = True
            self._news.notify()
        self._thread.join()

    def stop(self) -> None:
        """End soon; what was not told stays for the next start."""
        self._stopped.set()
        self.wake()
        self._thread.join(_GRACE)
        if self._thread.is_alive():
            self._notice.abort()

    def _run(self) -> None:
        try:
            while self._wait_for_rows():
                for cells, end in self._table.read(self._done):
                    if not self._settle(cells):
                        return
                    self._done = end
                    if cells and cells["flagged"] == "true":
                        self._save()
        except (RunError, OSError) as error:
            self._tell(f"{self._notice.name}: {error}: no more is told before the next start")

    def _wait_for_rows(self) -> bool:
        """Whether there are some, or will be."""
        with self._news:
            while self._done >= self._table.end:
                if self._ending or self._stopped.is_set():
                    return False
                self._news.wait()
        return not self._stopped.is_set()

    def _settle(self, cells: dict[str, str]) -> bool:
        """Tell of a row if it is flagged; False: it is still to be told."""
        if not cells or cells["flagged"] != "true":
            return True
        try:
            row = Row.from_cells(cells)
        except ValueError as error:
            self._tell(f"{self._notice.name}: a row of the table is damaged ({error}): left out")
            return True
        tries = 0
        while not self._stopped.is_set():
            try:
                refused = self._notice.tell(row)
            except Failed as error:
                tries += 1
                if not self._wait_after(tries, str(error)):
                    return False
                continue
            if refused and not self._stopped.is_set():
                self._tell(f"{self._notice.name} for {row.path!r}: {refused}")
            elif tries:
                self._tell(f"{self._notice.name} works again")
            return not self._stopped.is_set() or not refused
        return False

    def _wait_after(self, tries: int, why: str) -> bool:
        """Wait before another try; False: there will be none."""
        if tries == 1:
            self._tell(f"{self._notice.name} failed ({why}): it is tried again")
        with self._news:
            self._news.wait_for(
                lambda: self._stopped.is_set() or self._ends_after(tries),
                min(_LONGEST_WAIT, 2.0 ** min(tries - 1, 10)),
            )
        if self._ends_after(tries):
            self._tell(f"{self._notice.name} failed ({why}): the next start tells what is left")
            return False
        return True

    def _ends_after(self, tries: int) -> bool:
        return self._ending and tries >= _TRIES_AT_END

    def _read(self) -> int:
        """How far an earlier start told; the end of the table if there was none."""
        try:
            done = int(json.loads(self._path.read_bytes())["told"])
        except (OSError, ValueError, KeyError, TypeError):
            return self._table.end
        return max(0, min(done, self._table.end))

    def _save(self) -> None:
        storage.write_json(self._path, {"told": self._done})


def forget(table: Path, name: str) -> None:
    """Owe nothing: what was not told is not wanted any more."""
    with suppress(OSError):
        companion(table, name).unlink(missing_ok=True)
