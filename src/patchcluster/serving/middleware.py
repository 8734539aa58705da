"""Around the routes: who may send requests, how many, what is counted, and how errors look."""

import hmac
import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import PatchclusterError

HOST = "127.0.0.1"
HOSTS = (HOST, "localhost")  # names that this service may be called by
PATHS = ("/score", "/health", "/run", "/metrics", "/openapi.json")
OPEN_PATH = "/health"  # needs no token
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BOUNDS = (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)  # of the histogram, seconds
_CLIENT_LEFT = 499  # counted if the client closed the connection before the response
_HEADERS = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))
_RETRY = {"Retry-After": "1"}  # seconds


@dataclass(eq=False)
class Place:
    """The place of one request."""

    job: Future[Any] | None = None


class RequestLimiter:
    """Limits the requests at a time: scored by the threads of `pool`, waiting, or received."""

    pool: ThreadPoolExecutor  # while the service runs

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._places: set[Place] = set()

    @property
    def running(self) -> int:
        """Number of images that are being scored."""
        with self._lock:
            return sum(place.job is not None and place.job.running() for place in self._places)

    @property
    def waiting(self) -> int:
        """Number of requests that wait for a thread or are being received."""
        return len(self._places) - self.running

    @contextmanager
    def place(self) -> Iterator[Place]:
        """Hold a place for a request, and until its job is done: threads cannot be stopped.

        Raises HTTPException (503) if all places are taken.
        """
        place = Place()
        with self._lock:
            taken = len(self._places)
            if taken >= self._most:
                raise HTTPException(503, f"{taken} images are waiting: try again", _RETRY)
            self._places.add(place)
        try:
            yield place
        finally:
            if place.job is None:
                self._leave(place)
            else:
                place.job.add_done_callback(lambda _: self._leave(place))

    def _leave(self, place: Place) -> None:
        with self._lock:
            self._places.remove(place)


class Metrics:
    """Metrics of one service, in a registry of its own."""

    def __init__(self, limiter: RequestLimiter) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # when series began
        self._registry = own = CollectorRegistry()
        self.requests = Counter(
            "patchcluster_requests",
            "Requests by path and status.",
            ("path", "status"),
            registry=own,
        )
        self.images = Counter(
            "patchcluster_images_scored", "Images scored.", ("flagged",), registry=own
        )
        for flagged in ("false", "true"):
            self.images.labels(flagged)  # shown from the start, as 0
        self.seconds = Histogram(
            "patchcluster_score_seconds",
            "Time from a request to its score.",
            registry=own,
            buckets=BOUNDS,
        )
        running = Gauge("patchcluster_images_in_flight", "Images being scored.", registry=own)
        running.set_function(lambda: limiter.running)
        waiting = Gauge("patchcluster_queue_length", "Requests waiting or received.", registry=own)
        waiting.set_function(lambda: limiter.waiting)

    def text(self) -> bytes:
        """Return all metrics in the text format of Prometheus (version 0.0.4)."""
        return generate_latest(self._registry)


class AuthMiddleware:
    """Checks host and token, sets the headers of all responses, and counts requests."""

    def __init__(self, app: ASGIApp, metrics: Metrics, token: str | None) -> None:
        self.app, self.metrics, self.token = app, metrics, token

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
        except Exception as error:  # a bug: clients get no traceback
            reason = f"unexpected {type(error).__name__}: {' '.join(str(error).split())}"
            print(f"patchcluster: {reason}", file=sys.stderr, flush=True)
            if not status:
                await _error(500, reason)(scope, receive, send_marked)
        finally:
            path = scope["path"] if scope["path"] in PATHS else "other"
            self.metrics.requests.labels(path, status).inc()

    def _check(self, scope: Scope) -> Response | None:
        headers = dict(scope["headers"])
        # Starlette's TrustedHostMiddleware refuses in plain text, and every error here is JSON.
        host = headers.get(b"host", b"").decode("latin-1").rsplit(":", 1)[0].lower()
        if host not in HOSTS:
            return _error(400, f"this service is called {' or '.join(HOSTS)}, not {host!r}")
        if self.token is not None and scope["path"] != OPEN_PATH:
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, f"Bearer {self.token}".encode()):
                wanted = {"WWW-Authenticate": "Bearer"}
                return _error(401, "send the token as 'Authorization: Bearer TOKEN'", wanted)
        return None


def _error(status: int, reason: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": reason}, status, headers)


def handle_errors(app: FastAPI) -> None:
    """Have every error answered as `{"error": "one line"}`."""

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        reason = error.detail
        if error.status_code in (404, 405):
            routes = f"POST an image to {PATHS[0]}, or GET {', '.join(PATHS[1:])}"
            reason = f"no {request.method} {request.url.path} here: {routes}"
        return _error(error.status_code, reason, error.headers)

    @app.exception_handler(RequestValidationError)
    async def wrong(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return _error(422, f"{first['loc'][-1]}: {first['msg']}")

    @app.exception_handler(PatchclusterError)
    async def failed(_: Request, error: PatchclusterError) -> Response:
        return _error(500, str(error))


def check_headers(request: Request, limit: int) -> None:
    """Raise HTTPException (413, 415) for a body that is refused before it is read."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/octet-stream" and not kind.startswith("image/"):
        raise HTTPException(
            415,
            f"the body is {kind or 'of no type'}: send the bytes of the image as "
            "application/octet-stream or image/...",
        )
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit:
        raise _too_large(limit)


async def read_body(request: Request, limit: int) -> bytes:
    """Read the body of a request. Raises HTTPException (413) beyond `limit` bytes."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise _too_large(limit)
    return bytes(body)


def _too_large(limit: int) -> HTTPException:
    # Closed: the rest of the body is not read.
    return HTTPException(413, f"the file has more than {limit} bytes", {"Connection": "close"})
