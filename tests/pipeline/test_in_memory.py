"""A set that is scored in memory has the scores and maps of a scan."""

from pathlib import Path

import numpy as np
import pytest

import patchcluster
from patchcluster.network.backbones import load_backbone
from patchcluster.pipeline.in_memory import extract_files, score_set
from patchcluster.settings import resolve


@pytest.mark.parametrize(
    ("given", "labels"),
    [
        ({"image_score": "baseline-corrected"}, {}),
        ({"image_score": "max"}, {}),
        ({}, {"part7.png": "anomalous", "part0.png": "normal"}),
    ],
)
def test_scores_and_maps_are_those_of_a_scan(small_run, tmp_path, given, labels):
    given = {**given, "size": (128,), "device": "cpu"}
    run = patchcluster.scan(small_run.info.inputs, tmp_path / "run", labels=labels, **given)
    settings = resolve(**given)
    network = load_backbone(strides=settings.strides)
    grids, headers = extract_files(run.paths, network, settings)
    method = settings.make_method(network.channels, network.strides)
    said = [labels.get(Path(path).name) for path in run.paths]
    scores, finished = score_set(grids, headers, method, settings, said if labels else None)
    np.testing.assert_allclose(scores, run.scores, rtol=2e-3)
    for path, one in zip(run.paths, finished, strict=True):
        np.testing.assert_allclose(one.map(), run.map(path), atol=2e-3)
