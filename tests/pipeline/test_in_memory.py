"""A set that is scored in memory has the scores and maps of a scan."""

import numpy as np
import pytest

import patchcluster
from patchcluster.network.backbones import load_backbone
from patchcluster.pipeline.in_memory import extract_files, score_set
from patchcluster.settings import resolve


@pytest.mark.parametrize("rule", ["contrast", "max"])
def test_scores_and_maps_are_those_of_a_scan(small_run, tmp_path, rule):
    run = patchcluster.scan(
        small_run.info.inputs, tmp_path / "run", size=(128,), image_score=rule, device="cpu"
    )
    settings = resolve(size=(128,), image_score=rule)
    network = load_backbone(strides=settings.strides)
    grids, headers = extract_files(run.paths, network, settings)
    method = settings.make_method(network.channels, network.strides)
    finished = score_set(grids, headers, method, settings)
    np.testing.assert_allclose([one.score for one in finished], run.scores, rtol=1e-4)
    for path, one in zip(run.paths, finished, strict=True):
        np.testing.assert_allclose(one.map(), run.map(path), atol=2e-3)


def test_labels_shift_scores_as_in_a_scan(small_run, tmp_path):
    labels = {small_run.paths[7]: "anomalous", small_run.paths[0]: "normal"}
    run = patchcluster.scan(
        small_run.info.inputs, tmp_path / "run", size=(128,), labels=labels, device="cpu"
    )
    settings = resolve(size=(128,))
    network = load_backbone(strides=settings.strides)
    grids, headers = extract_files(run.paths, network, settings)
    method = settings.make_method(network.channels, network.strides)
    said = [labels.get(path) for path in run.paths]
    finished = score_set(grids, headers, method, settings, said)
    np.testing.assert_allclose([one.score for one in finished], run.scores, rtol=2e-3)
