import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from patchcluster.estimator import PatchClusterDetector
from patchcluster.methods import PatchCore

PEER = Path(__file__).parents[1] / "benchmarks" / "peers" / "anomalib_peer.py"


def make_rows(count: int, seed: int = 0, far: int = 0) -> NDArray[np.float64]:
    """Gaussian rows [count, 5] around two centres; the last `far` are 8 away from theirs."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(count, 5)) + 20 * rng.integers(0, 2, (count, 1))
    rows[count - far :, 0] += 8
    return rows


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@parametrize_with_checks([PatchClusterDetector(), PatchClusterDetector(k=2, ratio=0.5)])
def test_it_passes_the_checks_of_scikit_learn(estimator, check) -> None:
    check(estimator)


@pytest.mark.parametrize("k", [1, 4, 20])
def test_blind_scores_are_mean_distances_to_the_other_rows(k: int) -> None:
    rows = make_rows(200)
    distances, _ = NearestNeighbors(n_neighbors=k).fit(rows).kneighbors()  # without themselves
    detector = PatchClusterDetector(k=k).fit(rows)
    np.testing.assert_allclose(detector.decision_scores_, distances.mean(1), rtol=1e-12)
    np.testing.assert_array_equal(detector.score_samples(rows), -detector.decision_scores_)


@pytest.mark.parametrize("ratio", [1.0, 0.2])
def test_new_rows_are_compared_with_the_whole_bank(ratio: float) -> None:
    rows, new = make_rows(200), make_rows(50, seed=1)
    detector = PatchClusterDetector(k=6, ratio=ratio).fit(rows)
    assert len(detector.bank_) == 200 * ratio
    np.testing.assert_array_equal(rows[detector.bank_index_], detector.bank_)
    distances, _ = NearestNeighbors(n_neighbors=6).fit(detector.bank_).kneighbors(new)
    np.testing.assert_allclose(-detector.score_samples(new), distances.mean(1), rtol=1e-12)


def test_with_a_coreset_only_rows_of_the_bank_leave_themselves_out() -> None:
    rows = make_rows(100)
    detector = PatchClusterDetector(k=3, ratio=0.3).fit(rows)
    distances, found = NearestNeighbors(n_neighbors=4).fit(detector.bank_).kneighbors(rows)
    own = detector.bank_index_[found[:, 0]] == np.arange(100)
    assert own.sum() == 30
    expected = np.where(own, distances[:, 1:].mean(1), distances[:, :3].mean(1))
    np.testing.assert_allclose(detector.decision_scores_, expected, rtol=1e-12)


def test_digits_that_float32_does_not_have_count() -> None:
    rows = 1e6 + 1e-4 * make_rows(100)
    distances, _ = NearestNeighbors(n_neighbors=3, algorithm="kd_tree").fit(rows).kneighbors()
    scores = PatchClusterDetector(k=3).fit(rows).decision_scores_
    np.testing.assert_allclose(scores, distances.mean(1), rtol=1e-9)


@pytest.mark.parametrize("ratio", [1.0, 0.3])
def test_the_order_of_rows_changes_no_score(ratio: float) -> None:
    rows, order = make_rows(80), np.random.default_rng(1).permutation(80)
    scores = PatchClusterDetector(k=4, ratio=ratio).fit(rows).decision_scores_
    again = PatchClusterDetector(k=4, ratio=ratio).fit(rows[order]).decision_scores_
    np.testing.assert_allclose(again, scores[order], rtol=1e-12)


def test_a_single_copy_does_not_make_an_outlier_look_normal() -> None:
    rows = np.concatenate([make_rows(50), [[500.0] * 5] * 2])
    detector = PatchClusterDetector(k=3, contamination=0.04).fit(rows)
    assert set(detector.decision_scores_.argsort()[-2:]) == {50, 51}
    assert detector.labels_[50:].tolist() == [1, 1]


def test_flags_are_as_many_as_contamination_says_and_agree_in_both_conventions() -> None:
    rows = make_rows(200, far=20)
    detector = PatchClusterDetector(contamination=0.1)
    signs = detector.fit_predict(rows)
    assert (np.flatnonzero(signs == -1) >= 180).all()
    assert (signs == -1).sum() == detector.labels_.sum() == 20
    np.testing.assert_array_equal(signs, 1 - 2 * detector.labels_)
    np.testing.assert_array_equal(signs, detector.predict(rows))
    np.testing.assert_array_equal(detector.decision_function(rows) < 0, signs == -1)
    np.testing.assert_array_equal(detector.labels_, detector.decision_scores_ > detector.threshold_)
    assert detector.threshold_ == -detector.offset_


def test_it_can_be_put_into_a_pipeline() -> None:
    rows, new = make_rows(100), make_rows(10, seed=1)
    pipeline = make_pipeline(StandardScaler(), PatchClusterDetector()).fit(rows)
    pipeline.set_params(patchclusterdetector__k=2).fit(rows)
    alone = PatchClusterDetector(k=2).fit(pipeline[0].transform(rows))
    expected = alone.score_samples(pipeline[0].transform(new))
    np.testing.assert_array_equal(pipeline.score_samples(new), expected)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"k": 10}, "k=10 neighbours, but the bank offers 9 besides a row itself: choose 1 to 9"),
        ({"k": 0}, "k=0"),
        ({"k": 2.5}, "k=2.5"),
        ({"k": 5, "ratio": 0.5}, "the bank offers 4"),
        ({"ratio": 0}, "ratio=0"),
        ({"ratio": 1.5}, "ratio=1.5"),
        ({"contamination": 0.6}, r"contamination=0.6: choose a share in \(0, 0.5\]"),
        ({"contamination": "auto"}, "contamination='auto'"),
    ],
)
def test_a_parameter_that_does_not_fit_is_said(given: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PatchClusterDetector(**given).fit(make_rows(10))


# --- peers --------------------------------------------------------------------------------------


def test_patchcore_scores_as_anomalib_does(tmp_path: Path) -> None:
    """Patch and image scores of the same features against the same bank, its reweighting too."""
    python = os.environ.get("PATCHCLUSTER_ANOMALIB_PYTHON")
    if python is None:
        pytest.skip(
            "PATCHCLUSTER_ANOMALIB_PYTHON does not name the python of an environment with anomalib"
        )
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(24, 48))  # correlated and not centred, as features of networks are
    known = (np.maximum(rng.normal(size=(12, 9, 7, 24)) @ mix, 0) / 4).astype(np.float32)
    new = (np.maximum(rng.normal(size=(6, 9, 7, 24)) @ mix, 0) / 4).astype(np.float32)
    new[3, 4, 4] *= 3
    method = PatchCore(ratio=0.25).fit(torch.from_numpy(known))
    scores = method.score(torch.from_numpy(new))
    image_scores = method.score_images(list(torch.from_numpy(new)), list(scores))
    np.savez(tmp_path / "given.npz", bank=method.bank_.numpy(), patches=new)
    command = [python, str(PEER), "scores", str(tmp_path / "given.npz"), str(tmp_path / "out.npz")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["images"] == 6
    with np.load(tmp_path / "out.npz") as peer:
        np.testing.assert_allclose(scores.numpy(), peer["patch_scores"], rtol=1e-3)
        np.testing.assert_allclose(image_scores.numpy(), peer["image_scores"], rtol=1e-3)
        detector = PatchClusterDetector(k=1).fit(method.bank_.numpy())
        rows = -detector.score_samples(new.reshape(-1, 48)).reshape(new.shape[:3])
        np.testing.assert_allclose(rows, peer["patch_scores"], rtol=1e-3)
