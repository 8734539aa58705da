"""Floors on real images with masks, scanned blindly. Skipped where these are not at hand."""

import pytest

import patchcluster

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "image_auroc", "pixel_auroc", "pro"),
    [("bottle", 0.998, 0.979, 0.948), ("screw", 0.85, 0.987, 0.948)],
)
def test_figures(shared_data, tmp_path, name, image_auroc, pixel_auroc, pro):
    root = shared_data / "mvtec" / name
    found = patchcluster.evaluate(patchcluster.scan(root / "test", tmp_path / "run"), root)
    assert found.image_auroc >= image_auroc
    assert found.pixel_auroc >= pixel_auroc
    assert found.pro >= pro
