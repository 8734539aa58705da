"""The HTTP service: within this process, and as a process of its own."""

import base64
import errno
import io
import json
import os
import socket
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import jsonschema
import numpy as np
import openapi_spec_validator
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

import patchcluster
from conftest import PATIENCE, run_command, textured_image, wait_until
from faults.processes import Command
from patchcluster import serving
from patchcluster.errors import RunError, SettingError
from patchcluster.images.raster import encode
from patchcluster.pipeline.scoring import Scorer, score
from patchcluster.serving import Limits, create_app

BYTES = {"content-type": "application/octet-stream"}
LIMITS = Limits(workers=2, queue=20, body=200_000, pixels=1_000_000, seconds=PATIENCE)


@contextmanager
def client_of(scorer, limits=LIMITS, token=None):
    app = create_app(scorer, limits, token)
    with TestClient(app, base_url="http://127.0.0.1:8000") as client:
        yield client


@pytest.fixture(scope="module")
def client(scorer):
    with client_of(scorer) as client:
        yield client


@pytest.fixture(scope="module")
def description(client):
    return client.get("/openapi.json").json()


@pytest.fixture(scope="module")
def fits(description):
    """Assert that an answer is one that the description promises."""

    def check(answer):
        operations = description["paths"][answer.request.url.path]
        promised = operations[answer.request.method.lower()]["responses"]
        content = promised[str(answer.status_code)]["content"]
        kind = answer.headers["content-type"].split(";")[0]
        assert kind in content
        if kind == "application/json":
            schema = {**content[kind]["schema"], "components": description["components"]}
            jsonschema.Draft202012Validator(schema).validate(answer.json())
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["cache-control"] == "no-store"
        if answer.status_code >= 400:
            (reason,) = answer.json().values()
            assert reason
            assert "\n" not in reason

    return check


def png(seed=0, width=96, height=96, blot=False):
    return encode(textured_image(seed, width, height, blot))


# --- what it says -------------------------------------------------------------------------------


def test_scores_over_http_are_those_of_score(client, small_run, fits):
    found = {one.path: one for one in score(small_run, small_run.info.inputs).images}
    for path in small_run.paths:
        answer = client.post("/score", content=Path(path).read_bytes(), headers=BYTES)
        fits(answer)
        value, one = answer.json(), found[path]
        assert value["score"] == pytest.approx(one.score, rel=1e-5)
        assert value["flagged"] == one.flagged
        assert value["percentile"] == one.percentile
        assert value["threshold"] == small_run.threshold.value
        assert value["same_as"] == path
        boxes = [(r.x, r.y, r.width, r.height, r.area) for r in one.regions]
        assert [tuple(r.values())[:5] for r in value["regions"]] == boxes
        near = one.neighbours(*one.place)
        assert [(n["path"], n["x"], n["y"]) for n in value["nearest"]] == [
            (n.path, n.x, n.y) for n in near
        ]
        assert value["map"] is None


def test_the_map_comes_along_if_it_is_asked_for(client, scorer, fits):
    data = png(41, 120, 80, blot=True)
    one = scorer.score(data)
    answer = client.post("/score?map=npy", content=data, headers={"content-type": "image/png"})
    fits(answer)
    sent = np.load(io.BytesIO(base64.b64decode(answer.json()["map"]["data"])), allow_pickle=False)
    assert (sent.dtype, sent.shape) == (np.float32, (80, 120))
    np.testing.assert_allclose(sent, one.map(), rtol=1e-3, atol=1e-4)
    answer = client.post("/score?map=png", content=data, headers=BYTES)
    fits(answer)
    picture = Image.open(io.BytesIO(base64.b64decode(answer.json()["map"]["data"])))
    assert picture.size == (120, 80)
    light = np.asarray(picture.convert("L")).astype(int)
    middle = one.map() > one._scorer.run.threshold.value
    assert light[middle].min() >= light[~middle].max() - 2  # the scale rises with the score


