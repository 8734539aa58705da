"""A local page to look at a run, label its images, and score it again with the labels.

app.py        HTTP routes; static/ and review.html.j2: the page
guard.py      who may send requests
session.py    a review without HTTP: what the page shows and does, names of groups, jobs
pictures.py   originals, heat maps, crops
store.py      labels.sqlite
"""

import os
import secrets
import socket
import threading
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from ..errors import SettingError
from ..images.inputs import reason
from ..runs import storage
from ..runs.run import check_run

HOST = "127.0.0.1"
_LOCK_FILE = ".review.lock"
_ADDRESS_FILE = "review.html"  # exists while a review that opened the browser runs
_ADVICE = "Labels are kept there: make room, or copy the run to where you may write"


def review(
    folder: Path,
    port: int = 0,
    browser: bool = True,
    started: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve a review of a finished run on 127.0.0.1 until it is interrupted.

    port: 0 takes a free one. browser: open the page. started is called with the address once it can
    be opened; it contains the token of the page. Raises RunError if the run cannot be reviewed,
    SettingError if the port is taken.
    """
    import uvicorn

    from .app import make_app
    from .session import Review

    check_run(folder)  # or a lock would be left in a folder that is no run
    taken = (
        f"{str(folder)!r} is being reviewed by another process: open the page at the address which "
        "that printed (two tabs are fine), or end it first"
    )
    with storage.hold(folder / _LOCK_FILE, taken, _ADVICE), _listen(port) as listening:
        port = listening.getsockname()[1]
        token = secrets.token_urlsafe(32)
        session = Review(folder)
        try:
            config = uvicorn.Config(
                make_app(session, token, port),
                log_level="error",
                access_log=False,
                lifespan="off",
                ws="none",
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=2,
            )
            address = f"http://{HOST}:{port}/?token={token}"
            started(address)  # connections wait in the socket
            with _opened(folder, address) if browser else nullcontext():
                uvicorn.Server(config).run([listening])
        except KeyboardInterrupt:
            pass  # the way to end it
        finally:
            session.close()


@contextmanager
def _opened(folder: Path, address: str) -> Iterator[None]:
    """Open a page in the browser through a file that only this user can read.

    On a command line other users of the machine would see the token. The file lies in the run,
    since some browsers are kept from seeing temporary folders.
    """
    path = folder.absolute() / _ADDRESS_FILE
    page = f'<!doctype html><meta http-equiv="refresh" content="0; url={address}">'
    with storage.writing(path, _ADVICE):
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(page)
    # A browser for the terminal would keep this thread until it is left.
    threading.Thread(target=webbrowser.open, args=(path.as_uri(),), daemon=True).start()
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _listen(port: int) -> socket.socket:
    try:
        return socket.create_server((HOST, port))
    except (OSError, OverflowError) as error:
        code = getattr(error, "errno", None)  # `create_server` adds the address to its words
        why = reason(error) if code is None else os.strerror(code).lower()
        raise SettingError(
            f"cannot listen on port {port} ({why}): choose another --port, or 0 for any free one"
        ) from error
