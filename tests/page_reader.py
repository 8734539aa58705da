"""A reader of a page of the documentation, who types what it says."""

import ast
import csv
import importlib.util
import io
import json
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from glob import glob
from pathlib import Path
from typing import ClassVar
from unittest import mock
from urllib.parse import urljoin
from urllib.request import Request, urlopen

import pytest
import typer

from conftest import PATIENCE, run_command, wait_until
from docblocks import Block, commands_of, entries_of, kind_of, words_of
from faults.processes import Command
from patchcluster import cli, methods

ROOT = Path(__file__).parents[1]
GROUP = typer.main.get_command(cli.app)

# What stands in a command or in a block of Python -> why it does not run here.
NOT_RUN = {
    r"^pip install": "it would change the environment of the tests",
    r"^make ": "the targets of the Makefile set up environments, or run these very tests",
    r"^ray |--ray": "a cluster: tests/pipeline/test_cluster.py scans on one",
    r"s3://|hf://": "an object store: tests/images/test_url_inputs.py scans one",
    r"\.\./shared/": "real images, which lie beside the repository on some machines only",
    r"\| while .* curl ": "it would call somebody",
}
# Packages that only one block needs. Where they are missing, it is compiled and no more.
OPTIONAL = {"datasets", "fiftyone", "pycocotools"}


def run_cli(words):
    result = run_command(*words)
    assert result.exit_code == 0, f"exit code {result.exit_code}\n{result.output}"
    return result.stdout


class Services:
    """Commands that serve until they are ended, as processes; pages share those that are equal."""

    OPTIONS: ClassVar = {"serve": ["--port", "0"], "review": ["--no-browser"]}

    def __init__(self) -> None:
        self.running: dict[tuple[str, ...], Command] = {}

    def start(self, words: list[str]) -> str:
        """The address of a service, on a free port whatever the command says."""
        if "--port" in words:
            at = words.index("--port")
            words = words[:at] + words[at + 2 :]
        key = tuple(words)
        if key not in self.running:
            self.running[key] = Command([*words, *self.OPTIONS[words[0]]], Path.cwd())
        service = self.running[key]
        wait_until(lambda: "\n" in service.printed or service.has_ended())
        assert "http://127.0.0.1:" in service.printed, service.printed
        return service.printed.splitlines()[0].split()[-1]

    def stop(self) -> None:
        """End all as Ctrl-C does."""
        for words, service in self.running.items():
            service.interrupt()
            assert "Traceback" not in service.printed, words


class Page:
    """A reader of a page, in a folder, who types what it says."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.names: dict[str, object] = {"__name__": "__main__"}
        self.address = ""  # of the service that was started last
        self.answer: object = None  # to the last curl

    def follow(self, block: Block) -> None:
        kind = kind_of(block)
        if kind == "commands":
            for command in commands_of(block.text):
                self.type(command)
        elif kind == "python":
            self.execute(block.text)
        elif kind == "json":
            shown = json.loads(block.text)
            if self.answer is not None:  # it is the answer to the curl before
                assert list(shown) == list(self.answer)
        elif kind == "csv":
            rows = list(csv.reader(io.StringIO(block.text)))
            assert len({len(row) for row in rows}) == 1
        elif kind == "tree":
            root, entries = entries_of(block.text)
            place = next(p for p in (Path(root), ROOT / root) if p.is_dir())
            for entry in entries:
                assert (place / entry).exists(), f"{root} has no {entry}"

    def fail(self, block: Block, said: str) -> None:
        """A command that ends with a message of one line; … stands for what differs."""
        (command,) = commands_of(block.text)
        result = run_command(*words_of(command)[1:])
        assert result.exit_code == 1
        pattern = ".*".join(re.escape(part) for part in said.strip().split("…"))
        assert re.fullmatch(pattern, result.stderr.splitlines()[-1]), result.stderr

    def execute(self, code: str) -> None:
        imported = {name.split(".")[0] for name in imports_of(code)}
        missing = {name for name in imported & OPTIONAL if importlib.util.find_spec(name) is None}
        compiled = compile(code, "block", "exec")
        if not missing and not why_not(code):
            exec(compiled, self.names)

    def type(self, command: str) -> None:
        line, _, reader = command.partition(" | ")
        program, *words = words_of(line)
        check = getattr(self, f"check_{program}", None)
        if check is not None:
            check(words)
        if not why_not(command):
            printed = getattr(self, f"run_{program}", self.run_shell)(words, line)
            if reader and shutil.which("jq"):  # all that is piped is JSON
                subprocess.run(["bash", "-c", reader], input=printed, text=True, check=True)

    def check_patchcluster(self, words: list[str]) -> None:
        parse(words)

    def check_make(self, words: list[str]) -> None:
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
        assert {word for word in words if "=" not in word} <= set(targets)

    def check_pip(self, words: list[str]) -> None:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
            "optional-dependencies"
        ]
        for names in re.findall(r"patchcluster\[([\w,]+)\]", " ".join(words)):
            assert set(names.split(",")) <= set(extras)

    def check_python(self, words: list[str]) -> None:
        assert (ROOT / words[0]).is_file(), f"no script {words[0]}"

    def run_patchcluster(self, words: list[str], command: str) -> str:
        """Gives what it prints on standard output; "": a service."""
        del command
        if words[0] == "watch":
            words = [*words, "--once", "--settle", "0"]  # it has an end, and waits for nothing
        if words[0] in Services.OPTIONS:
            self.address = self.services.start(words)
            return ""
        return run_cli(words)

    def run_python(self, words: list[str], command: str) -> None:
        del command
        words = [path for word in words for path in (sorted(glob(word)) or [word])]
        with pytest.MonkeyPatch.context() as patch, mock.patch.dict(methods.METHODS):
            patch.setattr(sys, "argv", words)
            runpy.run_path(words[0], run_name="__main__")

    def run_curl(self, words: list[str], command: str) -> None:
        del command
        assert self.address, "no service was started before"
        self.answer = json.loads(send(words, self.address))

    def run_shell(self, words: list[str], command: str) -> None:
        del words
        subprocess.run(["bash", "-c", command], check=True)


def send(words, address):
    """What curl would get from a service: the few options of it that the pages have."""
    url, headers, body, rest = "", {}, None, list(words)
    while rest:
        word = rest.pop(0)
        if word == "-H":
            name, _, value = rest.pop(0).partition(": ")
            headers[name] = value
        elif word == "--data-binary":
            body = Path(rest.pop(0).removeprefix("@")).read_bytes()
        else:
            assert not word.startswith("-"), f"curl {word} is not known here"
            url = word
    assert url.startswith("http://127.0.0.1:8000/")
    asked = urljoin(address, url.removeprefix("http://127.0.0.1:8000"))
    with urlopen(Request(asked, body, headers), timeout=PATIENCE) as answer:
        return answer.read()


def parse(words):
    """Parse a command as it would be, and run nothing. Raises click's UsageError."""
    verb, *rest = words
    assert verb in GROUP.commands, f"no verb {verb}"
    GROUP.commands[verb].make_context(verb, rest)


def why_not(text):
    """Why a command or a block of Python does not run here, or nothing."""
    return next((reason for what, reason in NOT_RUN.items() if re.search(what, text)), "")


def imports_of(code):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
