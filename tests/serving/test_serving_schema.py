"""The service against its own description: what schemathesis makes of it, request by request."""

from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from conftest import textured_image
from patchcluster.images.raster import encode
from patchcluster.pipeline.scoring import Scorer
from patchcluster.serving import Limits, create_app

HOST = "http://127.0.0.1:8000"
LIMITS = Limits(workers=1, queue=4, body=200_000, pixels=1_000_000, seconds=30)
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
BODIES = ("application/octet-stream", "image/*")

# What is asked, whether wrongly, which a GET cannot be as it takes nothing, and how many times.
OPERATIONS = [
    ("POST", "/score", GenerationMode.POSITIVE, 150),
    ("POST", "/score", GenerationMode.NEGATIVE, 60),
    ("GET", "/health", GenerationMode.POSITIVE, 10),
    ("GET", "/run", GenerationMode.POSITIVE, 10),
    ("GET", "/metrics", GenerationMode.POSITIVE, 10),
]


def draw(seed, format_, mode="RGB", width=96, height=96):
    image = Image.fromarray(textured_image(seed, width, height, True))
    return encode(image.convert(mode), format_)


@pytest.fixture(scope="module")
def described(small_run):
    """The service's description, and the service within this process, for schemathesis."""
    kinds = (("JPEG", "CMYK"), ("WEBP", "RGBA"), ("GIF", "P"), ("TIFF", "L"), ("TIFF", "I"))
    files = [Path(path).read_bytes() for path in small_run.paths]
    files += [draw(i, *kind, 20 + 31 * i, 70) for i, kind in enumerate(kinds)]
    whole = st.sampled_from(files)
    cut = st.tuples(whole, st.integers(0, 4000)).map(lambda one: one[0][: one[1]])
    large = st.just(bytes(LIMITS.body + 1))
    for kind in BODIES:
        schemathesis.openapi.media_type(kind, whole | whole | cut | large | st.binary())
    app = create_app(Scorer(small_run, device="cpu"), LIMITS)
    schema = schemathesis.openapi.from_dict(app.openapi())
    schema.app = app
    return schema


def test_every_operation_is_tried(described):
    operations = [found.ok() for found in described.get_all_operations()]
    assert {(one.method.upper(), one.path) for one in operations} == {one[:2] for one in OPERATIONS}


@pytest.mark.parametrize(("method", "path", "mode", "times"), OPERATIONS)
def test_every_answer_is_one_that_the_description_promises(described, method, path, mode, times):
    operation = described[path][method]

    @settings(
        max_examples=times,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(operation.as_strategy(generation_mode=mode))
    def check(case):
        answer = case.call(base_url=HOST)
        case.validate_response(answer, checks=CHECKS)

    check()
