"""Images of one base name in several folders, through exports and back."""

import json

import numpy as np
import pytest

import patchcluster
from patchcluster.datasets import match_truth, read_truth
from patchcluster.exporting import export
from patchcluster.images.matching import match_names
from synthetic import write_run


def expected_masks(run):
    return [run.map(path) > run.map_threshold(path) for path in run.paths]


def check_truth(run, root):
    for truth, mask in zip(match_truth(run.paths, root), expected_masks(run), strict=True):
        assert truth.anomalous == mask.any()
        if mask.any():
            np.testing.assert_array_equal(read_truth(truth), mask)
    found = patchcluster.evaluate(run, root)
    assert (found.image_auroc, found.left_out) == (1, {})


@pytest.mark.parametrize("prefix", [None, "https://host/photos/"])
@pytest.mark.parametrize("other", ["../other", "/other", "photos/../more"])
def test_folders_given_in_different_ways(tmp_path, monkeypatch, other, prefix):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    folder = str(tmp_path / "other") if other == "/other" else other
    files = [f"{place}/{i}.png" for place in ("photos", folder) for i in range(3)]
    run = write_run(tmp_path / "run", files)
    check_truth(run, export(run, "coco", tmp_path / "out.json", segmentation="rle"))
    tasks = export(run, "labelstudio", tmp_path / "tasks", image_prefix=prefix) / "tasks.json"
    names = [task["data"]["image"] for task in json.loads(tasks.read_text())]
    assert match_names(names, run.paths).found == {i: i for i in range(len(files))}
