import numpy as np
import pytest
from PIL import Image

from patchcluster.datasets import (
    SETTINGS,
    Truth,
    count_pixels,
    find_truth,
    read_dataset,
    read_mask,
    select,
    statistics,
)
from patchcluster.errors import InputError
from patchcluster.images import survey


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


# --- layouts and settings -----------------------------------------------------------------------


def write_images(root, *names, size=(4, 4)):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", size).save(root / name)


def write_masks(root, *names, size=(4, 4), anomalous=1, value=255):
    """Masks with the first `anomalous` pixels set."""
    for name in names:
        values = np.zeros(size[::-1], np.uint8)
        values.reshape(-1)[:anomalous] = value
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(root / name)


def mvtec(root):
    """3 training images, 2 good and 3 defective test images."""
    write_images(root, *(f"nut/train/good/{i}.png" for i in (0, 1, 10)))
    write_images(root, "nut/test/good/0.png", "nut/test/good/1.png")
    write_images(root, "nut/test/crack/0.png", "nut/test/dent/0.png", "nut/test/dent/1.png")
    write_masks(root, "nut/ground_truth/crack/0_mask.png", anomalous=4)
    write_masks(root, *(f"nut/ground_truth/dent/{i}_mask.png" for i in (0, 1)))
    return root


def names(category, indices):
    return ["/".join(category.samples[i].path.split("/")[-3:]) for i in indices]


def test_settings_of_the_mvtec_layout(tmp_path):
    (nut,) = read_dataset(mvtec(tmp_path))
    assert nut.name == "nut"
    train = ["train/good/0.png", "train/good/1.png", "train/good/10.png"]
    defective = ["test/crack/0.png", "test/dent/0.png", "test/dent/1.png"]
    good = ["test/good/0.png", "test/good/1.png"]
    splits = {setting: select(nut, setting) for setting in SETTINGS}
    assert names(nut, splits["mix"].scored) == train + defective + good
    assert names(nut, splits["test"].scored) == defective + good
    assert names(nut, splits["ano"].scored) == defective
    assert names(nut, splits["one-class"].scored) == defective + good
    assert names(nut, splits["one-class"].bank) == train
    assert all(splits[s].bank is None for s in ("mix", "test", "ano"))


def count(sample):
    mask = None if sample.truth.mask is None else read_mask(sample.truth.mask)
    return count_pixels(survey(sample.path), mask)


def test_statistics_are_those_of_table_1(tmp_path):
    (nut,) = read_dataset(mvtec(tmp_path))
    expected = {
        "mix": (5, 3, 5 / 8, 6 / 128),
        "test": (2, 3, 2 / 5, 6 / 80),
        "ano": (0, 3, 0, 6 / 48),
    }
    for setting, row in expected.items():
        samples = [nut.samples[i] for i in select(nut, setting).scored]
        counts = [(s.truth.anomalous, *count(s)) for s in samples]
        found = statistics(counts)
        assert (found.normal, found.anomalous) == row[:2]
        assert found.normal_share == pytest.approx(row[2])
        assert found.anomalous_pixel_share == pytest.approx(row[3])


def test_a_mask_of_another_size_counts_by_its_share(tmp_path):
    write_images(tmp_path, "nut/test/dent/0.png", size=(8, 8))
    write_masks(tmp_path, "nut/ground_truth/dent/0_mask.png", anomalous=2)
    (nut,) = read_dataset(tmp_path)
    assert count(nut.samples[0]) == (64, 8)


def test_the_folder_of_one_category_will_do(tmp_path):
    (nut,) = read_dataset(mvtec(tmp_path) / "nut")
    assert (nut.name, len(nut.samples)) == ("nut", 8)


def test_a_category_without_training_images_has_no_mix(tmp_path):
    write_images(tmp_path, "nut/test/good/0.png")
    (nut,) = read_dataset(tmp_path)
    assert len(select(nut, "test").scored) == 1
    for setting in ("mix", "one-class"):
        with pytest.raises(InputError, match="nut has no training images"):
            select(nut, setting)


