import numpy as np
import pytest
from PIL import Image

from patchcluster.datasets import find_truth, read_mask
from patchcluster.errors import InputError


@pytest.fixture
def dataset(tmp_path):
    for name in ("test/good/000.png", "test/crack/000.png", "ground_truth/crack/000_mask.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("below", ["", "ground_truth"])
def test_truth_of_mvtec_layout(dataset, below):
    paths = [str(dataset / "test" / kind / "000.png") for kind in ("good", "crack")]
    good, crack = find_truth(paths, dataset / below)
    assert (good.anomalous, good.mask) == (False, None)
    assert (crack.anomalous, crack.mask) == (True, dataset / "ground_truth/crack/000_mask.png")


def test_links_lead_to_the_truth(dataset):
    (dataset / "flat").mkdir()
    link = dataset / "flat" / "1.png"
    link.symlink_to(dataset / "test" / "crack" / "000.png")
    assert find_truth([str(link)], dataset)[0].anomalous


def test_images_without_truth_are_an_error(dataset):
    with pytest.raises(InputError, match=r"1 of 1 images have no truth.*dent/5\.png"):
        find_truth([str(dataset / "test" / "dent" / "5.png")], dataset)
    with pytest.raises(InputError, match="not a folder"):
        find_truth([], dataset / "none")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 255], [False, True]),
        ([0, 1], [False, True]),  # a label
        ([0, 2, 130, 255], [False, False, True, True]),  # went through JPEG
        ([0, 0], [False, False]),
    ],
)
def test_masks(tmp_path, values, expected):
    Image.fromarray(np.array([values], np.uint8)).save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png").tolist() == [expected]


def test_damaged_mask_is_an_error(tmp_path):
    (tmp_path / "m.png").write_text("x")
    with pytest.raises(InputError, match="cannot read the mask"):
        read_mask(tmp_path / "m.png")
