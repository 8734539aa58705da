"""Floors on real images with masks, scanned blindly. Skipped where these are not at hand."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import spearmanr

import patchcluster

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bottle(shared_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bottle") / "run"
    return patchcluster.scan(shared_data / "mvtec" / "bottle" / "test", folder)


def figures(run, truth):
    result = patchcluster.evaluate(run, truth)
    return [100 * value for value in (result.image_auroc, result.pixel_auroc, result.pro)]


def test_bottle(bottle, shared_data):
    image, pixel, pro = figures(bottle, shared_data / "mvtec" / "bottle")
    assert image >= 99.8
    assert pixel >= 97.9
    assert pro >= 94.8


def test_screw(shared_data, tmp_path):
    root = shared_data / "mvtec" / "screw"
    image, pixel, pro = figures(patchcluster.scan(root / "test", tmp_path / "run"), root)
    assert image >= 85
    assert pixel >= 98.7
    assert pro >= 94.8


def test_odd_files_among_the_bottles(bottle, shared_data, tmp_path):
    """Bad files are listed with reasons; the others keep their ranks as far as new images allow."""
    folder = tmp_path / "test"
    shutil.copytree(shared_data / "mvtec" / "bottle" / "test", folder)
    source = folder / "good" / "000.png"
    (folder / "notes.txt").write_text("bottles of Tuesday")
    (folder / "truncated.png").write_bytes(source.read_bytes()[:20_000])
    (folder / "empty.png").touch()
    with Image.open(source) as image:
        turned = image.transpose(Image.Transpose.ROTATE_90)
        exif = turned.getexif()
        exif[0x0112] = 6  # turn by 90 degrees to the right when shown
        turned.save(folder / "turned.jpg", exif=exif, quality=95)
        grey = np.asarray(image.convert("L")).astype(np.uint16) * 257
        Image.fromarray(grey).save(folder / "deep.png")
        image.resize((20, 30)).save(folder / "tiny.png")
    run = patchcluster.scan(folder, tmp_path / "run")
    reasons = {Path(skip.path).name: skip.reason for skip in run.skipped}
    assert set(reasons) == {"notes.txt", "truncated.png", "empty.png"}
    assert len(run) == 83 + 3
    scores = dict(zip(run.paths, run.scores, strict=True))
    # As it is shown, the turned photograph is the one that it was made of.
    assert scores[str(folder / "turned.jpg")] == pytest.approx(scores[str(source)], rel=0.25)
    assert run.map("turned.jpg").shape == (512, 512)
    assert run.map("tiny.png").shape == (30, 20)
    with_others = [scores[str(folder / Path(p).parent.name / Path(p).name)] for p in bottle.paths]
    assert spearmanr(with_others, bottle.scores).statistic > 0.99
