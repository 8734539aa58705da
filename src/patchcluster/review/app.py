"""The routes of a review: HTTP on one side, `Review` on the other."""

import json
from collections.abc import Mapping
from importlib import resources
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from jinja2 import Environment, PackageLoader, StrictUndefined
from pydantic import BaseModel, Field
from starlette.responses import Response
from starlette.types import ASGIApp

from ..errors import InputError, PatchclusterError
from .guard import Guard
from .pictures import Picture
from .session import Busy, NoSuchImage, Review
from .store import Mark

NOTE_HEADER = "x-patchcluster-note"  # why a picture is not the original
_MEDIA_TYPES = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}

Tab = Annotated[str, Field(min_length=1, max_length=64)]


class LabelRequest(BaseModel):
    ids: list[int]
    label: Mark | None
    tab: Tab


class UndoRequest(BaseModel):
    tab: Tab


class NameRequest(BaseModel):
    group: int
    name: Annotated[str, Field(max_length=80)]
    tab: Tab


class FlagRequest(BaseModel):
    count: Annotated[int, Field(ge=0)]


def make_app(review: Review, token: str, port: int) -> ASGIApp:
    """The application that serves one review at 127.0.0.1:port to who has the token."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.add_exception_handler(PatchclusterError, _explain)
    _add_page(app, review)
    _add_pictures(app, review)
    _add_questions(app, review)
    _add_changes(app, review)
    return Guard(app, token, port)


def _add_page(app: FastAPI, review: Review) -> None:
    environment = Environment(
        loader=PackageLoader("patchcluster", "review"), autoescape=True, undefined=StrictUndefined
    )
    name = _showable(review.folder.absolute().name)
    page = environment.get_template("review.html.j2").render(name=name)
    files = {
        file.name: file.read_bytes()
        for file in resources.files("patchcluster").joinpath("review", "static").iterdir()
        if file.name.rpartition(".")[2] in _MEDIA_TYPES
    }

    @app.get("/")
    def index() -> Response:
        return Response(page, media_type="text/html")

    @app.get("/static/{name}")
    def static(name: str) -> Response:
        if name not in files:
            return Response(status_code=404)
        return Response(files[name], media_type=_MEDIA_TYPES[name.rpartition(".")[2]])


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
    def heat(image_id: int) -> Response:
        shown = review.shown
        return _picture(shown.pictures.heat(shown.image(image_id)))

    @app.get("/crop/{image_id}")
    def crop(
        image_id: int,
        x: Annotated[float, Query(allow_inf_nan=False)],
        y: Annotated[float, Query(allow_inf_nan=False)],
        side: int,
    ) -> Response:
        shown = review.shown
        return _picture(shown.pictures.crop(shown.image(image_id), x, y, side))


def _add_questions(app: FastAPI, review: Review) -> None:
    @app.get("/api/run")
    def describe() -> Response:
        return _answer(review.describe())

    @app.get("/api/changes")
    def changes(since: int) -> Response:
        return _answer(review.changes(since))

    @app.get("/api/neighbours/{image_id}")
    def neighbours(
        image_id: int,
        x: Annotated[float, Query(allow_inf_nan=False)],
        y: Annotated[float, Query(allow_inf_nan=False)],
    ) -> Response:
        return _answer({"neighbours": review.neighbours(image_id, x, y)})

    @app.get("/labels.csv")
    def labels() -> Response:
        named = {"content-disposition": 'attachment; filename="labels.csv"'}
        return Response(review.csv(), media_type="text/csv", headers=named)


def _add_changes(app: FastAPI, review: Review) -> None:
    @app.post("/api/labels")
    def label(asked: LabelRequest) -> Response:
        review.label(asked.ids, asked.label, asked.tab)
        return _answer({"saved": len(asked.ids)})

    @app.post("/api/undo")
    def undo(asked: UndoRequest) -> Response:
        return _answer({"ids": review.undo(asked.tab)})

    @app.post("/api/group-name")
    def name_group(asked: NameRequest) -> Response:
        review.name_group(asked.group, asked.name, asked.tab)
        return _answer({})

    @app.post("/api/flag")
    def flag(asked: FlagRequest) -> Response:
        review.flag(asked.count)
        return _answer({})

    @app.post("/api/rescore")
    def rescore() -> Response:
        review.rescore()
        return _answer({})


def _explain(_: Request, error: Exception) -> Response:
    status = 500
    for kind, code in ((NoSuchImage, 404), (Busy, 409), (InputError, 400)):
        if isinstance(error, kind):
            status = code
            break
    return _answer({"error": str(error)}, status)


def _picture(picture: Picture) -> Response:
    note = picture.note.encode("ascii", "replace").decode()
    return Response(
        picture.data, media_type=picture.media_type, headers={NOTE_HEADER: note} if note else None
    )


def _answer(value: Mapping[str, Any], status: int = 200) -> Response:
    """JSON in ASCII: file names that are not valid UTF-8 survive as escapes."""
    return Response(json.dumps(value), status, media_type="application/json")


def _showable(name: str) -> str:
    return name.encode("utf-8", "replace").decode()
