"""Models of the requests and responses of the service, for OpenAPI."""

import base64
import dataclasses
import io
from typing import Any, Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict

from ..images.raster import encode
from ..pipeline.scoring import ScoredImage
from ..runs.run import Neighbour
from ..runs.storage import clean
from ..scores.colours import colours
from ..scores.maps import Floats
from ..scores.thresholds import Threshold

MapFormat = Literal["none", "png", "npy"]


class Region(BaseModel):
    """A connected anomalous area, in pixels of the image; x to the right, y downwards."""

    x: int
    y: int
    width: int
    height: int
    area: int
    peak: float


class Map(BaseModel):
    """The anomaly map. png: a picture of the image's size, from 0 (dark) to twice the threshold
    (light). npy: a NumPy file, float32 [height, width]; NaN where nothing is scored."""

    format: Literal["png", "npy"]
    data: str  # base64


class Score(BaseModel):
    """score: larger is more anomalous; probability: that the image is anomalous, null if the run
    has too few images to say; flagged: the score exceeds the threshold; percentile: share of
    the images of the run that score lower, in %; regions: highest peak first; place: the most
    anomalous one, x and y in pixels; nearest: the places of the set that it was compared with."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "score": 1.63,
                    "probability": 0.93,
                    "flagged": True,
                    "threshold": 0.82,
                    "percentile": 98.5,
                    "width": 512,
                    "height": 512,
                    "place": [264.0, 216.0],
                    "regions": [
                        {"x": 231, "y": 190, "width": 60, "height": 55, "area": 2210, "peak": 1.9}
                    ],
                    "nearest": [{"path": "photos/7.png", "x": 264, "y": 232, "distance": 0.71}],
                    "same_as": "",
                    "remarks": ["darker"],
                    "map": {"format": "png", "data": "iVBORw0KGgo="},
                }
            ]
        }
    )
    score: float
    probability: float | None
    flagged: bool
    threshold: float
    percentile: float
    width: int
    height: int
    place: tuple[float, float]
    regions: list[Region]
    nearest: list[Neighbour]
    same_as: str  # path of an image of the set with the same bytes, or ""
    remarks: list[str]  # what is odd about the image as a whole, by the limits of the set
    map: Map | None


class RunSummary(BaseModel):
    """The run that new images are compared with."""

    images: int
    flagged: int
    threshold: Threshold
    method: str
    backbone: dict[str, Any]
    settings: dict[str, Any]
    scanned: str  # when
    version: str


class Health(BaseModel):
    status: Literal["ready"]
    version: str


class Error(BaseModel):
    error: str


def answer(image: ScoredImage, threshold: float, map_format: MapFormat) -> Score:
    """Describe a scored image."""
    return Score(
        score=image.score,
        probability=image.probability,
        flagged=image.flagged,
        threshold=threshold,
        percentile=image.percentile,
        width=image.record.width,
        height=image.record.height,
        place=image.place,
        regions=[Region.model_validate(r, from_attributes=True) for r in image.regions],
        nearest=[
            dataclasses.replace(place, path=clean(place.path))
            for place in image.neighbours(*image.place)
        ],
        same_as=clean(image.same_as),
        remarks=list(image.remarks),
        map=None if map_format == "none" else _encode(image.map(), threshold, map_format),
    )


def _encode(image_map: Floats, threshold: float, map_format: Literal["png", "npy"]) -> Map:
    if map_format == "npy":
        buffer = io.BytesIO()
        np.save(buffer, image_map, allow_pickle=False)
        data = buffer.getvalue()
    else:
        share = np.nan_to_num(image_map) / max(2 * threshold, 1e-12)
        picture = Image.fromarray(np.rint(255 * share.clip(0, 1)).astype(np.uint8), "P")
        picture.putpalette(colours(np.linspace(0, 1, 256)).astype(np.uint8).tobytes())
        data = encode(picture)
    return Map(format=map_format, data=base64.b64encode(data).decode())


_FILE = {"schema": {"type": "string", "format": "binary"}}
BODY = {
    "requestBody": {
        "required": True,
        "description": "The bytes of the image file.",
        "content": {"application/octet-stream": _FILE, "image/*": _FILE},
    }
}
_REASONS = {
    400: "The host is not 127.0.0.1 or localhost.",
    401: "The token is missing or wrong.",
    408: "The body was not received in time.",
    413: "The body is too large.",
    415: "The content type of the body is not that of an image file.",
    422: "The image cannot be scored, or the query is invalid.",
    500: "A bug, or a damaged run folder.",
    503: "Too many images are waiting: try again.",
    504: "Not scored in time.",
}


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {s: {"model": Error, "description": _REASONS[s]} for s in statuses}