def test_names_that_are_not_utf_8_are_said_with_question_marks(small_run, tmp_path, fits):
    folder = tmp_path / "images"
    folder.mkdir()
    for path in small_run.paths[:3]:
        name = os.fsdecode(b"latin\xe9" + Path(path).name.encode())
        (folder / name).write_bytes(Path(path).read_bytes())
    run = patchcluster.scan(folder, tmp_path / "run", size=(96,))
    with client_of(Scorer(run)) as client:
        answer = client.post("/score", content=Path(run.paths[1]).read_bytes(), headers=BYTES)
    fits(answer)
    assert answer.json()["same_as"].endswith("latin?part1.png")
    assert all("latin?part" in near["path"] for near in answer.json()["nearest"])


def test_run_and_health(client, small_run, fits):
    health, run = client.get("/health"), client.get("/run")
    fits(health)
    fits(run)
    assert health.json()["status"] == "ready"
    assert run.json()["images"] == 8
    assert run.json()["threshold"]["value"] == small_run.threshold.value
    assert run.json()["settings"]["size"] == [128]


def test_the_description_is_valid_and_needs_nothing_from_elsewhere(client, description):
    openapi_spec_validator.validate(description)
    assert set(description["paths"]) == {"/score", "/health", "/run", "/metrics"}
    example = description["components"]["schemas"]["Score"]["examples"][0]
    schema = {"$ref": "#/components/schemas/Score", "components": description["components"]}
    jsonschema.Draft202012Validator(schema).validate(example)
    assert client.get("/docs").status_code == client.get("/redoc").status_code == 404


def test_metrics_count_requests_images_and_seconds(scorer, fits):
    with client_of(scorer) as client:
        for seed, blot in ((50, False), (51, True), (53, True)):
            client.post("/score", content=png(seed, blot=blot), headers=BYTES)
        client.post("/score", content=b"no image", headers=BYTES)
        client.get("/nothing/<here>")
        answer = client.get("/metrics")
    fits(answer)
    name = "patchcluster_requests_total"
    values = read_metrics(answer.text)
    assert values[name, "/score", "200"] == 3
    assert values[name, "/score", "422"] == values[name, "other", "404"] == 1
    assert values["patchcluster_images_scored_total", "true"] == 2
    assert values["patchcluster_images_scored_total", "false"] == 1
    assert values["patchcluster_score_seconds_count",] == 3
    assert values["patchcluster_score_seconds_bucket", "+Inf"] == 3
    assert values["patchcluster_score_seconds_sum",] > 0
    assert values["patchcluster_images_in_flight",] == values["patchcluster_queue_length",] == 0
    assert len({key[0] for key in values}) == 7  # and nothing else
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")


