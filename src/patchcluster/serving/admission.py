"""Who may ask, for how much, and what becomes of those who may not."""

import hmac
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import PatchclusterError
from .counters import Counters

HOST = "127.0.0.1"
HOSTS = (HOST, "localhost")  # names that this service may be called by
PATHS = ("/score", "/health", "/run", "/metrics", "/openapi.json")
OPEN_PATH = "/health"  # asks for no token
_CLIENT_LEFT = 499  # counted where nobody is there to get an answer
_HEADERS = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))

T = TypeVar("T")


class Refusal(Exception):
    """A request that is not served; `str(refusal)` says why, in one line."""

    def __init__(self, status: int, reason: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.headers = headers


class Desk:
    """Lets so many images be scored at a time and so many wait, and refuses the rest."""

    def __init__(self, pool: ThreadPoolExecutor, workers: int, queue: int) -> None:
        self._pool = pool
        self._most = workers + queue
        self._lock = threading.Lock()
        self._taken = 0
        self._running = 0

    @property
    def running(self) -> int:
        return self._running

    @property
    def waiting(self) -> int:
        return self._taken - self._running

    @contextmanager
    def place(self) -> Iterator[list[Future[Any]]]:
        """Hold a place; what is put into the list keeps it until it is done.

        A thread cannot be stopped: after a timeout it goes on, and its place is not free.
        Raises Refusal if there is none.
        """
        with self._lock:
            if self._taken >= self._most:
                raise Refusal(
                    503, f"{self._taken} images are waiting: try again", {"Retry-After": "1"}
                )
            self._taken += 1
        jobs: list[Future[Any]] = []
        try:
            yield jobs
        finally:
            if jobs:
                jobs[0].add_done_callback(lambda _: self._leave())
            else:
                self._leave()

    def submit(self, work: Callable[[], T]) -> Future[T]:
        return self._pool.submit(self._run, work)

    def _run(self, work: Callable[[], T]) -> T:
        with self._lock:
            self._running += 1
        try:
            return work()
        finally:
            with self._lock:
                self._running -= 1

    def _leave(self) -> None:
        with self._lock:
            self._taken -= 1


class Gate:
    """Around all else: who may ask, what every answer carries, and what is counted."""

    def __init__(self, app: ASGIApp, counters: Counters, token: str | None) -> None:
        self.app = app
        self.counters = counters
        self.token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 0

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        try:
            refusal = self._check(scope)
            await (refusal or self.app)(scope, receive, send_marked)
        except ClientDisconnect:
            status = _CLIENT_LEFT
        except Exception as error:  # a bug; its traceback is nobody's business
            reason = f"unexpected {type(error).__name__}: {' '.join(str(error).split())}"
            print(f"patchcluster: {reason}", file=sys.stderr, flush=True)
            if not status:
                await _say(500, reason)(scope, receive, send_marked)
        finally:
            path = scope["path"] if scope["path"] in PATHS else "other"
            self.counters.requests.labels(path, status).inc()

    def _check(self, scope: Scope) -> Response | None:
        headers = dict(scope["headers"])
        # Not Starlette's TrustedHostMiddleware: its refusal is plain text, and every error is JSON.
        host = headers.get(b"host", b"").decode("latin-1").rsplit(":", 1)[0].lower()
        if host not in HOSTS:
            return _say(400, f"this service is called {' or '.join(HOSTS)}, not {host!r}")
        if self.token is not None and scope["path"] != OPEN_PATH:
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, f"Bearer {self.token}".encode()):
                wanted = {"WWW-Authenticate": "Bearer"}
                return _say(401, "send the token as 'Authorization: Bearer TOKEN'", wanted)
        return None


def _say(status: int, reason: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": reason}, status, headers)


def say_errors_alike(app: FastAPI) -> None:
    """Bring all errors to one JSON shape."""

    @app.exception_handler(Refusal)
    async def refused(_: Request, error: Refusal) -> Response:
        return _say(error.status, str(error), error.headers)

    @app.exception_handler(HTTPException)
    async def not_there(request: Request, error: HTTPException) -> Response:
        there = f"POST an image to {PATHS[0]}, or GET {', '.join(PATHS[1:])}"
        reason = f"no {request.method} {request.url.path} here: {there}"
        return _say(error.status_code, reason, error.headers)

    @app.exception_handler(RequestValidationError)
    async def wrong(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return _say(422, f"{first['loc'][-1]}: {first['msg']}")

    @app.exception_handler(PatchclusterError)
    async def failed(_: Request, error: PatchclusterError) -> Response:
        return _say(500, str(error))


def check_headers(request: Request, limit: int) -> None:
    """Raise Refusal for a body that can be refused before it is read."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/octet-stream" and not kind.startswith("image/"):
        raise Refusal(
            415,
            f"the body is {kind or 'of no type'}: send the bytes of the image as "
            "application/octet-stream or image/...",
        )
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit:
        raise _too_large(limit)


async def read_body(request: Request, limit: int) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise _too_large(limit)
    return bytes(body)


def _too_large(limit: int) -> Refusal:
    # The rest of the body is not waited for.
    return Refusal(413, f"the file has more than {limit} bytes", {"Connection": "close"})
