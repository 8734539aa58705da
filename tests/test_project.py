"""What the project's own files say of it: they agree, and can be read by those who need them."""

import re
import sys
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from patchcluster import __version__

ROOT = Path(__file__).parents[1]


def read_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_changelog_begins_with_what_is_not_released_then_this_version():
    heads = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert heads[0] == "[Unreleased]"
    released = [
        re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)", head) for head in heads[1:]
    ]
    assert all(released), heads
    assert released[0][1] == __version__
    assert all(later[2] >= earlier[2] for later, earlier in pairwise(released))


def test_the_citation_is_of_this_version_and_names_the_paper():
    citation = read_yaml(ROOT / "CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert str(citation["version"]) == __version__
    assert citation["license"] == "Apache-2.0"
    assert {"message", "title", "authors"} <= citation.keys()  # which the format asks for
    [paper] = citation["references"]
    assert {"type", "title", "authors"} <= paper.keys()
    assert paper["title"] in (ROOT / "docs" / "paper.md").read_text(encoding="utf-8") or (
        paper["title"] in (ROOT / "README.md").read_text(encoding="utf-8")
    )


def test_the_version_stands_in_one_place_of_the_code(project: dict[str, Any]):
    assert project["project"]["dynamic"] == ["version"]
    assert "version" not in project["project"]
    home = ROOT / project["tool"]["hatch"]["version"]["path"]
    for path in (ROOT / "src").rglob("*.py"):
        assert ("__version__ = " in path.read_text(encoding="utf-8")) == (path == home), path


def test_the_pythons_that_are_declared(project: dict[str, Any]):
    named = [
        name.rpartition(" ")[2] for name in project["project"]["classifiers"] if ":: 3." in name
    ]
    assert named == ["3.11", "3.12", "3.13"]
    assert project["project"]["requires-python"] == f">={named[0]}"
    assert f"{sys.version_info[0]}.{sys.version_info[1]}" in named
