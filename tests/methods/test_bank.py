"""docs/bank.md says what bank.safetensors holds; loading it maps the file."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from patchcluster.methods import METHODS
from patchcluster.pipeline.loading import load_method
from patchcluster.runs import runfolder, storage
from patchcluster.runs.run import Run

PAGE = Path(__file__).parents[2] / "docs" / "bank.md"
SMALL: dict[str, dict[str, Any]] = {
    "patchcluster-plus": {"bank_images": 4},
    "patchcore-lof": {"k": 3},
    "reverse-distillation": {"epochs": 1},
    "spade": {"images": 3},
    "spade-cluster": {"k": 2, "images": 3},
}


def read_page() -> list[tuple[str, str, str, str]]:
    """Name, methods, type and shape of each row of the table."""
    row = re.compile(r"^\| `(\w+)` \| ([^|]+) \| (\w+) \| (\[.*?\]) \| [^|]+ \|$", re.M)
    return row.findall(PAGE.read_text())


def documented(method: str, always: bool = False) -> dict[str, tuple[str, str]]:
    """Type and shape of each tensor of a method; `always`: without those of some runs only."""
    found = {}
    for name, methods, dtype, shape in read_page():
        names = re.sub(", (with labels|in large sets)$", "", methods)
        if (names == "all" or method in names.split(", ")) and (names == methods or not always):
            assert name not in found
            found[name] = dtype, shape
    return found


@pytest.mark.parametrize("name", METHODS)
def test_the_page_says_what_tensors_a_method_has(name: str, rng: torch.Generator) -> None:
    method = METHODS[name](**SMALL.get(name, {}))
    labels = ["normal", *[None] * 5] if method.learns_from_labels else None
    method.fit_score(torch.randn(6, 4, 5, 12, generator=rng).half(), labels)
    state, page = method.state(), documented(name)
    assert state.keys() == page.keys()
    sides = {"n": 6, "b": 4 if method.bounded else 6, "s": 1, "c": 12, "p": 4 * 5}
    sides["m"] = len(state["bank_image"])
    sides["w"] = state["weights"].numel() if "weights" in state else 0
    for tensor, (dtype, shape) in page.items():
        assert str(state[tensor].dtype) == f"torch.{dtype}", tensor
        letters = re.findall(r"\w+", shape)
        expected = [sides[letter] if letter in sides else int(letter) for letter in letters]
        assert list(state[tensor].shape) == expected, tensor


def test_a_run_has_what_the_page_says(small_run: Run) -> None:
    with safe_open(small_run.folder / runfolder.BANK_FILE, framework="pt") as file:
        assert {name.removeprefix("128.") for name in file.keys()} == {  # noqa: SIM118
            *documented("patchcluster-plus", always=True)
        }
        assert file.metadata().keys() == {"note"}
        note = json.loads(file.metadata()["note"])
    assert note["method"] == "patchcluster-plus"
    method = load_method(small_run)
    assert note["parameters"] == json.loads(json.dumps(method.parameters()))
    assert note["parameters"]["stages"] == small_run.info.backbone["channels"]


def test_a_bank_is_mapped_and_not_copied(small_run: Run) -> None:
    maps = Path("/proc/self/maps")
    if not maps.is_file():
        pytest.skip("this system does not say what a process has mapped")
    bank = load_method(small_run).bank_
    assert bank.numel() > 0
    assert find_mapped(bank) == str(small_run.folder / runfolder.BANK_FILE)
    assert find_mapped(bank.clone()) != find_mapped(bank)


def find_mapped(tensor: torch.Tensor) -> str:
    """The file that the values of a tensor are mapped from; "": none."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, _, last = line.split()[0].partition("-")
        if int(first, 16) <= tensor.data_ptr() < int(last, 16):
            return line.split(maxsplit=5)[5] if len(line.split()) > 5 else ""
    return ""


def test_the_note_of_a_bank_is_read_without_its_tensors(tmp_path: Path) -> None:
    note = {"method": "patchcluster", "parameters": {"k": None, "ratio": 0.25}}
    runfolder.write_bank(tmp_path, {64: {"bank": torch.zeros(2, 3)}}, note)
    assert storage.read_note(tmp_path / runfolder.BANK_FILE) == note
