import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from patchcluster.scores.metrics import PixelMetrics, image_metrics


def direct_pro(maps, masks, most=0.3):
    """PRO by its definition: every distinct value is tried as a threshold."""
    regions = []
    for image_map, mask in zip(maps, masks, strict=True):
        labels, count = ndimage.label(mask, np.ones((3, 3)))
        regions += [image_map[labels == i] for i in range(1, count + 1)]
    normal = np.concatenate([m[~k] for m, k in zip(maps, masks, strict=True)])
    rates, overlaps = [0.0], [0.0]
    for threshold in np.unique(np.concatenate([m.ravel() for m in maps]))[::-1]:
        rates.append((normal >= threshold).mean())
        overlaps.append(np.mean([(region >= threshold).mean() for region in regions]))
    rates, overlaps = np.array(rates), np.array(overlaps)
    area = 0.0
    for a, b, p, q in zip(rates, rates[1:], overlaps, overlaps[1:], strict=False):
        if a >= most:
            break
        if b > most:
            q = p + (q - p) * (most - a) / (b - a)
            b = most
        area += (b - a) * (p + q) / 2
    return area / most


def random_case(seed, images=4, levels=50):
    rng = np.random.default_rng(seed)
    maps = [rng.integers(0, levels, (12, 10)).astype(np.float32) for _ in range(images)]
    masks = [ndimage.binary_dilation(rng.random((12, 10)) > 0.97) for _ in range(images)]
    masks[0][:] = False
    masks[1][3, 3] = True
    for image_map, mask in zip(maps, masks, strict=True):
        image_map[mask] += rng.integers(0, 30)
    return maps, masks


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31))
def test_pixel_metrics_agree_with_scikit_learn_and_the_definition_of_pro(seed):
    maps, masks = random_case(seed)
    metrics = PixelMetrics(0, 80, bins=81)  # whole numbers fall into bins of their own
    for image_map, mask in zip(maps, masks, strict=True):
        metrics.add(image_map, mask if mask.any() else None)
    truth = np.concatenate([mask.ravel() for mask in masks])
    values = np.concatenate([image_map.ravel() for image_map in maps])
    assert metrics.auroc() == pytest.approx(roc_auc_score(truth, values), abs=1e-9)
    expected = average_precision_score(truth, values)
    assert metrics.average_precision() == pytest.approx(expected, abs=1e-9)
    assert metrics.pro() == pytest.approx(direct_pro(maps, masks), abs=1e-9)
    best = max(f1_score(truth, values >= threshold) for threshold in np.unique(values))
    assert metrics.f1max() == pytest.approx(best, abs=1e-9)


def test_continuous_maps_lose_nothing_that_matters_in_the_histogram():
    rng = np.random.default_rng(0)
    image_map = rng.normal(size=(300, 300)).astype(np.float32)
    mask = rng.random((300, 300)) > 0.9
    image_map[mask] += 1
    metrics = PixelMetrics(float(image_map.min()), float(image_map.max()))
    metrics.add(image_map, mask)
    truth = mask.ravel()
    assert metrics.auroc() == pytest.approx(roc_auc_score(truth, image_map.ravel()), abs=1e-6)
    expected = average_precision_score(truth, image_map.ravel())
    assert metrics.average_precision() == pytest.approx(expected, abs=1e-5)


def test_hand_derived_pro():
    """Two regions, of 1 and 3 pixels, and 10 normal pixels."""
    mask = np.zeros((2, 7), bool)
    mask[0, 0] = True
    mask[0, 2:5] = True
    image_map = np.zeros((2, 7), np.float32)
    image_map[0, 0] = 3  # the first region lies above all normal pixels
    image_map[0, 2] = 2  # a third of the second too
    image_map[1, 0] = 1  # one normal pixel of ten
    metrics = PixelMetrics(0, 3, bins=4)
    metrics.add(image_map, mask)
    # (rate, overlap): (0, 2/3), (0.1, 2/3), then straight to (1, 1): 0.3 lies 2/9 on the way.
    at_end = 2 / 3 + (1 - 2 / 3) * 2 / 9
    area = 0.1 * 2 / 3 + 0.2 * (2 / 3 + at_end) / 2
    assert metrics.pro() == pytest.approx(area / 0.3)


def test_metrics_that_the_truth_does_not_allow_are_none():
    metrics = PixelMetrics(0, 1)
    metrics.add(np.zeros((4, 4), np.float32), None)
    assert metrics.auroc() is metrics.average_precision() is metrics.pro() is None
    assert metrics.f1max() is None
    assert image_metrics(np.array([1.0, 2.0]), np.array([True, True])) == (None, None, None)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31))
def test_image_metrics_agree_with_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    truth = rng.random(30) > 0.5
    truth[:2] = True, False
    scores = rng.integers(0, 12, 30).astype(float) + truth
    auroc, precision, best = image_metrics(scores, truth)
    assert auroc == pytest.approx(roc_auc_score(truth, scores))
    assert precision == pytest.approx(average_precision_score(truth, scores))
    assert best == pytest.approx(max(f1_score(truth, scores >= t) for t in scores))
