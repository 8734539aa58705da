import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import patchcluster
from conftest import read_files, run_command, scan_until, write_set
from patchcluster.errors import InputError, RunError, SettingError
from patchcluster.methods import PatchClusterPlus
from patchcluster.pipeline.flagging import finish_interrupted, reflag
from patchcluster.pipeline.rescoring import rescore
from patchcluster.runs import runfolder
from patchcluster.scores.feedback import find_boundary, order_by_doubt, shift_scores
from patchcluster.scores.labels import match_labels, move_threshold, read_labels
from patchcluster.scores.probability import describe_ordinary
from patchcluster.scores.thresholds import Flagging, Threshold

SIZE = (96,)

# --- the file, the names ------------------------------------------------------------------------


def test_labels_are_read_and_unsure_ones_left_out(tmp_path):
    file = tmp_path / "labels.csv"
    file.write_text('path,label,by\n"a,b.png",Normal,me\nc.png,anomalous,me\nd.png,unsure,me\n')
    assert read_labels(file) == {"a,b.png": "normal", "c.png": "anomalous"}


@pytest.mark.parametrize(
    "text", ["path,label\na.png,maybe\n", "name,label\na.png,normal\n", "path\na\n"]
)
def test_a_file_that_is_no_list_of_labels_is_refused_by_line(tmp_path, text):
    file = tmp_path / "labels.csv"
    file.write_text(text)
    with pytest.raises(InputError, match="line 2"):
        read_labels(file)
    with pytest.raises(InputError, match="cannot read labels"):
        read_labels(tmp_path / "none.csv")


def test_labels_find_their_images_by_the_end_of_the_path():
    paths = ["x/a/1.png", "x/b/1.png", "x/b/2.png"]
    assert match_labels({"b/1.png": "normal", "2.png": "anomalous"}, paths) == {
        1: "normal",
        2: "anomalous",
    }
    with pytest.raises(InputError, match="matches 2 images"):
        match_labels({"1.png": "normal"}, paths)
    with pytest.raises(InputError, match="not among"):
        match_labels({"3.png": "normal"}, paths)


# --- the threshold ------------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(st.integers(0, 20), st.sampled_from(["normal", "anomalous", None])), min_size=1
    ),
    st.integers(-1, 21),
)
def test_no_threshold_has_fewer_marked_images_on_the_wrong_side_nor_is_nearer(images, start):
    scores = np.array([float(score) for score, _ in images])
    anomalous = np.array([label == "anomalous" for _, label in images])
    normal = np.array([label == "normal" for _, label in images])

    def wrong(value):
        return (anomalous & (scores <= value)).sum() + (normal & (scores > value)).sum()

    found = move_threshold(Threshold(start + 0.25, ""), scores, anomalous, normal).value
    every = [start + 0.25, -0.5, *(score + 0.5 for score in range(21))]
    assert wrong(found) == min(map(wrong, every))
    if wrong(start + 0.25) == wrong(found):
        assert found == start + 0.25


# --- what labels say of other images ------------------------------------------------------------


def test_shift_is_the_posterior_mean_of_a_gaussian_process():
    random = np.random.default_rng(0)
    described = random.normal(size=(12, 5))
    described /= np.linalg.norm(described, axis=1, keepdims=True)
    scores = random.uniform(1, 2, 12)
    labels = ["normal", None, "anomalous", "anomalous", *[None] * 8]
    centre, deviation = describe_ordinary(scores)
    prior = 0.3 * (np.clip((scores - centre) / deviation, -3, 6) - 1)
    squares = np.square(described[:, None] - described).sum(2)
    covariance = np.exp(-squares / (2 * 0.6**2)) + 0.3
    marked = [0, 2, 3]
    residual = np.array([-1.0, 1.0, 1.0]) - prior[marked]
    weights = np.linalg.solve(covariance[np.ix_(marked, marked)] + 0.3 * np.eye(3), residual)
    expected = covariance[:, marked] @ weights * deviation / 0.3
    np.testing.assert_allclose(shift_scores(scores, described, labels), expected, rtol=1e-6)


def test_the_images_one_deviation_above_ordinary_ones_are_asked_for_first():
    # median 3, deviation 1.4826: the boundary lies at 4.48
    scores = np.array([1.0, 2, 3, 4, 5, 100])
    labels = [None, None, None, "normal", None, None]
    boundary = find_boundary(scores)
    assert boundary == pytest.approx(4.4826)
    assert order_by_doubt(scores, labels, boundary).tolist() == [4, 2, 1, 0, 5]


def test_no_labels_shift_nothing():
    assert not shift_scores(np.arange(4.0), np.eye(4), [None] * 4).any()


