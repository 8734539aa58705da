"""The commands that tests of faults disturb, and what each leaves when nothing disturbs it."""

import json
import re
import shutil
from collections.abc import Callable, Sequence
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

import patchcluster
from conftest import cut_batches, write_set
from faults.processes import Command
from faults.watching import in_order
from patchcluster.demo import write_parts
from patchcluster.errors import RunError

Output = dict[str, Any]  # name of a file -> what it holds

RUN = "run"
IMAGES = 12
SIDE = 96
# A network that is built in a moment; its weights are made up, so its scores mean nothing.
TINY = ("--backbone", "test_efficientnet", "--weights", "../tiny.safetensors")
ADVICE = re.compile(
    "the scan of 'run' is not finished: run the same scan again, it resumes|"
    "(flagging|rescoring) 'run' was interrupted: `patchcluster (?P<command>.*)` finishes it"
)
# What differs between two starts of the same.
_TIMES = ("started", "finished", "seconds", "predicted_seconds", "memory")
_TIME = re.compile(rb"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d\+00:00)?")
_NO_RESULTS = (".lock", ".review.lock", "labels.sqlite")


def use_small_batches() -> None:
    """Let a small set be cut into batches as a large one is."""
    cut_batches(pytest.MonkeyPatch(), 2 * 64 * 64, 128)


def use_small_demo() -> None:
    """Let the demo draw a few parts, and scan them with the tiny network."""
    from patchcluster import demo
    from patchcluster.pipeline import scanning

    use_small_batches()
    draw, scan = demo.write_parts, scanning.scan
    demo.write_parts = lambda *args, **options: draw(*args, good=4, defective=4, **options)
    scanning.scan = lambda *args, **options: scan(
        *args, **{**options, "size": (64,), "backbone": TINY[1], "weights": TINY[3]}
    )


@dataclass(frozen=True)
class Verb:
    """A command that writes `output`; `start`: name of the one whose output it changes."""

    arguments: tuple[str, ...]
    start: str = ""
    output: str = RUN
    first: Callable[[], None] = use_small_batches
    anew: bool = False  # as a user starts it


_SCAN = ("scan", "../images", "-o", RUN, "--size", "64", "--quiet")
_TINY_SCAN = (*_SCAN, *TINY)
_LABELS = ("--labels", "../labels.csv")
_UPDATE = ("update", RUN, "--add", "../more", "--remove", "part3.png", "--quiet")
_BENCHMARK = ("benchmark", "../dataset", "-o", "bench", "--size", "64", "--quiet", *TINY)

VERBS = {
    "scan": Verb(_TINY_SCAN),
    "scan other settings": Verb((*_TINY_SCAN, "--method", "patchcore", "--overwrite"), "scan"),
    "scan --labels": Verb((*_TINY_SCAN, *_LABELS), "scan"),
    "scan --expect": Verb((*_TINY_SCAN, "--expect", "30%"), "scan"),
    "scan --labels --flag-top": Verb((*_TINY_SCAN, *_LABELS, "--flag-top", "4"), "scan"),
    "report --flag-top": Verb(("report", RUN, "--flag-top", "3"), "scan --labels"),
    "update": Verb(_UPDATE, "scan"),
    "bounded scan": Verb((*_TINY_SCAN, "--bank-images", "5")),
    "bounded update": Verb(_UPDATE, "bounded scan"),
    "demo": Verb(("demo", "-o", "demo", "--quiet"), output="demo/run", first=use_small_demo),
    "benchmark": Verb(
        (*_BENCHMARK, "--tables", "2", "--setting", "test", "--methods", "patchcluster,patchcore"),
        output="bench",
    ),
    "real scan": Verb(_SCAN, anew=True),
    "real scan --labels": Verb((*_SCAN, *_LABELS), "real scan", anew=True),
    "real scan --expect": Verb((*_SCAN, "--expect", "30%"), "real scan", anew=True),
}


@dataclass(frozen=True)
class Undisturbed:
    """What a command does when it is left alone."""

    seconds: float
    folder: Path  # where it ran
    outputs: list[Output]  # of the run at the times when it is whole, the last at the end


