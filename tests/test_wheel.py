"""The packages that users install: what is in them, and whether the wheel works by itself.

They are built from a copy of the files of the repository. The wheel is installed, with its
dependencies in the locked versions, into an environment that has nothing else, and used from an
empty folder; WHEEL_PYTHON names the interpreter of this environment, if it is not this one.
"""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from email.parser import Parser
from pathlib import Path

import pytest

from patchcluster import __version__

pytestmark = pytest.mark.wheel

ROOT = Path(__file__).parents[1]


def run(*command: object, cwd: Path) -> str:
    """What a command prints; nothing of this process's Python reaches it."""
    hidden = ("PYTHON", "VIRTUAL_ENV", "MYPY")
    environment = {name: v for name, v in os.environ.items() if not name.startswith(hidden)}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def find_sources() -> list[str]:
    """The files that are in git, or would be."""
    listed = run("git", "ls-files", "-co", "--exclude-standard", cwd=ROOT).splitlines()
    return sorted(name for name in listed if (ROOT / name).is_file())


def build(source: Path, to: Path, *options: str) -> list[Path]:
    run(sys.executable, "-m", "build", *options, "-o", to, source, cwd=to.parent)
    return sorted(to.iterdir())


@dataclass(frozen=True)
class Packages:
    sdist: Path
    of_sdist: Path
    of_tree: Path


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    """Each way to build them, from a copy of the tree."""
    root = tmp_path_factory.mktemp("packages")
    tree = root / "tree"
    for name in find_sources():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tree / name)
    of_tree = build(tree, root / "of_tree", "--wheel")
    of_sdist, sdist = build(tree, root / "of_sdist")
    return Packages(sdist, of_sdist, *of_tree)


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def package_files(wheel: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(wheel).items() if ".dist-info/" not in name}


def read_metadata(wheel: Path, name: str) -> list[tuple[str, str]]:
    text = contents(wheel)[f"patchcluster-{__version__}.dist-info/{name}"].decode()
    return Parser().parsestr(text).items()


def test_the_sdist_has_all_that_the_wheel_and_the_tests_are_made_of(packages: Packages) -> None:
    with tarfile.open(packages.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()} - {"PKG-INFO"}
    sources = set(find_sources())
    assert names <= sources
    needed = {name for name in sources if name.startswith(("src/", "tests/", "docs/"))}
    assert needed | {"pyproject.toml", "constraints.txt", "Makefile"} <= names
    assert {"README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff"} <= names


def test_the_wheel_has_the_package_and_nothing_else(packages: Packages) -> None:
    files = package_files(packages.of_tree)
    sources = {name for name in find_sources() if name.startswith("src/patchcluster/")}
    assert files == {name.removeprefix("src/"): (ROOT / name).read_bytes() for name in sources}
    assert "patchcluster/py.typed" in files


def test_the_wheel_of_the_sdist_is_that_of_the_tree(packages: Packages) -> None:
    assert packages.of_sdist.name == packages.of_tree.name
    assert contents(packages.of_sdist) == contents(packages.of_tree)


def test_the_wheel_says_what_it_is_and_is_for_all_platforms(packages: Packages) -> None:
    tags = dict(read_metadata(packages.of_tree, "WHEEL"))
    assert (tags["Root-Is-Purelib"], tags["Tag"]) == ("true", "py3-none-any")
    metadata = dict(read_metadata(packages.of_tree, "METADATA"))
    assert metadata["Version"] == __version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"


class Installed:
    """An environment that has the wheel and its dependencies, and an empty folder to work in."""

    def __init__(self, root: Path, wheel: Path) -> None:
        self.folder = root / "work"
        self.bin = root / "environment" / "bin"
        self.folder.mkdir()
        interpreter = os.environ.get("WHEEL_PYTHON", sys.executable)
        run(interpreter, "-m", "venv", root / "environment", cwd=self.folder)
        locked = ROOT / "constraints.txt"
        self.run("python", "-m", "pip", "install", "--quiet", "--no-compile", "-c", locked, wheel)

    def run(self, name: str, *words: object) -> str:
        return run(self.bin / name, *words, cwd=self.folder)


@pytest.fixture(scope="module")
def installed(packages: Packages) -> Iterator[Installed]:
    with tempfile.TemporaryDirectory() as root:  # which goes at once: it has 7 GB
        yield Installed(Path(root), packages.of_tree)


