"""Image scores above the baseline of each image's own map."""

import dataclasses

import numpy as np
import pytest

import patchcluster
from conftest import save_image, textured_image, write_set
from patchcluster.scores.finish import (
    MapRule,
    SetBaseline,
    describe_baselines,
    find_baseline,
    finish,
)
from patchcluster.scores.maps import find_regions, score_image


def test_baselines_of_a_set_by_hand():
    # The median of 1, 2, 3, 4, 10 is 3; their distances to it are 2, 1, 0, 1, 7, of median 1.
    of_set = describe_baselines([1, 2, 3, 4, 10])
    assert of_set.typical == 3
    assert of_set.limit == pytest.approx(3 + 1.4826)


@pytest.mark.parametrize(("baseline", "offset"), [(3, 0), (1, -2), (4, 1), (9, 1.5)])
def test_a_baseline_is_taken_off_up_to_what_is_ordinary(baseline, offset):
    assert SetBaseline(typical=3, limit=4.5).offset(baseline) == offset


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 64, 4097])
def test_a_baseline_is_the_lower_quartile_of_what_is_scored_to_the_last_digit(count):
    rng = np.random.default_rng(count)
    for values in (rng.random(count), np.round(4 * rng.random(count)) / 4):  # with ties too
        scored = values.astype(np.float32)[None]
        masked = np.append(scored, np.full((1, 50), np.nan, np.float32), 1)
        assert find_baseline(scored) == find_baseline(masked) == float(np.quantile(scored, 0.25))


def test_regions_are_where_a_map_exceeds_the_threshold_above_its_baseline():
    rule = MapRule(64, None, "baseline-corrected", SetBaseline(1, 3))
    grid = np.full((8, 8), 2, np.float32)
    grid[4, 4] = 9
    image = finish(grid, 64, 64, rule)
    assert image.score == pytest.approx(score_image(image.smoothed, "top1%") - 1)
    assert image.map_threshold(image.score, 1.5) == pytest.approx(2.5)
    assert image.regions(image.score, 1.5) == find_regions(image.map(), 2.5)
    plain = finish(grid, 64, 64, MapRule(64, None, "top1%"))
    assert plain.map_threshold(plain.score, 1.5) == 1.5


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """Images of which some are noisier all over, one has a blot, and one shows something else."""
    root = tmp_path_factory.mktemp("uneven")
    write_set(root / "images", 10, blots=1)
    rng = np.random.default_rng(0)
    for i in range(3):
        noisy = textured_image(100 + i) + rng.normal(0, 12, (96, 96, 3))
        save_image(root / "images" / f"noisy{i}.png", noisy.clip(0, 255).astype(np.uint8))
    save_image(root / "images" / "red.png", np.full((96, 96, 3), (200, 30, 30), np.uint8))
    return patchcluster.scan(root / "images", root / "run", size=(128,))


def test_scores_of_a_run_are_its_maps_less_their_baselines(uneven):
    frames = [uneven.frame_map(path) for path in uneven.paths]
    of_set = describe_baselines([float(np.quantile(frame, 0.25)) for frame in frames])
    assert uneven.info.baseline == pytest.approx(dataclasses.asdict(of_set))
    for frame, score in zip(frames, uneven.scores, strict=True):
        top = np.sort(frame, axis=None)[-round(frame.size / 100) :].mean()
        offset = min(np.quantile(frame, 0.25), of_set.limit) - of_set.typical
        assert score == pytest.approx(top - offset, rel=1e-5)


def test_what_is_anomalous_as_a_whole_stays_in_front(uneven):
    first = [uneven.paths[i].rpartition("/")[2] for i in uneven.ranking[:2]]
    assert sorted(first) == ["part9.png", "red.png"]


def test_a_new_image_is_judged_by_the_baselines_of_the_set(uneven, tmp_path):
    path = save_image(tmp_path / "new.png", textured_image(500, blot=True))
    (new,) = patchcluster.score(uneven, path).images
    frame = finish(new.grid, new.record.width, new.record.height, uneven.map_rule).smoothed
    of_set = SetBaseline(**uneven.info.baseline)
    offset = min(np.quantile(frame, 0.25), of_set.limit) - of_set.typical
    assert new.score == pytest.approx(score_image(frame, "top1%") - offset, rel=1e-5)