class Workplace:
    """Folders side by side, in each of which a command runs with the same relative paths."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._count = 0
        self._known: dict[str, Undisturbed] = {}
        write_set(root / "images", IMAGES, size=SIDE)
        write_set(root / "more", 2, size=SIDE + 1)
        write_parts(root / "dataset" / "part", good=4, defective=4)
        (root / "labels.csv").write_text(
            "path,label\n../images/part11.png,anomalous\n../images/part1.png,normal\n"
            "../images/part2.png,anomalous\n"
        )
        torch.manual_seed(0)
        weights = timm.create_model("test_efficientnet").state_dict()
        save_file(weights, root / "tiny.safetensors")
        Command(["--version"], root).finish()  # the first one waits for the imports

    def new_folder(self) -> Path:
        self._count += 1
        folder = self._root / f"case{self._count}"
        folder.mkdir()
        return folder

    def prepare(self, name: str) -> Path:
        """A folder in which a command can start."""
        start = VERBS[name].start
        return self.copy(start) if start else self.new_folder()

    def copy(self, name: str) -> Path:
        """A folder with the output of a command."""
        folder, output = self.new_folder(), VERBS[name].output
        shutil.copytree(self.undisturbed(name).folder / output, folder / output)
        return folder

    def undisturbed(self, name: str) -> Undisturbed:
        if name not in self._known:
            folder = self.prepare(name)
            output = folder / VERBS[name].output
            before = read_output(output)
            seconds = self.start(name, folder).finish()
            self._known[name] = Undisturbed(seconds, folder, [before, read_output(output)])
        return self._known[name]

    def start(self, name: str, folder: Path, *steps: Callable[[], None]) -> Command:
        """Start a command. steps: are done in its process before it, if it is a forked one."""
        verb = VERBS[name]
        return Command(verb.arguments, folder, verb.anew, in_order(verb.first, *steps))

    def check_survived(self, name: str, folder: Path) -> None:
        """What was disturbed in a folder can be read, and the same command ends as undisturbed."""
        verb, known = VERBS[name], self.undisturbed(name)
        if verb.output == RUN:
            advised = check_readable(folder, known.outputs)
            if advised:  # what the run says will finish it does so
                other = self.new_folder()
                shutil.copytree(folder / RUN, other / RUN)
                Command(advised.split(), other, first=verb.first).finish()
                check_same(read_output(other / RUN), known.outputs[-1])
        self.start(name, folder).finish()
        check_same(read_output(folder / verb.output), known.outputs[-1])


def read_output(folder: Path) -> Output:
    """All that a folder holds by name, without times of day and durations."""
    found: Output = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() or name in _NO_RESULTS:
            continue
        data: Any = path.read_bytes()
        if name == "run.json":
            data = {key: value for key, value in json.loads(data).items() if key not in _TIMES}
        elif name == "report.html":
            data = _TIME.sub(b"", data)
        elif name in ("report.md", "benchmark.json") or name.startswith("cells/"):
            data = None  # there are durations in it; results.csv has the figures
        elif name == "results.csv":
            data = [line.rsplit(b",", 3)[0] for line in data.splitlines()]
        found[name] = data
    return found


def check_same(one: Output, other: Output) -> None:
    """Two outputs have the same files, and these hold the same."""
    assert sorted(one) == sorted(other)
    assert [name for name in one if one[name] != other[name]] == []


def check_readable(folder: Path, outputs: Sequence[Output]) -> str:
    """A run is one of those that it may be, or says which command finishes it.

    Gives the arguments of that command; "": it is the one that was disturbed.
    """
    with chdir(folder):
        if not Path(RUN, "run.json").exists():
            assert not outputs[0]  # a run that was there is there
            return ""
        try:
            run = patchcluster.load_run(RUN)
        except RunError as error:
            advice = ADVICE.fullmatch(str(error))
            if advice is None:
                raise
            return advice["command"] or ""
        for path in run.paths:
            assert run.map(path).shape[0] in (SIDE, SIDE + 1)
            run.regions(path)
            run.neighbours(path, SIDE / 2, SIDE / 2)
        now = read_output(Path(RUN))
    # All files of a finished run belong together; one that is new may not have its page yet.
    whole = next(one for one in outputs if one.get("run.json") == now["run.json"])
    different = {name for name in whole if now.get(name) != whole[name]}
    assert different <= {"report.html"} - set(now)
    return ""
