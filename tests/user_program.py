"""What a user may write: for type checkers (`test_wheel.py`), never run."""

from collections.abc import MutableMapping, Sequence
from typing import Any, assert_type

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

import patchcluster
from patchcluster.methods import METHODS, Method, PatchCluster
from patchcluster.runs.run import Neighbour
from patchcluster.scores.maps import Region
from patchcluster.search.coreset import greedy_coreset
from patchcluster.search.neighbors import nearest


def scan_and_look() -> None:
    run = patchcluster.scan("photos/", "photos-run", preset="fast")
    assert_type(run, patchcluster.Run)
    assert_type(run.paths, list[str])
    assert_type(run.scores, NDArray[np.float64])
    assert_type(run.flagged, NDArray[np.bool_])
    assert_type(run.ranking, NDArray[np.int64])
    assert_type(run.map("a.png"), NDArray[np.float32])
    assert_type(run.regions("a.png"), list[Region])
    assert_type(run.neighbours("a.png", 120, 80), list[Neighbour])
    assert_type(run.doubtful, list[str])
    assert_type(run.threshold.value, float)
    assert_type(patchcluster.load_run("photos-run"), patchcluster.Run)
    assert_type(patchcluster.update("photos-run", add="new/"), patchcluster.Run)


def score_and_measure(run: patchcluster.Run) -> None:
    scores = patchcluster.score(run, "new/")
    assert_type(scores, patchcluster.Scores)
    assert_type(scores.images[0], patchcluster.ScoredImage)
    assert_type(scores.images[0].score, float)
    measured = patchcluster.evaluate(run, "dataset/")
    assert_type(measured, patchcluster.Evaluation)
    assert_type(patchcluster.Scorer(run).score(b"").map(), NDArray[np.float32])


def use_methods(array: NDArray[np.float32], tensor: Tensor) -> None:
    assert_type(METHODS, MutableMapping[str, type[Method]])
    method = PatchCluster(k=25)
    assert_type(method.fit_score(array), NDArray[Any])
    assert_type(method.fit_score(tensor), Tensor)
    assert_type(method.fit(array).score([array, array]), Sequence[NDArray[Any]])
    assert_type(method.score([tensor, tensor]), Sequence[Tensor])
    assert_type(greedy_coreset(array, 10), NDArray[np.int64])
    assert_type(greedy_coreset(tensor, 10), Tensor)
    assert_type(nearest(array, array, 3), tuple[NDArray[Any], NDArray[np.int64]])
    assert_type(nearest(tensor, tensor, 3), tuple[Tensor, Tensor])


def say_why() -> None:
    try:
        patchcluster.load_run("photos-run")
    except patchcluster.PatchclusterError as error:
        print(error)