def test_an_image_marked_anomalous_no_longer_hides_its_like():
    """6 images with one defect hide each other; marking 4 of them uncovers the other two."""
    random = torch.Generator().manual_seed(0)
    patches = torch.randn(20, 4, 4, 6, generator=random) * 0.1 + 1
    patches[:6, 1, 1] += 3 + 0.5 * torch.randn(6, 6, generator=random)
    method = PatchClusterPlus(gap=np.inf, duplicate=0.0, local_weight=0.0)
    blind = method.fit_score(patches)
    taught = method.fit_score(patches, ["anomalous"] * 4 + [None] * 16)
    assert (taught[4:6, 1, 1] / taught.mean() > 1.5 * blind[4:6, 1, 1] / blind.mean()).all()
    # The marked images are compared with nothing of theirs either.
    assert taught[:4, 1, 1].min() > 1.5 * blind[4:6, 1, 1].mean()


def test_labels_that_do_not_fit_the_set_are_refused():
    patches = torch.randn(3, 4, 4, 2)
    with pytest.raises(SettingError, match="1 labels for 3 images"):
        PatchClusterPlus().fit(patches, labels=["normal"])
    with pytest.raises(SettingError, match="leave some"):
        PatchClusterPlus().fit(patches, labels=["anomalous", "anomalous", None])
    with pytest.raises(SettingError, match="leave some"):  # before any work
        PatchClusterPlus().check_labels(["anomalous", "anomalous", None])


# --- a run --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 10 images, of which the last 3 have a blot. Do not change it."""
    root = tmp_path_factory.mktemp("labels")
    write_set(root / "images", 10, 3)
    return patchcluster.scan(root / "images", root / "run", size=SIZE)


@pytest.fixture
def run(finished, tmp_path):
    """The same, to be changed."""
    return patchcluster.load_run(shutil.copytree(finished.folder, tmp_path / "run"))


def fresh(run, folder, **given):
    return patchcluster.scan(run.info.inputs, folder, size=SIZE, **given)


def test_labels_overrule_flags_and_a_finished_scan_is_compared_again(run, tmp_path):
    labels = {"part9.png": "anomalous", "part0.png": "normal", "part8.png": "normal"}
    steps = set()
    again = fresh(run, run.folder, labels=labels, progress=lambda step, *_: steps.add(step))
    assert "compare" in steps
    assert "features" not in steps  # no image is needed
    assert again.flagged[9]
    assert not again.flagged[[0, 8]].any()
    assert not np.array_equal(again.scores, run.scores)
    other = fresh(run, tmp_path / "other", labels=labels)
    np.testing.assert_allclose(again.scores, other.scores, rtol=1e-3)
    assert again.regions("part9.png") == other.regions("part9.png")
    without = fresh(run, run.folder)
    np.testing.assert_allclose(without.scores, run.scores, rtol=1e-6)
    assert without.info.labels == {}


def test_a_run_asks_for_what_it_doubts_and_not_for_what_it_knows(run):
    assert sorted(run.doubtful) == run.paths
    distances = [abs(run.scores[run.index(path)] - run.info.boundary) for path in run.doubtful]
    assert distances == sorted(distances)
    again = fresh(run, run.folder, labels={run.doubtful[0]: "normal"})
    assert run.doubtful[0] not in again.doubtful
    assert again.info.boundary == pytest.approx(run.info.boundary, rel=0.05)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "patchcore", "labels": {"part0.png": "normal"}}, "patchcluster-plus"),
        ({"expect": 0.1, "flag_top": 3}, "one of the two"),
    ],
)
def test_what_cannot_be_is_refused_before_the_work(run, tmp_path, given, message):
    with pytest.raises(SettingError, match=message):
        patchcluster.scan(run.info.inputs, tmp_path / "r", **given)
    assert not (tmp_path / "r").exists()


# --- flagging again -----------------------------------------------------------------------------


def test_a_finished_scan_is_flagged_again_without_work(run):
    steps = set()
    again = fresh(run, run.folder, flag_top=5, progress=lambda step, *_: steps.add(step))
    assert steps == {"maps"}
    assert again.flagged.sum() == 5
    assert set(np.flatnonzero(again.flagged)) == set(run.ranking[:5])
    np.testing.assert_array_equal(again.scores, run.scores)
    assert all(again.regions(path) for path in np.array(again.paths)[again.flagged])
    back = fresh(run, run.folder)
    assert back.flagged.tolist() == run.flagged.tolist()
    for path in run.paths:
        assert back.regions(path) == run.regions(path)
    assert back.threshold.value == pytest.approx(run.threshold.value)
    assert back.threshold.meaning == run.threshold.meaning