def read_metrics(text):
    """Values by the name of the sample and those of its labels, in the order of their names."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_services_in_one_process_count_for_themselves(scorer):
    with client_of(scorer) as one, client_of(scorer) as other:
        for client, count in ((one, 3), (other, 1)):
            for _ in range(count):
                client.get("/health")
        for client, count in ((one, 3), (other, 1)):
            values = read_metrics(client.get("/metrics").text)
            assert values["patchcluster_requests_total", "/health", "200"] == count


# --- what it refuses ----------------------------------------------------------------------------


def bomb():
    """A PNG of 20,000 x 20,000 pixels in a few kilobytes, of which only the header is true."""
    data = bytearray(png())
    data[16:24] = (20_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    return bytes(data)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "0 bytes"),
        (b"no image at all", "not an image"),
        (png()[:3000], "damaged image"),
        (bomb(), "too large"),
        (png(0, 1100, 1000)[:180_000], "1100 x 1000 pixels are more than 1000000"),
    ],
)
def test_what_is_no_image_is_refused_with_the_reason(client, fits, body, words):
    answer = client.post("/score", content=body, headers=BYTES)
    assert answer.status_code == 422
    assert words in answer.json()["error"]
    fits(answer)


def test_other_bodies_and_queries_are_refused(client, fits):
    for kind in ("text/plain", "multipart/form-data", "application/x-www-form-urlencoded", ""):
        answer = client.post("/score", content=png(), headers={"content-type": kind})
        assert answer.status_code == 415
        assert "send the bytes of the image" in answer.json()["error"]
        fits(answer)
    answer = client.post("/score?map=gif", content=png(), headers=BYTES)
    assert answer.status_code == 422
    assert answer.json()["error"].startswith("map: ")
    fits(answer)
    for method, path in (("GET", "/score"), ("POST", "/health"), ("GET", "/../etc/passwd")):
        answer = client.request(method, path)
        assert answer.status_code in (404, 405)
        assert "POST an image to /score" in answer.json()["error"]


def test_a_body_that_is_said_to_be_too_large_is_not_read(client, fits):
    read = []

    def body():
        for i in range(10):
            read.append(i)
            yield bytes(50_000)

    headers = {**BYTES, "content-length": "500000"}
    answer = client.post("/score", content=body(), headers=headers)
    assert answer.status_code == 413
    assert "200000 bytes" in answer.json()["error"]
    fits(answer)


def test_a_body_of_unknown_length_is_read_up_to_the_limit(client, fits):
    answer = client.post("/score", content=iter([bytes(60_000)] * 10), headers=BYTES)
    assert answer.status_code == 413
    fits(answer)


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:8000", "[::1]", ""])
def test_other_hosts_are_refused(client, fits, host):
    answer = client.get("/run", headers={"host": host})
    assert answer.status_code == 400
    fits(answer)
    assert client.get("/run", headers={"host": "localhost:1234"}).status_code == 200


def test_a_token_is_asked_for_by_all_but_health(scorer, fits):
    with client_of(scorer, token="s3cret-ü") as client:
        right = {"authorization": "Bearer s3cret-ü".encode()}
        assert client.get("/health").status_code == 200
        for path in ("/run", "/metrics", "/openapi.json"):
            assert client.get(path).status_code == 401
            wrong = client.get(path, headers={"authorization": "Bearer s3cret"})
            assert wrong.status_code == 401
            assert wrong.headers["www-authenticate"] == "Bearer"
            assert client.get(path, headers=right).status_code == 200
        answer = client.post("/score", content=png(), headers=BYTES)
        assert answer.status_code == 401
        fits(answer)
        assert client.post("/score", content=png(), headers=BYTES | right).status_code == 200


class Held:
    """A scorer that waits until it is let go."""

    def __init__(self, scorer):
        self._scorer = scorer
        self.go = threading.Event()
        self.begun = threading.Semaphore(0)

    def __getattr__(self, name):
        return getattr(self._scorer, name)

    def score(self, data, path="", max_pixels=None):
        self.begun.release()
        assert self.go.wait(PATIENCE)
        return self._scorer.score(data, path, max_pixels)


def post(client, seed=0):
    return client.post("/score", content=png(seed), headers=BYTES)


def test_parallel_requests_each_get_their_own_score(client, scorer):
    alone = [scorer.score(png(seed)).score for seed in range(60, 70)]
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda seed: post(client, seed), range(60, 70)))
    assert [answer.status_code for answer in answers] == [200] * 10
    assert [answer.json()["score"] for answer in answers] == pytest.approx(alone, rel=1e-5)


def test_a_full_queue_refuses_and_recovers(scorer, fits):
    held = Held(scorer)
    limits = Limits(workers=1, queue=2, body=200_000, pixels=1_000_000, seconds=PATIENCE)
    with client_of(held, limits) as client, ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(post, client, seed) for seed in range(3)]
        assert held.begun.acquire(timeout=PATIENCE)
        wait_until(lambda: "queue_length 2" in client.get("/metrics").text)
        assert "images_in_flight 1" in client.get("/metrics").text
        refused = post(client)
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
        fits(refused)
        assert client.get("/health").status_code == 200
        held.go.set()
        assert [one.result().status_code for one in waiting] == [200] * 3
        assert post(client).status_code == 200


def test_what_takes_too_long_gets_an_answer_and_keeps_its_place(scorer, fits):
    held = Held(scorer)
    limits = Limits(workers=1, queue=0, body=200_000, pixels=1_000_000, seconds=0.2)
    with client_of(held, limits) as client:
        late = post(client)
        assert late.status_code == 504
        assert "not scored within 0.2 s" in late.json()["error"]
        fits(late)
        assert post(client).status_code == 503  # a thread cannot be stopped
        held.go.set()
        # The thread ends a moment before its place is free.
        free = {"images_in_flight 0.0", "queue_length 0.0"}
        wait_until(lambda: all(one in client.get("/metrics").text for one in free))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RunError("cannot read the run"), "cannot read the run"),
        (ValueError("two\nlines"), "unexpected ValueError: two lines"),
    ],
)
def test_a_failure_is_one_line_and_no_traceback(scorer, fits, capsys, error, words):
    def fail(*_, **__):
        raise error

    held = Held(scorer)
    held.score = fail
    with client_of(held) as client:
        answer = post(client)
        assert answer.status_code == 500
        assert answer.json() == {"error": words}
        fits(answer)
        assert client.get("/health").status_code == 200
    assert "Traceback" not in capsys.readouterr().err


def test_a_port_that_is_taken_is_said_before_the_model_loads(small_run):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        result = run_command("serve", small_run.folder, "--port", port)
    assert result.exit_code == 1
    words = f"cannot listen on port {port} (address already in use): choose another --port"
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""


def test_no_client_waits_while_the_model_loads(small_run, monkeypatch):
    """A probe of the port says that the service is ready, not that it will be."""
    answers = []

    class Loading(Scorer):
        def __init__(self, *_, **__):
            with socket.socket() as client:
                answers.append(client.connect_ex(("127.0.0.1", free)))
            raise SettingError("loaded far enough")

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        free = other.getsockname()[1]
    monkeypatch.setattr(serving, "Scorer", Loading)
    with pytest.raises(SettingError, match="loaded far enough"):
        serving.serve(
            small_run.folder, free, Limits(1, 1, 1 << 20, 1 << 20, 1.0), ready=answers.append
        )
    assert answers == [errno.ECONNREFUSED]


# --- as a process of its own --------------------------------------------------------------------


@pytest.fixture(scope="module")
def service(small_run):
    words = (
        "serve",
        str(small_run.folder),
        "--port",
        "0",
        "--device",
        "cpu",
        "--max-upload",
        "1MB",
    )
    command = Command(words, small_run.folder.parent)
    wait_until(lambda: "\n" in command.printed or command.has_ended())
    assert command.printed.startswith("listening on http://127.0.0.1:"), command.printed
    yield command
    command.kill()


def test_the_service_scores_and_ends_quietly(service, scorer):
    address = service.printed.split()[-1]
    with httpx.Client(base_url=address, timeout=PATIENCE) as client, ThreadPoolExecutor(10) as pool:
        send = lambda seed: client.post("/score", content=png(seed), headers=BYTES)  # noqa: E731
        answers = list(pool.map(send, range(10)))
        for seed, answer in enumerate(answers):
            assert answer.json()["score"] == pytest.approx(scorer.score(png(seed)).score, rel=1e-4)
        assert client.post("/score", content=b"x", headers=BYTES).status_code == 422
        assert 'status="200"} 10' in client.get("/metrics").text

    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as raw:
        raw.sendall(
            b"POST /score HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\n"
            b"Content-Length: 99999999999\r\n\r\n"
        )
        answer = b""
        while chunk := raw.recv(4096):  # it ends the connection: nothing more is waited for
            answer += chunk
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert json.loads(answer.split(b"\r\n\r\n")[1])["error"].endswith("1048576 bytes")

    service.interrupt()
    assert service.printed == f"listening on {address}\n"
