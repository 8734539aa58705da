"""The HTTP service: scores of new images against the bank of a run, on this machine only.

    POST /score         the bytes of an image -> its score, regions, nearest places, map
    GET  /health        200 once the model is there
    GET  /run           what the images are compared with
    GET  /metrics       counts for Prometheus
    GET  /openapi.json

Every error is `{"error": "one line"}`. What a request may cost is bounded: the size of its body,
the pixels of its image, its time, and how many may wait.

A web page that someone on this machine looks at cannot use the service: it would have to call the
host by another name (refused), or to send a type of body that browsers ask leave for (not given).
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

from .. import __version__
from ..errors import SettingError, UnreadableImage
from ..pipeline.scoring import Scorer
from .admission import HOST, Desk, Gate, Refusal, check_headers, read_body, say_errors_alike
from .answers import BODY, Health, MapFormat, RunSummary, Score, Threshold, answer, refusals
from .counters import CONTENT_TYPE, Counters

_GRACE = 10  # seconds that requests have to end in after Ctrl-C


@dataclass(frozen=True)
class Limits:
    """What may be asked of the service at a time."""

    workers: int | None  # images that are scored at a time; None: one a core, one on a GPU
    queue: int  # requests that may wait, or be on their way
    body: int  # bytes of a request
    pixels: int  # of an image
    seconds: float  # that a request may take


def create_app(scorer: Scorer, limits: Limits, token: str | None = None) -> FastAPI:
    """The service as an ASGI application."""
    counters = Counters(lambda: desk.running, lambda: desk.waiting)
    workers = limits.workers or scorer.parallel
    threshold = scorer.run.threshold.value
    desk: Desk

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        nonlocal desk
        with scorer.threads(workers) as pool:
            desk = Desk(pool, workers, limits.queue)
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
    app.add_middleware(Gate, counters=counters, token=token)
    say_errors_alike(app)

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
        with desk.place() as jobs:
            try:
                async with asyncio.timeout(limits.seconds):
                    data = await read_body(request, limits.body)
                    job = desk.submit(lambda: work(data, map_format))
                    jobs.append(job)
                    flagged, body = await asyncio.wrap_future(job)
            except TimeoutError:
                what = "scored" if jobs else "received"
                status = 504 if jobs else 408
                raise Refusal(status, f"not {what} within {limits.seconds:g} s") from None
            except UnreadableImage as error:
                raise Refusal(422, str(error)) from error
        counters.images.labels(str(flagged).lower()).inc()
        counters.seconds.observe(time.perf_counter() - start)
        return Response(body, media_type="application/json")

    @app.get("/health", responses=refusals(400, 500))
    async def health() -> Health:
        """Say that the model is loaded."""
        return Health(status="ready", version=__version__)

    @app.get("/run", responses=refusals(400, 401, 500))
    async def run() -> RunSummary:
        """Say what new images are compared with."""
        return _summarise(scorer)

    @app.get(
        "/metrics",
        response_class=PlainTextResponse,
        responses=refusals(400, 401, 500),
    )
    async def metrics() -> Response:
        """Counts in the text format of Prometheus."""
        return Response(counters.text(), media_type=CONTENT_TYPE)

    return app


def _summarise(scorer: Scorer) -> RunSummary:
    run = scorer.run
    return RunSummary(
        images=len(run),
        flagged=int(run.flagged.sum()),
        threshold=Threshold.model_validate(run.threshold, from_attributes=True),
        method=scorer.settings.method,
        backbone=run.info.backbone,
        settings=run.info.settings,
        scanned=run.info.finished,
        version=run.info.version,
    )


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
    """Serve until an interrupt; ready(address) is called when images can be sent.

    port: 0 for any that is free. Raises RunError, SettingError or WeightsError before.
    """
    with _bind(port) as listener:  # first, so that a port that is taken is said at once
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
            listener.listen()
            ready(f"http://{HOST}:{listener.getsockname()[1]}")
            uvicorn.Server(config).run(sockets=[listener])


def _bind(port: int) -> socket.socket:
    listener = socket.socket()
    if os.name == "posix":  # do not wait for the connections of an earlier service
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
    except OSError as error:
        listener.close()
        raise SettingError(
            f"cannot listen on port {port} ({(error.strerror or str(error)).lower()}): choose "
            "another --port"
        ) from error
    return listener
