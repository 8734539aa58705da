"""`evaluate` on label files as annotation tools write them, and on images that they do not name."""

import json

import cv2
import numpy as np
import pytest
from PIL import Image

import patchcluster
from conftest import exif_of, run_command, save_image, textured_image
from patchcluster.datasets import Truth, Unknown, match_truth, read_shown
from patchcluster.errors import InputError
from synthetic import SIDE, write_run

NAMES = ["photos/a.jpg", "photos/b.jpg", "photos/c.jpg", "photos/d.jpg"]
X, Y, WIDTH, HEIGHT = 140, 84, 48, 48  # of the regions that `write_run` draws
POLYGON = [X, Y, X + WIDTH, Y, X + WIDTH, Y + HEIGHT, X, Y + HEIGHT]
HASH = "0123456789abcdef" * 2
EXIF = 0x0112


def write_json(file, names, marked, size=(SIDE, SIDE), shape=(POLYGON,)):
    """A COCO file of images, of which those in `marked` have polygons, or run lengths."""
    file.parent.mkdir(parents=True, exist_ok=True)
    images = [
        {"id": i, "file_name": name, "width": size[0], "height": size[1]}
        for i, name in enumerate(names)
    ]
    notes = [
        {"id": n, "image_id": i, "category_id": 1, "iscrowd": 0, "bbox": [X, Y, WIDTH, HEIGHT],
         "area": WIDTH * HEIGHT, "segmentation": shape}
        for n, i in enumerate(marked)
    ]  # fmt: skip
    value = {"images": images, "annotations": notes, "categories": [{"id": 1, "name": "scratch"}]}
    file.write_text(json.dumps(value))
    return file


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run of 4 images that are not there any more, of which the first two are defective."""
    monkeypatch.chdir(tmp_path)
    return write_run(tmp_path / "run", NAMES)


CONVENTIONS = {
    "CVAT, of a share": ("annotations/instances_default.json", "line3/photos/{}.jpg"),
    "Label Studio, on Windows": ("project-1/result.json", "images\\1\\cb0618f6-{}.jpg"),
    "Roboflow": ("train/_annotations.coco.json", "{}_jpg.rf." + HASH + ".jpg"),
}


@pytest.mark.parametrize("tool", CONVENTIONS)
def test_label_files_of_tools(run, tmp_path, tool):
    file, pattern = CONVENTIONS[tool]
    names = [pattern.format(letter) for letter in "dcbaz"]
    found = patchcluster.evaluate(run, write_json(tmp_path / file, names, marked=(2, 3)))
    plain = write_json(tmp_path / "plain.json", NAMES, marked=(0, 1))
    assert found == patchcluster.evaluate(run, plain)
    assert found.left_out == {}
    assert found.image_auroc == 1
    assert found.pixel_auroc > 0.99


def test_an_image_that_is_not_named_is_listed_and_the_others_are_measured(run, tmp_path):
    two = [f"b_jpg.rf.{HASH}.jpg", f"b_jpg.rf.{HASH[::-1]}.jpg"]
    file = write_json(tmp_path / "labels.json", ["a.jpg", *two, "d.jpg"], marked=(0, 1))
    found = patchcluster.evaluate(run, file)
    reasons = {NAMES[1]: f"2 names match it, the first {two[0]!r}",
               NAMES[2]: "the data set does not name it"}  # fmt: skip
    assert (found.image_auroc, found.left_out) == (1, reasons)
    result = run_command("evaluate", "run", "--truth", file, "--json", "--quiet")
    assert result.exit_code == 0
    assert set(json.loads(result.stdout)) == {
        "image_auroc", "image_ap", "image_f1max", "pixel_auroc", "pixel_ap", "pro",
    }  # fmt: skip
    lines = [f"left  {path}: {why}" for path, why in reasons.items()]
    assert result.stderr.splitlines() == [*lines, "2 images without a truth are left out"]
    with pytest.raises(InputError, match=r"4 of 4 images have no truth, the first 'photos/a\.jpg'"):
        patchcluster.evaluate(run, write_json(tmp_path / "other.json", ["x.jpg"], marked=()))


# --- orientation --------------------------------------------------------------------------------

STORED = (40, 60)  # height, width


def write_turned(path, orientation):
    """A photograph with a dark block, and where that is, as stored and as shown."""
    mask = np.zeros(STORED, bool)
    mask[5:15, 30:55] = True
    exif = exif_of(orientation)
    pixels = np.where(mask[..., None], 20, np.full((*STORED, 3), 200)).astype(np.uint8)
    save_image(path, pixels, exif=exif, quality=95)
    shown = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) < 100
    return mask, shown


def shape_of(mask, kind):
    """A rectangle in a mask as COCO has it."""
    if kind == "polygon":
        (y0, x0), (y1, x1) = np.argwhere(mask).min(0).tolist(), np.argwhere(mask).max(0).tolist()
        return [[x0, y0, x1 + 1, y0, x1 + 1, y1 + 1, x0, y1 + 1]]
    edges = np.flatnonzero(np.diff(mask.T.ravel().astype(int))) + 1
    return {"size": list(mask.shape), "counts": np.diff([0, *edges, mask.size]).tolist()}


ORIENTATIONS = [("shown", number) for number in range(1, 9)] + [  # sizes tell no others
    ("stored", number) for number in (1, 5, 6, 7, 8)
]


@pytest.mark.parametrize("kind", ["polygon", "rle", "png"])
@pytest.mark.parametrize(("convention", "orientation"), ORIENTATIONS)
def test_masks_are_turned_as_their_image(tmp_path, kind, convention, orientation):
    image = tmp_path / "test" / "crack" / "a.jpg"
    stored, shown = write_turned(image, orientation)
    mask = stored if convention == "stored" else shown
    root = tmp_path
    if kind == "png":
        save_image(tmp_path / "ground_truth" / "crack" / "a_mask.png", mask)
    else:
        height, width = mask.shape
        file = tmp_path / "labels.json"
        root = write_json(file, ["a.jpg"], (0,), (width, height), shape_of(mask, kind))
    (truth,) = match_truth([str(image)], root)
    found = read_shown(truth, str(image), *shown.shape[::-1])
    np.testing.assert_array_equal(found, shown)


@pytest.mark.parametrize("orientation", [1, 5, 6, 7, 8])
def test_smaller_masks_are_turned_by_their_aspect(tmp_path, orientation):
    image, png = tmp_path / "a.jpg", tmp_path / "mask.png"
    stored, shown = write_turned(image, orientation)
    height, width = shown.shape
    for mask in (stored[::2, ::2], stored[::3, ::3], shown[::2, ::2]):  # a third: rounded
        save_image(png, mask)
        found = read_shown(Truth(True, (png,)), str(image), width, height)
        step = round(height / found.shape[0])
        assert np.mean(found != shown[::step, ::step]) < 0.06  # else 0.2
    save_image(png, shown[::2, ::2].T)
    if orientation == 1:
        with pytest.raises(InputError, match=r"has 20 x 30 pixels, but .* is shown as 60 x 40"):
            read_shown(Truth(True, (png,)), str(image), width, height)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_label_studio_writes_shares_of_the_shown_image_times_stored_sides(tmp_path, orientation):
    image = tmp_path / "a.jpg"
    _, shown = write_turned(image, orientation)
    height, width = shown.shape
    (polygon,) = shape_of(shown, "polygon")
    percents = [100 * v / (height if i % 2 else width) for i, v in enumerate(polygon)]
    with Image.open(image) as opened:
        stored = opened.size  # as its converter has it
    polygon = [v / 100 * stored[i % 2] for i, v in enumerate(percents)]
    file = write_json(tmp_path / "result.json", ["a.jpg"], (0,), stored, [polygon])
    info = {"contributor": "Label Studio"}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"info": info}))
    (truth,) = match_truth([str(image)], file)
    np.testing.assert_array_equal(read_shown(truth, str(image), width, height), shown)


def test_sizes_that_fit_neither_are_an_error(tmp_path):
    image = tmp_path / "a.jpg"
    write_turned(image, 6)
    file = write_json(tmp_path / "labels.json", ["a.jpg"], (0,), (60, 41))
    (truth,) = match_truth([str(image)], file)
    words = r"labels\.json: a\.jpg' has 60 x 41 pixels, but '.*a\.jpg' is shown as 40 x 60: mend"
    with pytest.raises(InputError, match=words):
        read_shown(truth, str(image), 40, 60)
    save_image(tmp_path / "upright.jpg", np.zeros((*STORED, 3), np.uint8))
    with pytest.raises(InputError, match="has 60 x 41 pixels"):
        read_shown(truth, str(tmp_path / "upright.jpg"), 60, 40)
    turned = write_json(tmp_path / "turned.json", ["a.jpg"], (0,), (40, 60))
    (truth,) = match_truth([str(image)], turned)
    with pytest.raises(InputError, match="has 40 x 60 pixels"):  # no orientation says so
        read_shown(truth, str(tmp_path / "upright.jpg"), 60, 40)


# --- empty masks --------------------------------------------------------------------------------


def test_an_empty_mask_of_a_defect_is_an_error(tmp_path):
    for kind, name in (("good", "0"), ("crack", "1")):
        save_image(tmp_path / "test" / kind / f"{name}.png", textured_image(0, 32, 32))
    save_image(tmp_path / "ground_truth" / "crack" / "1_mask.png", np.zeros((32, 32), bool))
    names = [str(path) for path in sorted(tmp_path.glob("test/*/*.png"))]
    run = write_run(tmp_path / "run", names)
    with pytest.raises(InputError, match=r"crack/1_mask\.png' of an anomalous image is empty"):
        patchcluster.evaluate(run, tmp_path)
    file = write_json(
        tmp_path / "labels.json", ["0.png", "1.png"], (1,), shape=([1, 1, 1, 2, 1, 3],)
    )
    with pytest.raises(InputError, match=r"labels\.json: 1\.png' of an anomalous image is empty"):
        patchcluster.evaluate(run, file)


@pytest.mark.parametrize(
    ("mask", "name"), [("A_mask", "a.jpg"), ("cb0618f6-a", "a.jpg"), (f"a_jpg.rf.{HASH}", "a.jpg")]
)
def test_masks_are_found_by_the_names_of_tools(tmp_path, mask, name):
    save_image(tmp_path / "images" / name, textured_image(0, 32, 32))
    save_image(tmp_path / "images" / "b.jpg", textured_image(1, 32, 32))
    save_image(tmp_path / "masks" / f"{mask}.png", np.ones((32, 32), bool))
    (category,) = patchcluster.read_dataset(tmp_path)
    assert [sample.truth.anomalous for sample in category.samples] == [True, False]


def test_a_mask_of_no_image_beside_an_image_without_one_is_an_error(tmp_path):
    save_image(tmp_path / "images" / "a.jpg", textured_image(0, 32, 32))
    save_image(tmp_path / "images" / "b.jpg", textured_image(1, 32, 32))
    save_image(tmp_path / "masks" / "b.png", np.ones((32, 32), bool))
    save_image(tmp_path / "masks" / "x.png", np.ones((32, 32), bool))
    with pytest.raises(InputError, match=r"masks/x\.png' matches no image, and .*a\.jpg' has none"):
        patchcluster.read_dataset(tmp_path)
    save_image(tmp_path / "masks" / "a.png", np.zeros((32, 32), bool))
    (category,) = patchcluster.read_dataset(tmp_path)  # each image has one
    assert [sample.truth.anomalous for sample in category.samples] == [False, True]


def test_a_copy_of_a_data_set_elsewhere_is_measured_by_its_folders(tmp_path):
    """Base names alone say nothing there: 7.png of good is no 7.png of crack."""
    root = tmp_path / "nut"
    save_image(root / "test" / "good" / "7.png", textured_image(0, 32, 32))
    save_image(root / "test" / "crack" / "1.png", textured_image(0, 32, 32))
    save_image(root / "ground_truth" / "crack" / "1_mask.png", np.ones((32, 32), bool))
    copies = [
        str(tmp_path / "copy" / name) for name in ("crack/1.png", "good/9.png", "crack/7.png")
    ]
    crack, good, other = match_truth(copies, root)
    assert (crack.anomalous, good.anomalous) == (True, False)
    assert isinstance(other, Unknown)
