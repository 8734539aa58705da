"""A review in a process of its own, and what a person does in its page, over HTTP."""

import functools
import http.client
import json
import re
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from conftest import PATIENCE
from faults.commands import RUN, use_small_batches
from faults.processes import Command
from faults.watching import in_order

LABELS = {0: "normal", 3: "anomalous", 5: "normal", 7: "unsure", 11: "anomalous", 2: "normal"}
FLAGGED = 3


class Reviewing:
    """`patchcluster review run` in a folder."""

    def __init__(self, folder: Path, anew: bool = False, *steps: Callable[[], None]) -> None:
        self.folder = folder
        self.confirmed: dict[int, str] = {}  # labels of which it said that they are saved
        arguments = ("review", RUN, "--no-browser")
        self.command = Command(arguments, folder, anew, in_order(use_small_batches, *steps))

    def work(self, scored: Callable[[], None] = lambda: None) -> None:
        """Label images, score the run again, flag some images.

        scored: is called when the run has been scored again. Raises OSError or HTTPException when
        the process is killed.
        """
        for image, label in LABELS.items():
            assert self.label([image], label)[0] == 200
            self.confirmed[image] = label
        assert self.do("rescore") == ""
        scored()
        assert self.do("flag", {"count": FLAGGED}) == ""

    def do(self, job: str, body: object = None) -> str:
        """Have a job done, and wait for its end; gives its error."""
        self.ask("POST", f"/api/{job}", body)
        return self.wait_for_job()

    def wait_for_job(self) -> str:
        """Wait for the end of a job; gives its error."""
        while (state := self.ask("GET", "/api/changes?since=0")["job"])["running"]:
            time.sleep(0.02)
        return str(state["error"])

    def labels(self) -> dict[int, str]:
        """The labels that hold, by image."""
        labels = self.ask("GET", "/api/changes?since=0")["labels"]
        return {int(image): label for image, label in labels.items()}

    def ask(self, method: str, path: str, body: object = None) -> Any:
        """What the process answers to a request of its page, which must be a success."""
        response, content = self.send(method, path, body)
        assert response.status == 200, content
        return json.loads(content)

    def label(self, images: Iterable[int], label: str | None) -> tuple[int, bytes]:
        """Label images; gives the status of the answer, and its content."""
        body = {"ids": list(images), "label": label, "tab": "1"}
        response, content = self.send("POST", "/api/labels", body)
        return response.status, content

    def send(
        self, method: str, path: str, body: object = None, **headers: str | None
    ) -> tuple[http.client.HTTPResponse, bytes]:
        """A request as the page sends it, but for `headers`; None leaves one out."""
        sent: dict[str, str | None] = {
            "Host": f"127.0.0.1:{self.port}",
            "Cookie": f"other=1; patchcluster-{self.port}={self.token}",
        }
        if method == "POST":
            sent["Origin"] = f"http://127.0.0.1:{self.port}"
            sent["X-Patchcluster"] = "review"
            sent["Content-Type"] = "application/json"
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        data = b"" if body is None else json.dumps(body).encode()
        with closing(
            http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        ) as connection:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in sent.items():
                if value is not None:
                    connection.putheader(name, value)
            connection.putheader("Content-Length", str(len(data)))
            connection.endheaders(data)
            response = connection.getresponse()
            return response, response.read()

    @functools.cached_property
    def address(self) -> str:
        """What it prints first, once it listens."""
        while not (found := re.search("^(http.*)\n", self.command.printed, re.M)):
            if self.command.has_ended():
                raise ConnectionError(self.command.printed)
            time.sleep(0.02)
        return found[1]

    @property
    def port(self) -> int | None:
        return urlsplit(self.address).port

    @property
    def token(self) -> str:
        return parse_qs(urlsplit(self.address).query)["token"][0]