def test_a_defective_image_without_its_mask_is_an_error(tmp_path):
    root = mvtec(tmp_path)
    (root / "nut/ground_truth/dent/1_mask.png").unlink()
    with pytest.raises(InputError, match=r"dent/1\.png' has no mask"):
        read_dataset(root)


VISA = """object,split,label,image,mask
candle,train,normal,candle/Data/Images/Normal/0.JPG,
candle,test,normal,candle/Data/Images/Normal/1.JPG,
candle,test,anomaly,candle/Data/Images/Anomaly/0.JPG,candle/Data/Masks/Anomaly/0.png
"""


@pytest.mark.parametrize("split", [True, False])
def test_visa_layout(tmp_path, split):
    normal = [f"candle/Data/Images/Normal/{i}.JPG" for i in (0, 1)]
    write_images(tmp_path, *normal, "candle/Data/Images/Anomaly/0.JPG")
    write_masks(tmp_path, "candle/Data/Masks/Anomaly/0.png", value=3)  # VisA numbers its defects
    if split:
        (tmp_path / "split_csv").mkdir()
        (tmp_path / "split_csv" / "1cls.csv").write_text(VISA)
    (candle,) = read_dataset(tmp_path)
    assert candle.name == "candle"
    assert [s.train for s in candle.samples] == [split, False, False]
    assert [s.truth.anomalous for s in candle.samples] == [False, False, True]
    assert read_mask(candle.samples[2].truth.mask).sum() == 1
    assert len(select(candle, "test").scored) == (2 if split else 3)
    paths = [str(tmp_path / name) for name in (*normal, "candle/Data/Images/Anomaly/0.JPG")]
    truths = find_truth(paths, tmp_path)
    assert [truth.anomalous for truth in truths] == [False, False, True]
    assert truths[2].mask == tmp_path / "candle/Data/Masks/Anomaly/0.png"


def test_a_damaged_visa_split_is_an_error(tmp_path):
    (tmp_path / "split_csv").mkdir()
    (tmp_path / "split_csv" / "1cls.csv").write_text("image,mask\na.png,\n")
    with pytest.raises(InputError, match="must have the columns object, split"):
        read_dataset(tmp_path)


def test_a_folder_of_images_and_one_of_masks(tmp_path):
    write_images(tmp_path, *(f"images/{name}" for name in ("a.jpg", "b.png", "c.png", "d/e.png")))
    write_masks(tmp_path, "masks/b.png", "masks/d/e_mask.png")
    write_masks(tmp_path, "masks/c.png", anomalous=0)
    (category,) = read_dataset(tmp_path)
    assert [s.truth for s in category.samples] == [
        Truth(False, None),
        Truth(True, tmp_path / "masks/b.png"),
        Truth(False, None),
        Truth(True, tmp_path / "masks/d/e_mask.png"),
    ]
    link = tmp_path / "link.png"
    link.symlink_to(tmp_path / "images" / "b.png")
    assert find_truth([str(link)], tmp_path)[0].anomalous


def test_an_unknown_layout_is_an_error(tmp_path):
    write_images(tmp_path, "a.png", "b/c.png", "test/flat.png")
    with pytest.raises(InputError, match=r"no data set is known in.*MVTec AD"):
        read_dataset(tmp_path)
    with pytest.raises(InputError, match="not a folder"):
        read_dataset(tmp_path / "none")


def test_table_1_of_bottle(shared_data):
    """MVTec AD's own counts: 209 training images, 20 good and 63 defective test images."""
    categories = {c.name: c for c in read_dataset(shared_data / "mvtec")}
    assert set(categories) == {"bottle", "screw"}
    bottle = categories["bottle"]
    counts = {s: len(select(bottle, s).scored) for s in SETTINGS}
    assert counts == {"mix": 292, "test": 83, "ano": 63, "one-class": 83}
    assert len(select(bottle, "one-class").bank) == 209
    assert len(select(categories["screw"], "ano").scored) == 119
