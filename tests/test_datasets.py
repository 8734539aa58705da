import json

import numpy as np
import pytest
from PIL import Image

from patchcluster.datasets import (
    SETTINGS,
    Truth,
    Unknown,
    find_truth,
    match_truth,
    read_dataset,
    read_mask,
    read_truth,
    select,
)
from patchcluster.datasets.drawn import Polygons, Runs, decode_counts
from patchcluster.errors import InputError


@pytest.fixture
def dataset(tmp_path):
    for name in ("test/good/000.png", "test/crack/000.png", "ground_truth/crack/000_mask.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("below", ["", "ground_truth"])
@pytest.mark.parametrize("has_empty_masks", [False, True])  # of normal images
def test_truth_of_mvtec_layout(dataset, below, has_empty_masks):
    if has_empty_masks:
        (dataset / "ground_truth/good").mkdir()
        Image.new("L", (4, 4)).save(dataset / "ground_truth/good/000_mask.png")
    paths = [str(dataset / "test" / kind / "000.png") for kind in ("good", "crack")]
    good, crack = find_truth(paths, dataset / below)
    assert (good.anomalous, good.masks) == (False, ())
    assert (crack.anomalous, crack.masks) == (True, (dataset / "ground_truth/crack/000_mask.png",))


def test_what_is_hidden_or_of_the_system_is_no_part_of_a_data_set(dataset):
    before = read_dataset(dataset)
    for name in ("test/good/.ipynb_checkpoints/0.png", "test/crack/@eaDir/000.png/THUMB_M.png"):
        (dataset / name).parent.mkdir(parents=True)
        Image.new("L", (4, 4)).save(dataset / name)
    assert read_dataset(dataset) == before


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
    assert not splits["one-class"].blind
    for setting in ("mix", "test", "ano"):
        assert splits[setting].blind
        assert splits[setting].bank == splits[setting].scored


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
    assert read_truth(candle.samples[2].truth).sum() == 1
    assert len(select(candle, "test").scored) == (2 if split else 3)
    paths = [str(tmp_path / name) for name in (*normal, "candle/Data/Images/Anomaly/0.JPG")]
    truths = find_truth(paths, tmp_path)
    assert [truth.anomalous for truth in truths] == [False, False, True]
    assert truths[2].masks == (tmp_path / "candle/Data/Masks/Anomaly/0.png",)


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
        Truth(False),
        Truth(True, (tmp_path / "masks/b.png",)),
        Truth(False),
        Truth(True, (tmp_path / "masks/d/e_mask.png",)),
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


# --- layouts of other data sets -----------------------------------------------------------------


def kinds(category):
    """Of each sample: its path in the data set, its part, whether it is anomalous."""
    return [
        ("/".join(s.path.split("/")[-2:]), s.train, s.truth.anomalous) for s in category.samples
    ]


def test_loco_layout_joins_the_masks_of_an_image(tmp_path):
    pushpins = tmp_path / "pushpins"
    write_images(pushpins, "train/good/000.png", "validation/good/000.png", "test/good/000.png")
    write_images(pushpins, "test/logical_anomalies/000.png", "test/structural_anomalies/000.png")
    masks = [pushpins / "ground_truth/logical_anomalies/000" / f"00{i}.png" for i in (0, 1)]
    for i, path in enumerate(masks):  # the value says how much of the anomaly must be found
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(
            np.array([[0, 0, 0, 0], [254 - i if i == j else 0 for j in range(4)]], np.uint8)
        ).save(path)
    write_masks(pushpins, "ground_truth/structural_anomalies/000/000.png", anomalous=3, value=255)
    (category,) = read_dataset(tmp_path)
    assert kinds(category) == [
        ("good/000.png", True, False),
        ("good/000.png", True, False),
        ("good/000.png", False, False),
        ("logical_anomalies/000.png", False, True),
        ("structural_anomalies/000.png", False, True),
    ]
    logical, structural = (s.truth for s in category.samples[3:])
    assert logical.masks == tuple(masks)
    assert read_truth(logical).tolist() == [[False] * 4, [True, True, False, False]]
    assert read_truth(structural).sum() == 3
    # The same by the path of an image, as `evaluate --truth` does.
    assert find_truth([category.samples[3].path], tmp_path) == [logical]
    write_masks(pushpins, "ground_truth/logical_anomalies/000/001.png", size=(8, 8))
    with pytest.raises(InputError, match="masks of one image differ in size"):
        read_truth(logical)
    for path in masks:
        path.unlink()
    with pytest.raises(InputError, match=r"logical_anomalies/000\.png' has no mask"):
        read_dataset(tmp_path)


def test_btad_layout(tmp_path):
    write_images(tmp_path, *(f"01/{part}/ok/0000.bmp" for part in ("train", "test")))
    write_images(tmp_path, "01/test/ko/0000.bmp", "01/test/ko/0001.bmp")
    write_images(tmp_path, "03/train/ok/0000.bmp", "03/test/ko/0000.bmp")
    write_masks(tmp_path, "01/ground_truth/ko/0000.png", "01/ground_truth/ko/0001.png", anomalous=2)
    write_masks(tmp_path, "03/ground_truth/ko/0000.bmp", anomalous=5)
    first, third = read_dataset(tmp_path)
    assert (first.name, third.name) == ("01", "03")
    assert kinds(first) == [
        ("ok/0000.bmp", True, False),
        ("ko/0000.bmp", False, True),
        ("ko/0001.bmp", False, True),
        ("ok/0000.bmp", False, False),
    ]
    assert read_truth(first.samples[2].truth).sum() == 2
    assert read_truth(third.samples[1].truth).sum() == 5


def test_kolektor_layout(tmp_path):
    root = tmp_path / "KolektorSDD"
    write_images(root, "kos01/Part0.jpg", "kos01/Part1.jpg", "kos02/Part0.jpg", "kos10/Part0.jpg")
    write_masks(root, "kos01/Part0_label.bmp", "kos10/Part0_label.bmp", anomalous=0)
    write_masks(root, "kos01/Part1_label.bmp", "kos02/Part0_label.bmp", anomalous=3)
    (category,) = read_dataset(root)
    assert category.name == "KolektorSDD"
    assert kinds(category) == [
        ("kos01/Part0.jpg", False, False),
        ("kos01/Part1.jpg", False, True),
        ("kos02/Part0.jpg", False, True),
        ("kos10/Part0.jpg", False, False),
    ]
    assert read_truth(category.samples[1].truth).sum() == 3
    assert category.samples[0].truth == Truth(False)
    assert read_dataset(tmp_path) == [category]  # the folder above it
    assert len(read_dataset(root / "kos01")[0].samples) == 2  # one of its parts
    (root / "kos02" / "Part0_label.bmp").unlink()
    with pytest.raises(InputError, match=r"kos02/Part0\.jpg' has no mask"):
        read_dataset(root)


def test_second_kolektor_layout(tmp_path):
    """Its training part has defects, and its archive two files by mistake."""
    write_images(tmp_path, *(f"train/{name}.png" for name in ("10000", "10001", "10301 (copy)")))
    write_images(tmp_path, "test/20000.png", "test/20001.png")
    write_masks(tmp_path, "train/10000_GT.png", "test/20000_GT.png", anomalous=0)
    write_masks(tmp_path, "train/10001_GT.png", "test/20001_GT.png", anomalous=2)
    write_masks(tmp_path, "train/10301_GT (copy).png", anomalous=0)
    (category,) = read_dataset(tmp_path)
    assert kinds(category) == [
        ("train/10000.png", True, False),
        ("train/10001.png", True, True),
        ("test/20000.png", False, False),
        ("test/20001.png", False, True),
    ]
    split = select(category, "one-class")
    assert (split.scored, split.bank) == ([2, 3], [0])  # what is normal
    assert select(category, "mix").scored == [0, 1, 2, 3]
    assert select(category, "ano").scored == [3]


def test_magnetic_tile_layout(tmp_path):
    images = ["MT_Blowhole/Imgs/exp1_num_2.jpg", "MT_Blowhole/Imgs/exp1_num_10.jpg"]
    write_images(tmp_path, *images, "MT_Free/Imgs/exp1_num_1.jpg")
    write_masks(tmp_path, *(name.replace("jpg", "png") for name in images), anomalous=6)
    write_masks(tmp_path, "MT_Free/Imgs/exp1_num_1.png", anomalous=0)
    (category,) = read_dataset(tmp_path)
    assert kinds(category) == [
        ("Imgs/exp1_num_2.jpg", False, True),
        ("Imgs/exp1_num_10.jpg", False, True),
        ("Imgs/exp1_num_1.jpg", False, False),
    ]
    assert read_truth(category.samples[1].truth).sum() == 6
    (tmp_path / "MT_Blowhole/Imgs/exp1_num_10.png").unlink()
    with pytest.raises(InputError, match=r"exp1_num_10\.jpg' has no mask"):
        read_dataset(tmp_path)


def test_magnetic_tile_as_it_was_published(tmp_path, shared_data):
    """The real photographs, put back into the layout that they were published in."""
    source = shared_data / "magnetic_tile"
    wanted = {"good": "Free", "blowhole": "Blowhole", "uneven": "Uneven"}
    for kind, name in wanted.items():
        target = tmp_path / f"MT_{name}" / "Imgs"
        target.mkdir(parents=True)
        for path in sorted((source / "test" / kind).iterdir())[:5]:
            (target / path.name).symlink_to(path)
            mask = source / "ground_truth" / kind / f"{path.stem}_mask.png"
            if mask.is_file():
                (target / f"{path.stem}.png").symlink_to(mask)
    (category,) = read_dataset(tmp_path)
    assert len(category.samples) == 15
    paths = [sample.path for sample in category.samples]
    both = [[s.truth for s in category.samples], find_truth(paths, source)]
    assert [t.anomalous for t in both[0]] == [t.anomalous for t in both[1]]
    for one, other in zip(*both, strict=True):
        assert np.array_equal(read_truth(one), read_truth(other))


def test_a_folder_that_could_be_two_layouts_is_an_error(tmp_path):
    write_images(tmp_path, "images/a.png")
    write_masks(tmp_path, "masks/a.png")
    write_coco(tmp_path, [("a.png", 4, 4, [])])
    with pytest.raises(InputError, match=r"could be images and masks or COCO: leave only one"):
        read_dataset(tmp_path)
    with pytest.raises(InputError, match="could be images and masks or COCO"):
        find_truth([str(tmp_path / "images/a.png")], tmp_path)
    (category,) = read_dataset(tmp_path / "annotations.json")  # which was named
    assert not category.samples[0].truth.anomalous


# --- COCO ---------------------------------------------------------------------------------------


def write_coco(root, images, name="annotations.json"):
    """images: file name, width, height, segmentations (None: only a box)."""
    content = {
        "images": [
            {"id": i, "file_name": file, "width": width, "height": height, "license": 1}
            for i, (file, width, height, _) in enumerate(images)
        ],
        "annotations": [
            {"id": n, "image_id": i, "category_id": 1, "bbox": [0, 0, 1, 1]}
            | ({} if shape is None else {"segmentation": shape})
            for n, (i, shape) in enumerate(
                (i, shape) for i, image in enumerate(images) for shape in image[3]
            )
        ],
        "categories": [{"id": 1, "name": "scratch"}],
    }
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(json.dumps(content))


SQUARE = [[1, 1, 3, 1, 3, 4, 1, 4]]  # x 1 to 3, y 1 to 4


@pytest.mark.parametrize("folder", ["", "images/"])
@pytest.mark.parametrize("name", ["annotations.json", "_annotations.coco.json"])
def test_coco_layout(tmp_path, folder, name):
    write_images(tmp_path, *(f"{folder}{n}.png" for n in ("a", "b", "sub/c", "d10")), size=(6, 5))
    runs = {"size": [5, 6], "counts": [27, 3]}
    shapes = {"b.png": [SQUARE, runs], "sub/c.png": [None, SQUARE]}
    names = ["d10.png", "b.png", "sub/c.png", "a.png"]
    write_coco(tmp_path, [(n, 6, 5, shapes.get(n, [])) for n in names], name)
    for root in (tmp_path, tmp_path / name):
        (category,) = read_dataset(root)
        found = [(s.path, s.truth.anomalous, len(s.truth.masks)) for s in category.samples]
        expected = [("a", False, 0), ("b", True, 2), ("d10", False, 0), ("sub/c", True, 0)]
        assert found == [(str(tmp_path / f"{folder}{n}.png"), a, m) for n, a, m in expected]
        mask = read_truth(category.samples[1].truth)
        expected_mask = np.zeros((5, 6), bool)
        expected_mask[1:4, 1:3] = True  # the square
        expected_mask[2:5, 5] = True  # the runs: the last three pixels, down the last column
        assert np.array_equal(mask, expected_mask)
    assert find_truth([str(tmp_path / f"{folder}b.png")], tmp_path / name)[0].anomalous


@pytest.mark.parametrize(
    ("polygon", "expected"),
    [
        ([0.5, 0.5, 2.5, 0.5, 2.5, 2.5, 0.5, 2.5], ["##..", "##..", "....", "...."]),
        ([0, 0, 4, 0, 0, 4], ["###.", "##..", "#...", "...."]),  # centres on the edge are outside
        ([-3, -3, 9, -3, 9, 2, -3, 2], ["####", "####", "....", "...."]),  # beyond the image
        (
            [0, -0.25, 4, 3.75, 4, -0.25, 0, 3.75],
            ["#..#", "####", "#..#", "...."],
        ),  # crosses itself
        ([1, 0, 1, 4, 1, 0], ["....", "....", "....", "...."]),  # nothing inside
    ],
)
def test_polygons(polygon, expected):
    drawn = Polygons(4, 4, (tuple(polygon),)).draw()
    assert ["".join(".#"[v] for v in row) for row in drawn.tolist()] == expected


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_polygons_are_those_of_pycocotools():
    """It rounds corners to fifths of a pixel: what differs lies that near to an edge."""
    masks = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(0)
    for corners in (3, 4, 7, 12):
        for _ in range(10):
            points = rng.uniform(-5, 45, (corners, 2))
            polygon = points.ravel().tolist()
            mine = Polygons(30, 40, (tuple(polygon),)).draw()
            theirs = masks.decode(masks.frPyObjects([polygon], 30, 40))[..., 0].astype(bool)
            assert mine.any() or not theirs.any()
            for y, x in np.argwhere(mine != theirs):
                assert distance_to_edges(points, x + 0.5, y + 0.5) < 0.3


def distance_to_edges(points, x, y):
    """From a point to the nearest edge of a polygon [n, 2]."""
    ends = np.roll(points, -1, axis=0) - points
    share = (((x, y) - points) * ends).sum(1) / (ends**2).sum(1)
    return np.hypot(*(points + share.clip(0, 1)[:, None] * ends - (x, y)).T).min()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_polygons_at_whole_pixels_are_exactly_those_of_pycocotools():
    masks = pytest.importorskip("pycocotools.mask")
    polygon = [2, 3, 17, 3, 17, 9, 8, 9, 8, 14, 2, 14]
    theirs = masks.decode(masks.frPyObjects([polygon], 20, 20))[..., 0]
    assert np.array_equal(Polygons(20, 20, (tuple(polygon),)).draw(), theirs.astype(bool))


@pytest.mark.parametrize("share", [0.02, 0.5, 1.0])
def test_runs_are_those_of_pycocotools(share):
    masks = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(1)
    mask = rng.random((123, 77)) < share
    text = masks.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
    assert np.array_equal(Runs(123, 77, text).draw(), mask)


def test_the_text_of_runs():
    """By hand: 6 is written 6; 40 is 8 + 32 more, then 1; the fourth is the difference to 1."""
    assert decode_counts("6X11") == [6, 40, 1]
    assert decode_counts("6X111") == [6, 40, 1, 41]
    assert decode_counts("6X11O") == [6, 40, 1, 39]  # O is 31: -1
    for text in ("X", "!", "X" * 20):
        with pytest.raises(ValueError, match="a text"):
            decode_counts(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": 3}, r"is no COCO file \(images: "),
        ({"annotations": [{"image_id": 0, "segmentation": [[1, 1, float("inf"), 2, 3, 4]]}]},
         "is no COCO file"),
        ({"images": [{"id": 0, "file_name": "a\0b.png", "width": 4, "height": 4}]},
         "b.png'"),
        ({"images": [{"id": 0, "file_name": "\ud800.png", "width": 4, "height": 4}]},
         "png'"),
        ({"images": [{"id": 1, "file_name": "a.png", "width": 0, "height": 4}]}, "images.0.width"),
        ({"annotations": [{"image_id": 7}]}, "an annotation of image 7, which it does not name"),
        ({"annotations": [{"image_id": 0, "segmentation": {"size": [5, 4], "counts": [20]}}]},
         "runs for 4 x 5 pixels on 'a.png', which has 4 x 4"),
        ({"images": [{"id": 0, "file_name": "b.png", "width": 4, "height": 4}]},
         "b.png'"),
    ],
)  # fmt: skip
def test_a_damaged_coco_file_is_one_line(tmp_path, change, message):
    write_images(tmp_path, "a.png")
    write_coco(tmp_path, [("a.png", 4, 4, [])])
    file = tmp_path / "annotations.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InputError, match=message) as caught:
        read_dataset(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [{"size": [4, 4], "counts": [3, -3, 16]},
                                   {"size": [4, 4], "counts": [3, 4]}])  # fmt: skip
def test_shapes_that_cannot_be_drawn_are_one_line(tmp_path, shape):
    write_images(tmp_path, "a.png")
    write_coco(tmp_path, [("a.png", 4, 4, [shape])])
    (category,) = read_dataset(tmp_path)
    with pytest.raises(InputError, match="cannot draw a mask"):
        read_truth(category.samples[0].truth)


def test_a_text_that_is_no_json_is_one_line(tmp_path):
    (tmp_path / "annotations.json").write_text("{")
    with pytest.raises(InputError, match=r"cannot read '.*annotations\.json'"):
        read_dataset(tmp_path)


# --- names that do not fit ----------------------------------------------------------------------


def test_folders_and_masks_without_regard_to_case(tmp_path):
    write_images(tmp_path, "nut/test/crack/A.JPG", "nut/test/good/0.JPG")
    write_masks(tmp_path, "nut/ground_truth/crack/a_mask.png", anomalous=2)
    (nut,) = read_dataset(tmp_path)
    assert kinds(nut) == [("crack/A.JPG", False, True), ("good/0.JPG", False, False)]
    assert read_truth(nut.samples[0].truth).sum() == 2


def test_masks_that_are_not_clear_are_an_error(tmp_path):
    write_images(tmp_path, "images/a.png", "images/a.jpg")
    write_masks(tmp_path, "masks/a.png")
    with pytest.raises(
        InputError, match=r"the mask of '.*a\.jpg' is not clear \('a' matches 2 imag"
    ):
        read_dataset(tmp_path)
    write_masks(tmp_path, "masks/a.png_mask.png", "masks/a.jpg_mask.png")
    (tmp_path / "masks/a.png").unlink()
    assert all(sample.truth.anomalous for sample in read_dataset(tmp_path)[0].samples)


def test_a_table_of_another_system(tmp_path):
    write_images(tmp_path, "candle/Data/Images/Anomaly/0.JPG")
    write_masks(tmp_path, "candle/Data/Masks/Anomaly/0.png")
    (tmp_path / "split_csv").mkdir()
    rows = "object,split,label,image,mask\ncandle,test,anomaly,{0}Images{0}Anomaly{0}0.JPG,{0}Masks"
    rows = (rows + "{0}Anomaly{0}0.png\n").format("\\").replace(",\\", ",candle\\Data\\")
    (tmp_path / "split_csv" / "1cls.csv").write_text(rows)
    (candle,) = read_dataset(tmp_path)
    assert read_truth(candle.samples[0].truth).sum() == 1


def test_an_image_is_no_mask_of_itself(tmp_path):
    write_images(tmp_path, *(f"images/{i}.png" for i in range(3)), "photos/crack/0.png")
    write_coco(tmp_path, [(f"{i}.png", 4, 4, []) for i in range(2)])
    for root in (tmp_path, tmp_path / "annotations.json"):
        found = match_truth([str(tmp_path / f"images/{i}.png") for i in range(3)], root)
        assert found == [Truth(False), Truth(False), Unknown("the data set does not name it")]
    found = match_truth([str(tmp_path / "photos/crack/0.png")], tmp_path / "photos")
    assert found == [Unknown("the data set does not name it")]


def test_two_masks_of_one_image_are_named_as_the_reason(dataset):
    write_masks(dataset, "ground_truth/crack/000_mask.bmp")
    (found,) = match_truth([str(dataset / "test" / "crack" / "000.png")], dataset / "ground_truth")
    assert found == Unknown("its mask is not clear: 2 names match it, the first 'crack/000'")


def test_links_to_one_image_that_say_the_same_are_one(tmp_path):
    write_images(tmp_path, "test/good/0.png")
    (tmp_path / "train" / "good").mkdir(parents=True)
    (tmp_path / "train" / "good" / "0.png").symlink_to(tmp_path / "test" / "good" / "0.png")
    assert find_truth([str(tmp_path / "train/good/0.png")], tmp_path) == [Truth(False)]


def test_entries_of_one_file_name_are_one_image(tmp_path):
    """Label Studio lists an image for each of its annotators."""
    write_images(tmp_path, "a.png", "b.png")
    write_coco(tmp_path, [("a.png", 4, 4, []), ("a.png", 4, 4, [SQUARE]), ("b.png", 4, 4, [])])
    one, other = find_truth([str(tmp_path / "a.png"), str(tmp_path / "b.png")], tmp_path)
    assert (one.anomalous, other.anomalous) == (True, False)
    assert read_truth(one).sum() == 6


def test_images_without_a_size_in_a_coco_file(tmp_path):
    """Label Studio writes null for images that it could not open."""
    write_images(tmp_path, "a.png", "b.png", "c.png")
    runs = {"size": [4, 4], "counts": [15, 1]}
    names = {"a.png": [], "b.png": [SQUARE], "c.png": [runs]}
    write_coco(tmp_path, [(name, None, None, shapes) for name, shapes in names.items()])
    (category,) = read_dataset(tmp_path)
    truths = [sample.truth for sample in category.samples]
    assert [truth.anomalous for truth in truths] == [False, True, True]
    assert [len(truth.masks) for truth in truths] == [0, 0, 1]


@pytest.mark.parametrize("shape", [[[]], [[1, 1, 3, 3]], [[1, 1, 3, 1, 3]]])
def test_polygons_of_fewer_than_three_points_say_nowhere_where(tmp_path, shape):
    write_images(tmp_path, "a.png", "b.png")
    write_coco(tmp_path, [("a.png", 4, 4, [shape]), ("b.png", 4, 4, [[*SQUARE, *shape]])])
    (category,) = read_dataset(tmp_path)
    one, other = [sample.truth for sample in category.samples]
    assert one == Truth(True)
    assert read_truth(other).sum() == 6


def test_the_images_of_an_export_are_in_the_folder_that_it_states(tmp_path):
    write_images(tmp_path, "photos/a.png", "photos/x/a.png")
    write_coco(tmp_path, [("a.png", 4, 4, [SQUARE])])
    file = tmp_path / "annotations.json"
    info = {"image_folder": f"{tmp_path}/photos/x/"}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"info": info}))
    paths = [str(tmp_path / "photos" / name) for name in ("a.png", "x/a.png")]
    outer, inner = match_truth(paths, file)
    assert isinstance(outer, Unknown)
    assert inner.anomalous
    assert read_dataset(file)[0].samples[0].path == paths[1]


