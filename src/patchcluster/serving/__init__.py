"""The HTTP service: scores of new images against the bank of a run, on this machine only.

    POST /score         the bytes of an image -> its score, regions, nearest places, map
    GET  /health        200 once the model is loaded
    GET  /run           what the images are compared with
    GET  /metrics       metrics for Prometheus
    GET  /openapi.json

Every error is `{"error": "one line"}`. Body size, pixels, time and queue length are limited.

Web pages that are open on this machine cannot use the service: a request through another host name
is refused, and browsers send the accepted content types only after a preflight request, which is
refused too.

answers.py      models of requests and responses, for OpenAPI
middleware.py   access, limits, errors, metrics
"""

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Annotated

import uvicorn
from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.responses import PlainTextResponse
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

from .. import __version__
from ..errors import SettingError, UnreadableImage
from ..images.inputs import reason
from ..pipeline.scoring import Scorer
from .answers import BODY, Health, MapFormat, RunSummary, Score, answer, refusals
from .middleware import (
    HOST,
    METRICS_TYPE,
    AuthMiddleware,
    Metrics,
    RequestLimiter,
    check_headers,
    handle_errors,
    read_body,
)

_GRACE = 10  # seconds for requests to finish after Ctrl-C


@dataclass(frozen=True)
class Limits:
    """Limits of the service."""

    workers: int | None  # images that are scored at a time; None: one a core, one on a GPU
    queue: int  # further requests that may wait or be received
    body: int  # bytes of a request
    pixels: int  # of an image
    seconds: float  # that a request may take


def create_app(scorer: Scorer, limits: Limits, token: str | None = None) -> FastAPI:
    """Return the service as an ASGI application."""
    workers = limits.workers or scorer.parallel
    limiter = RequestLimiter(workers + limits.queue)
    metrics = Metrics(limiter)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        with scorer.threads(workers) as limiter.pool:
            yield

    app = FastAPI(
        title="patchcluster",
        description="Scores images against the bank of a run: how anomalous, and where.",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # these pages load their code from elsewhere
        redoc_url=None,
        dependencies=[] if token is None else [Depends(HTTPBearer(auto_error=False))],
    )
    app.add_middleware(AuthMiddleware, metrics=metrics, token=token)
    handle_errors(app)
    _add_score(app, scorer, limits, limiter, metrics)
    _add_state(app, scorer, metrics)
    return app


def _add_score(
    app: FastAPI, scorer: Scorer, limits: Limits, limiter: RequestLimiter, metrics: Metrics
) -> None:
    threshold = scorer.run.threshold.value

    def work(data: bytes, map_format: MapFormat) -> tuple[bool, bytes]:
        image = scorer.score(data, max_pixels=limits.pixels)
        return image.flagged, answer(image, threshold, map_format).model_dump_json().encode()

    @app.post(
        "/score",
        response_model=Score,
        responses=refusals(400, 401, 408, 413, 415, 422, 500, 503, 504),
        openapi_extra=BODY,
    )
    async def score(
        request: Request,
        map_format: Annotated[
            MapFormat, Query(alias="map", description="The map to send along.")
        ] = "none",
    ) -> Response:
        """Score the image whose file is the body of the request."""
        start = time.perf_counter()
        check_headers(request, limits.body)
        with limiter.place() as place:
            try:
                async with asyncio.timeout(limits.seconds):
                    data = await read_body(request, limits.body)
                    place.job = job = limiter.pool.submit(work, data, map_format)
                    flagged, body = await asyncio.wrap_future(job)
            except TimeoutError:
                status, what = (504, "scored") if place.job else (408, "received")
                raise HTTPException(status, f"not {what} within {limits.seconds:g} s") from None
            except UnreadableImage as error:
                raise HTTPException(422, str(error)) from error
        metrics.images.labels(str(flagged).lower()).inc()
        metrics.seconds.observe(time.perf_counter() - start)
        return Response(body, media_type="application/json")


def _add_state(app: FastAPI, scorer: Scorer, metrics: Metrics) -> None:
    run = scorer.run

    @app.get("/health", responses=refusals(400, 500))
    async def health() -> Health:
        """Say that the model is loaded."""
        return Health(status="ready", version=__version__)

    @app.get("/run", responses=refusals(400, 401, 500))
    async def describe_run() -> RunSummary:
        """Describe the run that new images are compared with."""
        return RunSummary(
            images=len(run),
            flagged=int(run.flagged.sum()),
            threshold=run.threshold,
            method=scorer.settings.method,
            backbone=run.info.backbone,
            settings=run.info.settings,
            scanned=run.info.finished,
            version=run.info.version,
        )

    @app.get("/metrics", response_class=PlainTextResponse, responses=refusals(400, 401, 500))
    async def show_metrics() -> Response:
        """Return the metrics in the text format of Prometheus."""
        return Response(metrics.text(), media_type=METRICS_TYPE)


def serve(
    run_folder: str | os.PathLike[str],
    port: int,
    limits: Limits,
    *,
    token: str | None = None,
    device: str | None = None,
    weights: str | None = None,
    ready: Callable[[str], None],
) -> None:
    """Serve until an interrupt; ready(address) is called once the model is loaded.

    port: 0 for any that is free. Raises RunError, SettingError or WeightsError before.
    """
    with _bind(port) as listener:  # before the model is loaded, which takes seconds
        scorer = Scorer(run_folder, device=device, weights=weights)
        config = uvicorn.Config(
            create_app(scorer, limits, token),
            log_level="warning",
            access_log=False,
            server_header=False,
            ws="none",
            timeout_graceful_shutdown=_GRACE,
        )
        with suppress(KeyboardInterrupt):  # the way to end it
            _listen(listener)
            ready(f"http://{HOST}:{listener.getsockname()[1]}")
            uvicorn.Server(config).run(sockets=[listener])


def _bind(port: int) -> socket.socket:
    """Take a port; who connects is refused until the model is loaded."""
    listener = socket.socket()
    if os.name == "posix":  # a port is free again at once; on Windows this would share it
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
    except OSError as error:
        listener.close()
        raise _port_error(port, error) from error
    return listener


def _listen(listener: socket.socket) -> None:
    try:
        listener.listen()
    except OSError as error:  # another service has bound the same port, and was faster
        raise _port_error(listener.getsockname()[1], error) from error


def _port_error(port: int, error: OSError) -> SettingError:
    return SettingError(f"cannot listen on port {port} ({reason(error)}): choose another --port")