def test_until_its_page_is_written_a_flagging_is_not_finished(run):
    given = {"size": SIZE, "labels": {"part0.png": "normal"}}
    scan_until("report", run.info.inputs, run.folder, flag_top=2, **given)
    with pytest.raises(RunError, match=r"flagging .*`patchcluster report .* --flag-top 2`"):
        patchcluster.load_run(run.folder)
    threshold = runfolder.read_info(run.folder)[0].threshold
    finish_interrupted(run.folder)
    finished = patchcluster.load_run(run.folder)
    assert finished.flagged.sum() == 2
    assert finished.info.threshold == threshold
    before = read_files(run.folder)
    finish_interrupted(run.folder)  # which has nothing to do
    assert read_files(run.folder) == before
    scan_until("report", run.info.inputs, run.folder, size=SIZE, flag_top=3)
    assert fresh(run, run.folder, flag_top=1).flagged.sum() == 1


def test_a_folder_that_is_no_run_is_left_as_it_was(tmp_path):
    with pytest.raises(RunError, match="not a run"):
        reflag(tmp_path / "none", Flagging())
    assert not (tmp_path / "none").exists()
    (tmp_path / "photo.png").touch()
    for change in (lambda: reflag(tmp_path, Flagging()), lambda: rescore(tmp_path, {})):
        with pytest.raises(RunError, match="not a run"):
            change()
    assert run_command("report", tmp_path).exit_code == 1
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]


def test_regions_have_groups_and_blots_share_one(run):
    again = reflag(run.folder, Flagging(flag_top=3))
    regions = [region for path in again.paths for region in again.regions(path)]
    assert regions
    assert all(region.group >= 1 for region in regions)
    blots = [again.regions(path)[0] for path in again.paths[7:]]
    assert len({region.group for region in blots}) == 1


def test_groups_stay_where_no_region_changes_and_are_found_again_where_the_table_is_damaged(run):
    table = run.folder / "regions.csv"
    reflag(run.folder, Flagging(flag_top=3))
    known = table.read_bytes()
    reflag(run.folder, Flagging(flag_top=3))
    assert table.read_bytes() == known
    table.write_text("path,region\n")
    reflag(run.folder, Flagging(flag_top=3))
    assert table.read_bytes() == known


def test_a_bank_that_is_a_sample_tells_no_groups(run, tmp_path):
    sampled = patchcluster.scan(
        run.info.inputs,
        tmp_path / "r",
        method="patchcluster",
        ratio=0.5,
        k=3,
        size=SIZE,
        flag_top=3,
    )
    regions = [region for path in sampled.paths for region in sampled.regions(path)]
    assert regions
    assert {region.group for region in regions} == {0}


def test_the_command_takes_shares_labels_and_says_what_a_flag_means(run, tmp_path):
    labels = tmp_path / "labels.csv"
    labels.write_text("path,label\npart9.png,anomalous\n")
    command = ("scan", *run.info.inputs, "-o", run.folder, "--size", 96, "--labels", labels)
    done = run_command(*command, "--expect", "20%", "--json")
    assert done.exit_code == 0, done.output
    flagged = patchcluster.load_run(run.folder).flagged
    assert json.loads(done.stdout)["flagged"] == flagged.sum() >= 2
    assert flagged[9]
    assert run_command(*command, "--expect", "many").exit_code == 2
    labels.unlink()
    assert run_command(*command).exit_code == 1


def test_flagging_keeps_labels(run):
    fresh(run, run.folder, labels={"part0.png": "anomalous"})
    again = reflag(run.folder, Flagging(flag_top=0))
    assert np.flatnonzero(again.flagged).tolist() == [0]
    assert again.info.labels == {again.paths[0]: "anomalous"}
    assert again.info.flagging == dataclasses.asdict(Flagging(flag_top=0))


def test_many_images_marked_anomalous_do_not_hide_the_defect_that_they_share(monkeypatch):
    """More of them than rows are found for a patch: their rows are not searched at all."""
    monkeypatch.setattr("patchcluster.methods.patchcluster_plus.NEAREST_ROWS", 2)
    rng = np.random.default_rng(0)
    patches = rng.normal(size=(40, 4, 4, 5)).astype(np.float32)
    patches[:21, :3] = 4 + 0.1 * rng.normal(size=(21, 3, 4, 5))
    method = PatchClusterPlus()
    scores = method.fit_score(patches, ["anomalous"] * 20 + [None] * 20).max((1, 2))
    assert scores[20] > 1.5 * scores[21:].max()