def test_the_layout_of_cvat(tmp_path):
    write_images(tmp_path, "cvat/images/default/a.png")
    write_coco(tmp_path / "cvat/annotations", [("a.png", 4, 4, [])], "instances_default.json")
    (category,) = read_dataset(tmp_path / "cvat/annotations/instances_default.json")
    assert category.name == "cvat"
    assert [s.path for s in category.samples] == [str(tmp_path / "cvat/images/default/a.png")]


def test_a_visa_table_with_short_rows(tmp_path):
    write_images(tmp_path, "candle/Data/Images/Normal/0.JPG")
    (tmp_path / "split_csv").mkdir()
    table = tmp_path / "split_csv" / "1cls.csv"
    rows = "object,split,label,image,mask\ncandle,test,normal,candle/Data/Images/Normal/0.JPG\n"
    table.write_text(rows)
    (candle,) = read_dataset(tmp_path)
    assert [sample.truth for sample in candle.samples] == [Truth(False)]
    table.write_text(rows + "candle,test,normal\n")
    with pytest.raises(InputError, match="line 3 is too short"):
        read_dataset(tmp_path)


def test_a_mask_that_covers_nothing_of_an_anomalous_image_is_an_error(dataset):
    (truth,) = find_truth([str(dataset / "test" / "crack" / "000.png")], dataset)
    with pytest.raises(InputError, match=r"crack/000_mask\.png' of an anomalous image is empty"):
        read_truth(truth)