@pytest.fixture(scope="module")
def demo(installed: Installed) -> Path:
    """The demo's folder, scanned by the command that was installed."""
    printed = installed.run("patchcluster", "demo", "-o", "demo", "--preset", "fast")
    assert "report.html" in printed
    return installed.folder / "demo"


def test_the_version_is_one(installed: Installed) -> None:
    assert installed.run("patchcluster", "--version") == f"patchcluster {__version__}\n"
    ask = "import importlib.metadata as m, patchcluster as p; print(m.version('patchcluster'), {})"
    version, place = installed.run("python", "-c", ask.format("p.__file__")).split()
    assert version == __version__
    assert Path(place).is_relative_to(installed.bin.parent)


def test_all_that_was_installed_is_locked(installed: Installed) -> None:
    def normal(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    installed.run("python", "-m", "pip", "check")
    listed = json.loads(installed.run("python", "-m", "pip", "list", "--format", "json"))
    versions = {normal(one["name"]): one["version"].partition("+")[0] for one in listed}
    for name in ("pip", "setuptools"):  # of the environment
        versions.pop(name, None)
    assert versions.pop("patchcluster") == __version__
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if "==" in line]
    assert versions.items() <= {normal(name): version for name, version in pairs}.items()


def test_the_demo_works(demo: Path) -> None:
    [info_file] = demo.rglob("run.json")
    info = json.loads(info_file.read_text())
    assert info["state"] == "complete"
    with open(info_file.with_name("scores.csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 60
    flagged = [Path(row["path"]).parent.name for row in rows if row["flagged"] == "true"]
    assert 4 <= len(flagged) <= 12  # of the 12 with a defect; the folder says which
    assert "good" not in flagged
    assert "<html" in info_file.with_name("report.html").read_text()


def check_types(installed: Installed, program: Path) -> subprocess.CompletedProcess[str]:
    """mypy --strict on a user's program, with the packages of the environment alone."""
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir=.cache"]
    command += [f"--python-executable={installed.bin / 'python'}", program.name]
    environment = {name: v for name, v in os.environ.items() if not name.startswith("MYPY")}
    return subprocess.run(
        command, cwd=installed.folder, env=environment, capture_output=True, text=True, check=False
    )


def test_the_types_of_the_wheel_are_those_that_are_promised(installed: Installed) -> None:
    program = installed.folder / "program.py"
    shutil.copy(Path(__file__).with_name("user_program.py"), program)
    checked = check_types(installed, program)
    assert checked.returncode == 0, checked.stdout + checked.stderr

    program.write_text("import patchcluster\n\npatchcluster.skan('photos/')\n")
    checked = check_types(installed, program)
    assert 'Module has no attribute "skan"' in checked.stdout


LIST_NAMES = """
import inspect, pathlib, sys, patchcluster
from patchcluster import coreset, methods, neighbors

def members(name, value):
    return [f"{name}.{one}" for one in dir(value) if not one.startswith("_")]

[folder] = {path.parent for path in pathlib.Path(sys.argv[1]).rglob("run.json")}
names = members("run", patchcluster.load_run(folder))
names += ["coreset.greedy_coreset", "neighbors.nearest"]
for module, exported in ("patchcluster", patchcluster), ("methods", methods):
    for one in exported.__all__:
        names.append(f"{module}.{one}")
        if inspect.isclass(getattr(exported, one)):
            names += members(f"{module}.{one}", getattr(exported, one))
print(*names)
"""


def test_no_type_of_the_public_names_is_any(installed: Installed, demo: Path) -> None:
    names = installed.run("python", "-c", LIST_NAMES, demo).split()
    assert {"run.map", "run.threshold", "patchcluster.scan", "methods.PatchCluster.fit"} < {*names}
    lines = [
        "import patchcluster",
        "from patchcluster import coreset, methods, neighbors",
        "run = patchcluster.load_run('run')",
        *(f"reveal_type({name})" for name in names),
    ]
    program = installed.folder / "names.py"
    program.write_text("\n".join(lines) + "\n")
    checked = check_types(installed, program)
    revealed = re.findall(r'Revealed type is "(.*)"', checked.stdout)
    assert len(revealed) == len(names), checked.stdout
    loose = [
        name
        for name, type_ in zip(names, revealed, strict=True)
        if type_ == "Any" or type_.endswith(("-> Any", "dtype[Any]]"))
    ]
    assert not loose
