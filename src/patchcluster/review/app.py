"""The routes of a review: HTTP on one side, `Review` on the other."""

import json
import mimetypes
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import Body, FastAPI, Query, Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from ..errors import InputError, PatchclusterError
from ..runs.pages import load_template
from ..runs.storage import clean
from .guard import Guard
from .pictures import Picture
from .session import Busy, NoSuchImage, Review
from .store import Mark

NOTE_HEADER = "x-patchcluster-note"  # why a picture is not the original
# By the class of an error, special ones first.
_STATUS = {NoSuchImage: 404, Busy: 409, InputError: 400, PatchclusterError: 500}

Tab = Annotated[str, Body(min_length=1, max_length=64, embed=True)]
Coordinate = Annotated[float, Query(allow_inf_nan=False)]


def make_app(review: Review, token: str, port: int) -> ASGIApp:
    """Return the application that serves one review at 127.0.0.1:port, to holders of the token."""
    mimetypes.add_type("text/javascript", ".js")  # Windows may say text/plain: refused by browsers
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)

    @app.exception_handler(PatchclusterError)
    def explain(_: Request, error: PatchclusterError) -> Response:
        status = next(number for kind, number in _STATUS.items() if isinstance(error, kind))
        return _answer({"error": str(error)}, status)

    app.mount("/static", StaticFiles(packages=[("patchcluster", "review/static")]))
    _add_views(app, review)
    _add_pictures(app, review)
    _add_changes(app, review)
    return Guard(app, token, port)


def _add_views(app: FastAPI, review: Review) -> None:
    name = clean(review.folder.absolute().name)
    page = load_template("review/review.html.j2").render(name=name)

    @app.get("/")
    def index() -> Response:
        return Response(page, media_type="text/html")

    @app.get("/api/run")
    def describe() -> Response:
        return _answer(review.describe())

    @app.get("/api/changes")
    def changes(since: int) -> Response:
        return _answer(review.changes(since))

    @app.get("/api/neighbours/{image_id}")
    def neighbours(image_id: int, x: Coordinate, y: Coordinate) -> Response:
        return _answer({"neighbours": review.neighbours(image_id, x, y)})

    @app.get("/labels.csv")
    def labels() -> Response:
        named = {"content-disposition": 'attachment; filename="labels.csv"'}
        return Response(review.csv(), media_type="text/csv", headers=named)


def _add_pictures(app: FastAPI, review: Review) -> None:
    @app.get("/image/{image_id}")
    def image(image_id: int) -> Response:
        shown = review.shown
        return _picture(shown.pictures.original(shown.image(image_id)))

    @app.get("/thumbnail/{image_id}")
    def thumbnail(image_id: int) -> Response:
        shown = review.shown
        return _picture(shown.pictures.thumbnail(shown.image(image_id)))

    @app.get("/map/{image_id}")
    def heat_map(image_id: int) -> Response:
        shown = review.shown
        return _picture(shown.pictures.heat_map(shown.image(image_id)))

    @app.get("/crop/{image_id}")
    def crop(image_id: int, x: Coordinate, y: Coordinate, side: int) -> Response:
        shown = review.shown
        return _picture(shown.pictures.crop(shown.image(image_id), x, y, side))


def _add_changes(app: FastAPI, review: Review) -> None:
    @app.post("/api/labels")
    def label(
        ids: Annotated[list[int], Body()], label: Annotated[Mark | None, Body()], tab: Tab
    ) -> Response:
        review.label(ids, label, tab)
        return _answer({"saved": len(ids)})

    @app.post("/api/undo")
    def undo(tab: Tab) -> Response:
        return _answer({"ids": review.undo(tab)})

    @app.post("/api/group-name")
    def name_group(
        group: Annotated[int, Body()], name: Annotated[str, Body(max_length=80)], tab: Tab
    ) -> Response:
        review.name_group(group, name, tab)
        return _answer({})

    @app.post("/api/flag")
    def flag(count: Annotated[int, Body(ge=0, embed=True)]) -> Response:
        review.flag(count)
        return _answer({})

    @app.post("/api/rescore")
    def rescore() -> Response:
        review.rescore()
        return _answer({})


def _picture(picture: Picture) -> Response:
    note = picture.note.encode("ascii", "replace").decode()
    headers = {NOTE_HEADER: note} if note else None
    return Response(picture.data, media_type=picture.media_type, headers=headers)


def _answer(value: Mapping[str, Any], status: int = 200) -> Response:
    """Answer with JSON in ASCII: file names that are not valid UTF-8 survive as escapes."""
    return Response(json.dumps(value), status, media_type="application/json")
