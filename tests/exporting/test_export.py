"""What each format holds, read back with the tool's own reader where that can be installed.

Heavy readers live in environments of their own, whose Python a variable names, else their tests are
skipped: PATCHCLUSTER_FIFTYONE_PYTHON, _DATUMARO_, _LABELSTUDIO_, _ULTRALYTICS_. What they run lies
in readers/.
"""

import base64
import csv
import io
import json
import os
import shutil
import subprocess
import zlib
from pathlib import Path
from xml.etree import ElementTree

import cv2
import fsspec
import jsonschema
import numpy as np
import pytest
import tifffile
from PIL import Image
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO
from typer.testing import CliRunner

import patchcluster
from conftest import exif_of, textured_image
from patchcluster import cli, exporting
from patchcluster.datasets import find_truth, read_truth
from patchcluster.errors import InputError, PatchclusterError, RunError, SettingError
from patchcluster.exporting import FORMATS, areas, export
from patchcluster.exporting import names as naming
from patchcluster.exporting.contents import Contents
from patchcluster.exporting.labelstudio import encode_rle
from patchcluster.exporting.output import replacing
from patchcluster.runs import tables
from patchcluster.scores.maps import find_regions
from synthetic import write_run

WIDTH, HEIGHT = 120, 80
TURNED = "photos/turned.jpg"
READERS = Path(__file__).parents[1] / "readers"
pytestmark = pytest.mark.filterwarnings(  # of pycocotools with NumPy 2
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)


def write_photos(folder: Path) -> None:
    """8 images, of which two share a name, two all but its ending, and 3 have a blot; one of
    these is stored turned by its EXIF."""
    (folder / "sub").mkdir(parents=True)
    for i, name in enumerate([*(f"part{i}.png" for i in range(4)), "sub/part5.jpg"]):
        Image.fromarray(textured_image(i, WIDTH, HEIGHT)).save(folder / name)
    for i, name in ((5, "part5.png"), (6, "sub/part5.png")):
        Image.fromarray(textured_image(i, WIDTH, HEIGHT, True)).save(folder / name)
    exif = exif_of(6)  # shown turned clockwise
    stored = np.rot90(textured_image(7, WIDTH, HEIGHT, True))
    Image.fromarray(stored).save(folder / "turned.jpg", quality=95, exif=exif)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("export")
    write_photos(root / "photos")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        labels = {"part0.png": "normal"}
        patchcluster.scan("photos", "photos-run", size=(128,), flag_top=3, labels=labels)
    return root


@pytest.fixture
def run(place, monkeypatch):
    monkeypatch.chdir(place)
    return patchcluster.load_run("photos-run")


def regions_mask(run, path):
    """The pixels of all regions of an image, straight from its map."""
    return run.map(path) > run.map_threshold(path)


def pixels_of(run, path):
    """The mask [height, width] of each region, by a definition of its own."""
    mask = regions_mask(run, path).astype(np.uint8)
    _, labels = cv2.connectedComponents(mask, connectivity=8)
    found = []
    for region in run.regions(path):
        box = np.s_[region.y : region.y + region.height, region.x : region.x + region.width]
        number = np.bincount(labels[box][labels[box] > 0]).argmax()
        assert (labels == number).sum() == region.area
        found.append(labels == number)
    return found


def picture_of(folder, path):
    """The copy of an image, or the link to it, in the folder images of an export."""
    data = Path(path).read_bytes()
    [found] = [p for p in (folder / "images").rglob("*.*") if p.read_bytes() == data]
    return found


def iou(one, other):
    return (one & other).sum() / (one | other).sum()


def read_apart(tool, script, *arguments, **environment):
    """What a script of readers/ prints, run by the environment of a tool."""
    variable = f"PATCHCLUSTER_{tool.upper()}_PYTHON"
    python = os.environ.get(variable)
    if python is None:
        pytest.skip(f"no environment with {tool}: name its Python in {variable}")
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | environment
    command = [python, READERS / script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_the_photos_have_regions_to_export(run):
    """What the other tests stand on: three flagged images with a region each, in the blots."""
    assert [p for p, f in zip(run.paths, run.flagged, strict=True) if f] == [
        "photos/part5.png", "photos/sub/part5.png", TURNED
    ]  # fmt: skip
    assert [len(run.regions(path)) for path in run.paths] == run.flagged.tolist()
    assert (run.images[-1].width, run.images[-1].height) == (WIDTH, HEIGHT)  # as it is shown


# --- geometry -----------------------------------------------------------------------------------


def random_region(seed):
    """A connected mask with holes and single pixels, in a box of its own."""
    rng = np.random.default_rng(seed)
    noise = cv2.GaussianBlur(rng.normal(size=(50, 70)).astype(np.float32), (0, 0), 1 + seed % 3)
    _, labels = cv2.connectedComponents((noise > 0).astype(np.uint8), connectivity=8)
    largest = np.bincount(labels[labels > 0]).argmax()
    rows, columns = np.nonzero(labels == largest)
    return (labels == largest)[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def rasterise(polygon, height, width):
    """A polygon as pycocotools has it."""
    coded = coco_masks.frPyObjects([np.ravel(polygon).tolist()], height, width)
    return coco_masks.decode(coded)[..., 0].astype(bool)


@pytest.mark.parametrize("seed", range(12))
def test_polygons_hold_what_they_say_of_any_region(seed, monkeypatch):
    mask = random_region(seed)
    polygon = areas.trace(mask)
    assert iou(areas.fill(polygon, mask.shape), mask) >= areas.LEAST_IOU
    assert iou(rasterise(polygon, *mask.shape), mask) >= 0.9
    monkeypatch.setattr(areas, "_TOLERANCES", ())
    exact = areas.trace(mask)
    assert len(exact) > len(polygon)
    np.testing.assert_array_equal(areas.fill(exact, mask.shape), mask)
    np.testing.assert_array_equal(rasterise(exact, *mask.shape), mask)


@pytest.mark.parametrize(("x", "y"), [(0, 0), (3, 5), (10, 12)])
def test_run_lengths_are_those_of_the_whole_image(x, y):
    mask = random_region(1)
    height, width = mask.shape[0] + 12, mask.shape[1] + 10
    whole = np.zeros((height, width), bool)
    whole[y : y + mask.shape[0], x : x + mask.shape[1]] = mask
    counts = areas.run_lengths(mask.T, y, x, height, width)
    assert sum(counts) == whole.size
    assert 0 not in counts[1:]
    decoded = coco_masks.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    np.testing.assert_array_equal(coco_masks.decode(decoded), whole)


def decode_brush(data):
    """Label Studio's run lengths, by the description of their bits."""
    bits = "".join(f"{byte:08b}" for byte in data)
    at = 0

    def take(count):
        nonlocal at
        at += count
        return int(bits[at - count : at], 2)

    total, word = take(32), take(5) + 1
    sizes = [take(4) + 1 for _ in range(4)]
    values = []
    while len(values) < total:
        repeats, size = take(1), sizes[take(2)]
        length = take(size) + 1
        values += [take(word)] * length if repeats else [take(word) for _ in range(length)]
    assert len(bits) - at < 8
    return np.array(values, np.uint8)


def test_brushes_survive_their_coding():
    mask = np.zeros((200, 300), bool)  # with runs longer than any size holds
    mask[150:170, 20:250] = True
    mask[160, 30] = False
    values = decode_brush(encode_rle(areas.run_lengths(mask, 0, 0, 300, 200))).reshape(200, 300, 4)
    for channel in range(4):
        np.testing.assert_array_equal(values[..., channel], 255 * mask)


# --- names --------------------------------------------------------------------------------------


def test_names_are_relative_to_the_folder_of_all():
    assert naming.mirror(["a/b/x.png", "a/b/c/x.png"]) == ["x.png", "c/x.png"]
    assert naming.mirror(["s3://bucket/p/x.png", "s3://bucket/q/x.png"]) == ["p/x.png", "q/x.png"]
    assert naming.mirror(["../a/x.png", "b/x.png"]) == ["a/x.png", f"{Path.cwd().name}/b/x.png"]
    assert naming.mirror(["only/one.png"]) == ["one.png"]
    assert naming.image_folder(["/data/p/x.png", "/data/p/q/y.png"]) == "/data/p/"


def test_no_two_files_share_a_name():
    assert naming.stems(["x.png", "x.jpg", "y.png"]) == ["x.png", "x.jpg", "y"]
    assert naming.stems(["A.png", "a.png"]) == ["A.png", "a-2.png"]  # one, on some file systems
    assert naming.stems(["x.png", "x.jpg", "x.png.tif"]) == ["x.png", "x.jpg", "x-2.png"]
    assert naming.stems(["x.a", "X.a", "x.A"]) == ["x.a", "X-2.a", "x-3.A"]
    long = [naming.number("é" * 125 + f"{i}.png", lambda _: False) for i in (1, 2)]
    assert len(set(long)) == 2
    assert all(len(os.fsencode(name)) <= 200 and name.endswith(".png") for name in long)


# --- tables -------------------------------------------------------------------------------------


def test_csv_has_all_of_scores_and_regions(run, tmp_path):
    file = export(run, "csv", tmp_path / "out.csv")
    rows = list(csv.DictReader(io.StringIO(file.read_text())))
    with open("photos-run/scores.csv") as opened:
        scores = {row["path"]: row for row in csv.DictReader(opened)}
    with open("photos-run/regions.csv") as opened:
        regions = list(csv.DictReader(opened))
    assert len({row["path"] for row in rows}) == len(run) == 8
    for row in rows:
        known = scores[row["path"]]
        same = ("rank", "score", "flagged", "regions", "nearest")
        assert [row[name] for name in same] == [known[name] for name in same]
        assert float(row["percentile"]) == float(known["percentile"])
    found = [row for row in rows if row["region"]]
    assert [{name: row[name] for name in regions[0]} for row in found] == regions
    assert {row["path"]: row["label"] for row in rows}["photos/part0.png"] == "normal"


def test_json_keeps_to_its_schema(run, tmp_path):
    value = json.loads(export(run, "json", tmp_path / "out.json").read_text())
    schema = json.loads((Path(exporting.__file__).parent / "export.schema.json").read_text())
    jsonschema.validate(value, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(value | {"images": [{"path": "x"}]}, schema)
    assert [image["score"] for image in value["images"]] == run.scores.tolist()
    assert [image["sha256"] for image in value["images"]] == [i.sha256 for i in run.images]
    last = value["images"][-1]["regions"][0]
    region = run.regions(TURNED)[0]
    assert (last["x"], last["y"], last["peak"]) == (region.x, region.y, region.peak)


def test_parquet_has_the_rows_of_csv_with_types(run, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(export(run, "parquet", tmp_path / "out.parquet"))
    text = export(run, "csv", tmp_path / "out.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert table.column_names == list(rows[0])
    for row, known in zip(table.to_pylist(), rows, strict=True):
        assert {name: tables.to_cell(value) for name, value in row.items()}.keys() == known.keys()
        assert {name: str(tables.to_cell(value)) for name, value in row.items()} == known
    kinds = {field.name: str(field.type) for field in table.schema}
    assert (kinds["score"], kinds["flagged"], kinds["x"]) == ("double", "bool", "int32")


def test_parquet_says_what_to_install(run, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(PatchclusterError, match=r"pip install 'patchcluster\[parquet\]'"):
        export(run, "parquet", tmp_path / "out.parquet")
    assert list(tmp_path.iterdir()) == []


# --- pictures -----------------------------------------------------------------------------------


def test_masks_are_the_regions_and_evaluate_finds_them(run, tmp_path):
    data = tmp_path / "data"
    shutil.copytree("photos", data / "images")
    export(run, "masks", data / "masks")
    again = [path.replace("photos", str(data / "images"), 1) for path in run.paths]
    truths = find_truth(again, data)
    assert [truth.anomalous for truth in truths] == [bool(run.regions(p)) for p in run.paths]
    for path, truth in zip(run.paths, truths, strict=True):
        mask = read_truth(truth)
        if mask is not None:
            np.testing.assert_array_equal(mask, regions_mask(run, path))
    written = sorted(p.relative_to(data / "masks") for p in (data / "masks").rglob("*.png"))
    assert len(written) == len(run)
    for name in written:
        with Image.open(data / "masks" / name) as image:
            assert (image.mode, image.size) == ("L", (WIDTH, HEIGHT))
            assert set(np.unique(image)) <= {0, 255}


def test_heatmaps_are_the_maps_to_every_reader(run, tmp_path):
    folder = export(run, "heatmaps", tmp_path / "heat")
    for path, name in zip(run.paths, naming.stems(naming.mirror(run.paths)), strict=True):
        file = str(folder / f"{name}.tiff")
        with Image.open(file) as image:
            read = [np.asarray(image), tifffile.imread(file), cv2.imread(file, -1)]
        for values in read:
            assert values.dtype == np.float32
            np.testing.assert_array_equal(values, run.map(path))


def test_places_are_those_of_the_image_as_it_is_shown(run, tmp_path):
    """EXIF: what OpenCV reads, as most tools do, is dark where the mask is, and of one size."""
    mask = cv2.imread(str(export(run, "masks", tmp_path / "m") / "turned_mask.png"), -1) > 0
    shown = cv2.imread(TURNED, cv2.IMREAD_GRAYSCALE)
    assert shown.shape == mask.shape == (HEIGHT, WIDTH)
    blot = shown < 50
    assert blot.sum() > 100
    rows, columns = np.nonzero(mask)
    y, x = np.nonzero(blot)
    assert abs(rows.mean() - y.mean()) < 8
    assert abs(columns.mean() - x.mean()) < 8
    assert (mask & blot).sum() > 0.5 * blot.sum()


# --- COCO ---------------------------------------------------------------------------------------


def load_coco(file):
    coco = COCO(str(file))
    return coco, {image["file_name"]: image for image in coco.dataset["images"]}


@pytest.mark.parametrize(("segmentation", "least"), [("rle", 1), ("polygon", 0.9)])
def test_coco_in_pycocotools(run, tmp_path, segmentation, least):
    file = export(run, "coco", tmp_path / "coco.json", segmentation=segmentation)
    coco, images = load_coco(file)
    assert coco.dataset["categories"][0]["name"] == "anomaly"
    assert coco.dataset["info"]["image_folder"] == "photos/"
    for path, name in zip(run.paths, naming.mirror(run.paths), strict=True):
        image = images[name]
        assert (image["width"], image["height"]) == (WIDTH, HEIGHT)
        assert Path("photos", name).is_file()
        assert image["score"] == run.scores[run.index(path)]
        found = coco.loadAnns(coco.getAnnIds(image["id"]))
        assert len(found) == len(run.regions(path))
        for one, region, mask in zip(found, run.regions(path), pixels_of(run, path), strict=True):
            assert iou(coco.annToMask(one).astype(bool), mask) >= least
            assert one["bbox"] == [region.x, region.y, region.width, region.height]
            assert (one["area"], one["score"]) == (region.area, region.peak)


def test_coco_boxes_only(run, tmp_path):
    coco, _ = load_coco(export(run, "coco", tmp_path / "coco.json", segmentation="box"))
    assert [one["segmentation"] for one in coco.dataset["annotations"]] == [[]] * 3


def test_only_the_flagged(run, tmp_path):
    file = export(run, "coco", tmp_path / "coco.json", flagged_only=True)
    assert len(load_coco(file)[1]) == 3
    assert (
        len(list(export(run, "masks", tmp_path / "masks", flagged_only=True).rglob("*.png"))) == 3
    )


def test_coco_in_datumaro(run, tmp_path):
    folder = tmp_path / "set"
    (folder / "annotations").mkdir(parents=True)
    export(run, "coco", folder / "annotations" / "instances_all.json")
    shutil.copytree("photos", folder / "images" / "all")
    found = read_apart("datumaro", "datumaro_reader.py", folder, "coco")
    check_polygons(run, found, "polygon")


# --- CVAT ---------------------------------------------------------------------------------------


def read_cvat(file):
    """Images by their names, each with its elements."""
    root = ElementTree.parse(file).getroot()
    assert root.tag == "annotations"
    assert root.findtext("version") == "1.1"
    assert root.findtext("meta/task/size") == str(len(root.findall("image")))
    declared = {
        label.findtext("name"): {a.findtext("name") for a in label.findall("attributes/attribute")}
        for label in root.findall("meta/task/labels/label")
    }
    for shape in root.findall("image/*"):
        assert {a.get("name") for a in shape.findall("attribute")} == declared[shape.get("label")]
    return {image.get("name"): image for image in root.findall("image")}


@pytest.mark.parametrize("kind", ["polygon", "rle", "box"])
def test_cvat(run, tmp_path, kind):
    images = read_cvat(export(run, "cvat", tmp_path / "cvat.xml", segmentation=kind))
    assert list(images) == naming.mirror(run.paths)
    for path, image in zip(run.paths, images.values(), strict=True):
        assert (image.get("width"), image.get("height")) == (str(WIDTH), str(HEIGHT))
        assert (image.find("tag[@label='flagged']") is not None) == run.flagged[run.index(path)]
        shown = [one for one in image if one.tag != "tag"]
        assert len(shown) == len(run.regions(path))
        for one, region, mask in zip(shown, run.regions(path), pixels_of(run, path), strict=True):
            assert float(one.find("attribute[@name='peak']").text) == pytest.approx(region.peak)
            check_cvat_shape(one, kind, region, mask)


def check_cvat_shape(one, kind, region, mask):
    if kind == "polygon":
        points = [[float(v) for v in pair.split(",")] for pair in one.get("points").split(";")]
        assert iou(rasterise(points, HEIGHT, WIDTH), mask) >= 0.9
    elif kind == "box":
        corners = [float(one.get(name)) for name in ("xtl", "ytl", "xbr", "ybr")]
        right, below = region.x + region.width, region.y + region.height
        assert corners == [region.x, region.y, right, below]
    else:
        counts = [int(count) for count in one.get("rle").split(",")]
        values = np.repeat(np.arange(len(counts)) % 2, counts).astype(bool)
        left, top, width, height = (int(one.get(n)) for n in ("left", "top", "width", "height"))
        box = np.s_[top : top + height, left : left + width]
        np.testing.assert_array_equal(values.reshape(height, width), mask[box])
        assert mask.sum() == values.sum()


@pytest.mark.parametrize("kind", ["polygon", "rle"])
def test_cvat_in_datumaro(run, tmp_path, kind):
    export(run, "cvat", tmp_path / "set" / "annotations.xml", segmentation=kind)
    shutil.copytree("photos", tmp_path / "set" / "images")
    found = read_apart("datumaro", "datumaro_reader.py", tmp_path / "set", "cvat")
    check_polygons(run, found, "mask" if kind == "rle" else kind)
    flags = {name: any(a["label"] == "flagged" for a in found[name]) for name in found}
    assert list(flags.values()) == run.flagged.tolist()


def check_polygons(run, found, kind):
    """What datumaro read is where the regions are."""
    names = naming.stems(naming.mirror(run.paths))
    assert sorted(found) == sorted(names)
    for path, name in zip(run.paths, names, strict=True):
        shown = [one for one in found[name] if one["type"] == kind]
        masks = pixels_of(run, path)
        assert len(shown) == len(masks)
        for one, mask in zip(shown, masks, strict=True):
            assert one["label"] == "anomaly"
            if kind == "mask":
                np.testing.assert_array_equal(one["mask"], mask)
            else:
                assert iou(rasterise(one["points"], HEIGHT, WIDTH), mask) >= 0.9


def test_names_that_xml_cannot_hold(tmp_path):
    names = ["\x1b[31m.png", "a&<b>'\".png", os.fsdecode(b"latin\xe9.png"), "\U0001f600.png"]
    write_run(tmp_path / "run", names)
    images = read_cvat(export(tmp_path / "run", "cvat", tmp_path / "cvat.xml"))
    assert list(images) == ["?[31m.png", "a&<b>'\".png", "latin?.png", "\U0001f600.png"]


# --- Label Studio -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["polygon", "rle", "box"])
def test_labelstudio(run, tmp_path, kind):
    folder = export(run, "labelstudio", tmp_path / "ls", segmentation=kind)
    interface = ElementTree.parse(folder / "interface.xml").getroot()
    control = interface[1]
    tasks = json.loads((folder / "tasks.json").read_text())
    assert [task["data"]["path"] for task in tasks] == run.paths
    assert tasks[-2]["data"]["image"] == "/data/local-files/?d=sub/part5.png"
    for path, task in zip(run.paths, tasks, strict=True):
        (prediction,) = task["predictions"]
        assert task["data"]["score"] == run.scores[run.index(path)]
        assert 0 <= prediction["score"] <= 1  # or Label Studio does not take it
        for one, region, mask in zip(
            prediction["result"], run.regions(path), pixels_of(run, path), strict=True
        ):
            assert (one["from_name"], one["to_name"]) == (
                control.get("name"),
                interface[0].get("name"),
            )
            assert one["type"] == control.tag.lower()
            assert (one["original_width"], one["original_height"]) == (WIDTH, HEIGHT)
            assert one["value"][one["type"]] == [control[0].get("value")] == ["anomaly"]
            check_labelstudio_value(one["value"], kind, region, mask)


def check_labelstudio_value(value, kind, region, mask):
    if kind == "polygon":
        points = np.array(value["points"]) * [WIDTH / 100, HEIGHT / 100]
        assert iou(rasterise(points, HEIGHT, WIDTH), mask) >= 0.9
    elif kind == "box":
        sides = [value[name] for name in ("x", "y", "width", "height")]
        known = [region.x, region.y, region.width, region.height]
        pixels = np.array(sides) / 100 * [WIDTH, HEIGHT, WIDTH, HEIGHT]
        np.testing.assert_allclose(pixels, known)
    else:
        pixels = decode_brush(value["rle"]).reshape(HEIGHT, WIDTH, 4)[..., 3] > 0
        np.testing.assert_array_equal(pixels, mask)


def test_labelstudio_names_images_as_asked(run, tmp_path):
    prefix = "https://example.org/photos/"
    folder = export(run, "labelstudio", tmp_path / "ls", image_prefix=prefix)
    tasks = json.loads((folder / "tasks.json").read_text())
    assert tasks[-2]["data"]["image"] == "https://example.org/photos/sub/part5.png"


@pytest.mark.parametrize("kind", ["polygon", "rle", "box"])
def test_labelstudio_in_its_sdk(run, tmp_path, kind):
    folder = export(run, "labelstudio", tmp_path / "ls", segmentation=kind)
    found = read_apart("labelstudio", "labelstudio_reader.py", folder)
    assert found["wrong"] == []
    if kind == "rle":
        for path in (p for p in run.paths if run.regions(p)):
            np.testing.assert_array_equal(found["masks"][path], pixels_of(run, path))


# --- YOLO ---------------------------------------------------------------------------------------


def test_yolo(run, tmp_path):
    folder = export(run, "yolo", tmp_path / "yolo")
    assert (folder / "data.yaml").read_text().splitlines()[-1] == "  0: anomaly"
    for path in run.paths:
        picture = picture_of(folder, path)
        assert not picture.is_symlink()
        name = picture.relative_to(folder / "images").with_suffix(".txt")
        lines = (folder / "labels" / name).read_text().splitlines()
        masks = pixels_of(run, path)
        for line, mask in zip(lines, masks, strict=True):
            number, *values = line.split()
            assert number == "0"
            points = np.array(values, float).reshape(-1, 2)
            assert ((points >= 0) & (points <= 1)).all()
            assert iou(rasterise(points * [WIDTH, HEIGHT], HEIGHT, WIDTH), mask) >= 0.9


def test_yolo_boxes_and_links(run, tmp_path):
    folder = export(run, "yolo", tmp_path / "yolo", segmentation="box", images="link")
    link = folder / "images" / "turned.jpg"
    assert link.is_symlink()
    assert os.path.samefile(link, TURNED)
    values = np.array((folder / "labels" / "turned.txt").read_text().split()[1:], float)
    region = run.regions(TURNED)[0]
    x, y, width, height = values * [WIDTH, HEIGHT, WIDTH, HEIGHT]
    np.testing.assert_allclose(
        [x - width / 2, y - height / 2, width, height],
        [region.x, region.y, region.width, region.height],
        atol=1e-3,
    )


@pytest.mark.parametrize(("kind", "task"), [("polygon", "segment"), ("box", "detect")])
def test_yolo_in_ultralytics(run, tmp_path, kind, task):
    folder = export(run, "yolo", tmp_path / "yolo", segmentation=kind)
    config = {"YOLO_CONFIG_DIR": str(tmp_path), "YOLO_OFFLINE": "true"}
    found = read_apart("ultralytics", "ultralytics_reader.py", folder / "data.yaml", task, **config)
    assert len(found) == len(run)
    for path in run.paths:
        one = found[str(picture_of(folder, path))]
        assert one["shape"] == [HEIGHT, WIDTH]  # with the orientation applied, by Ultralytics
        masks, regions = pixels_of(run, path), run.regions(path)
        assert one["classes"] == ["anomaly"] * len(regions)
        if kind == "polygon":
            for segment, mask in zip(one["segments"], masks, strict=True):
                points = np.array(segment) * [WIDTH, HEIGHT]
                assert iou(rasterise(points, HEIGHT, WIDTH), mask) >= 0.9
        else:
            for (x, y, width, height), region in zip(one["boxes"], regions, strict=True):
                assert (x - width / 2) * WIDTH == pytest.approx(region.x, abs=1e-3)
                assert (y - height / 2) * HEIGHT == pytest.approx(region.y, abs=1e-3)


# --- FiftyOne -----------------------------------------------------------------------------------


def test_fiftyone_folder(run, tmp_path):
    folder = export(run, "fiftyone", tmp_path / "fo")
    samples = json.loads((folder / "samples.json").read_text())["samples"]
    assert [sample["path"] for sample in samples] == run.paths
    assert all(Path(sample["filepath"]).is_file() for sample in samples)
    assert [sample["score"] for sample in samples] == run.scores.tolist()
    assert len({sample["heatmap"]["map_path"] for sample in samples}) == len(run)
    assert [sample["flagged"] for sample in samples] == run.flagged.tolist()
    for path, sample in zip(run.paths, samples, strict=True):
        found = sample["regions"]["detections"]
        for one, region, mask in zip(found, run.regions(path), pixels_of(run, path), strict=True):
            box = np.array(one["bounding_box"]) * [WIDTH, HEIGHT, WIDTH, HEIGHT]
            np.testing.assert_allclose(box, [region.x, region.y, region.width, region.height])
            within = np.s_[region.y : region.y + region.height, region.x : region.x + region.width]
            packed = io.BytesIO(zlib.decompress(base64.b64decode(one["mask"])))
            np.testing.assert_array_equal(np.load(packed), mask[within])
    copied = export(run, "fiftyone", tmp_path / "copy", images="copy")
    samples = json.loads((copied / "samples.json").read_text())["samples"]
    for path, sample in zip(run.paths, samples, strict=True):
        assert (copied / sample["filepath"]).read_bytes() == Path(path).read_bytes()


def test_fiftyone_opens_the_dataset(run, tmp_path):
    folder = export(run, "fiftyone", tmp_path / "fo", images="copy")
    config = {"FIFTYONE_DO_NOT_TRACK": "true", "FIFTYONE_DATABASE_DIR": str(tmp_path / "db")}
    found = read_apart("fiftyone", "fiftyone_reader.py", folder, **config)
    assert found["flagged"] == 3
    assert found["info"]["threshold"] == run.threshold.value
    assert list(found["samples"]) == run.paths
    for i, (path, sample) in enumerate(found["samples"].items()):
        assert sample["size"] == sample["own_size"] == [WIDTH, HEIGHT]
        assert (sample["score"], sample["flagged"]) == (run.scores[i], run.flagged[i])
        assert sample["tags"] == ["flagged"] * bool(run.flagged[i])
        assert sample["label"] == ("normal" if path == "photos/part0.png" else None)
        shape, top, bounds = sample["heat"]
        assert (shape, bounds) == ([HEIGHT, WIDTH], [0, 255])
        assert top == 255 or not run.flagged[i]
        masks = pixels_of(run, path)
        for one, region, mask in zip(sample["regions"], run.regions(path), masks, strict=True):
            box = np.array(one["box"]) * [WIDTH, HEIGHT, WIDTH, HEIGHT]
            known = [region.x, region.y, region.width, region.height]
            np.testing.assert_allclose(box, known)
            within = np.s_[region.y : region.y + region.height, region.x : region.x + region.width]
            np.testing.assert_array_equal(one["mask"], mask[within])
            assert (one["label"], one["peak"]) == ("anomaly", region.peak)


# --- where it is written ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "output"),
    [("csv", "photos-run.csv"), ("coco", "photos-run-coco.json"), ("masks", "photos-run-masks")],
)
def test_outputs_lie_beside_the_run(run, name, output):
    assert export(run, name, overwrite=True) == Path(output)


@pytest.mark.parametrize("name", ["csv", "masks"])
def test_nothing_is_replaced_unasked(run, tmp_path, name):
    out = export(run, name, tmp_path / "out")
    before = read_all(tmp_path)
    with pytest.raises(RunError, match="is there already: choose another -o, or add --overwrite"):
        export(run, name, out)
    export(run, name, out, overwrite=True)
    assert read_all(tmp_path) == before
    other = "masks" if name == "csv" else "csv"
    with pytest.raises(RunError, match=r"is a (file|folder): choose another -o"):
        export(run, other, out, overwrite=True)
    assert read_all(tmp_path) == before


def test_a_folder_with_files_of_others_stays(run, tmp_path):
    out = export(run, "masks", tmp_path / "out")
    (out / "sub" / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match=r"no export wrote \(sub/notes.txt\)"):
        export(run, "masks", out, overwrite=True)
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "x").write_text("mine")
    with pytest.raises(RunError, match="no export wrote"):
        export(run, "masks", tmp_path / "others", overwrite=True)
    assert (tmp_path / "others" / "x").read_text() == (out / "sub" / "notes.txt").read_text()


def test_an_export_that_fails_leaves_what_was_there(run, tmp_path, monkeypatch):
    out = export(run, "masks", tmp_path / "out")
    before = read_all(tmp_path)
    monkeypatch.setattr(Contents, "areas", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export(run, "masks", out, overwrite=True)
    assert read_all(tmp_path) == before


@pytest.mark.parametrize("name", ["coco", "masks"])
def test_killed_before_any_change(tmp_path, name, kill_at_each_change):
    """Old or new under the name, nothing else; and the same call ends with the same files."""
    run = write_run(tmp_path / "run", ["a.png", "b.png", "c.png"], defective=1)
    work = tmp_path / "work"
    saved = export(run, name, tmp_path / "saved" / "out")
    export(run, name, tmp_path / "new" / "out", flagged_only=True)
    old, new = read_all(tmp_path / "saved"), read_all(tmp_path / "new")

    def start():
        export(run, name, work / "out", flagged_only=True, overwrite=True)

    shutil.copytree(saved.parent, work)
    for kill in kill_at_each_change(work, start):
        killed = {k: v for k, v in read_all(work).items() if not k.startswith(".")}
        assert killed in ({}, old, new), kill
        start()
        assert read_all(work) == new, kill
        shutil.rmtree(work)
        shutil.copytree(saved.parent, work)
    assert kill > 4


def read_all(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("xml", {}, "no format 'xml': choose from csv"),
        ("csv", {"segmentation": "rle"}, "format csv has no segmentation: leave it out"),
        ("yolo", {"segmentation": "rle"}, "no segmentation 'rle': choose from polygon, box"),
        ("coco", {"images": "copy"}, "format coco has no images"),
        ("masks", {"image_prefix": "x"}, "format masks has no image-prefix"),
    ],
)
def test_options_that_a_format_does_not_have(run, tmp_path, name, options, words):
    with pytest.raises(SettingError, match=words):
        export(run, name, tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_an_image_that_is_gone(tmp_path):
    write_run(tmp_path / "run", ["gone.png", "other.png"])
    for name, images in (("yolo", "copy"), ("yolo", "link"), ("fiftyone", "copy")):
        with pytest.raises(InputError, match="the file is not where it was when it was scanned"):
            export(tmp_path / "run", name, tmp_path / "out", images=images)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    export(tmp_path / "run", "coco", tmp_path / "coco.json")  # which needs no image


def test_regions_that_another_machine_rounded_otherwise(tmp_path):
    run = write_run(tmp_path / "run", ["a.png", "b.png"], defective=1)  # boxes fit no map
    contents = Contents(run, False, lambda *_: None)
    (area,) = contents.areas(contents.items[0])
    region = area.region
    box = np.s_[region.y : region.y + region.height, region.x : region.x + region.width]
    np.testing.assert_array_equal(area.mask, regions_mask(run, "a.png")[box])
    table = (tmp_path / "run" / "regions.csv").read_text()
    (tmp_path / "run" / "regions.csv").write_text(table.replace("140,84", "0,0"))
    with pytest.raises(RunError, match=r"does not fit the maps: `patchcluster report`"):
        export(tmp_path / "run", "coco", tmp_path / "coco.json")


def test_a_region_around_a_larger_one_is_the_outer_one():
    image_map = np.zeros((20, 20), np.float32)
    image_map[1:19, 1:19] = 2
    image_map[2:18, 2:18] = 0
    image_map[4:16, 4:16] = 3  # more pixels than the ring around it
    inner, outer = find_regions(image_map, 1)
    masks = [areas.find_area(region, image_map, 1).mask for region in (outer, inner)]
    np.testing.assert_array_equal(masks[0], (image_map == 2)[1:19, 1:19])
    np.testing.assert_array_equal(masks[1], np.ones((12, 12), bool))


def test_images_at_urls(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    memory = fsspec.filesystem("memory")
    write_photos(tmp_path / "photos")
    memory.put("photos", "/bucket/photos", recursive=True)
    try:
        patchcluster.scan("memory://bucket/photos", "run", size=(64,), flag_top=2)
        folder = export("run", "yolo")
        assert picture_of(folder, "photos/sub/part5.png").is_file()
        with pytest.raises(InputError, match="lies elsewhere: add --images copy"):
            export("run", "fiftyone")
        tasks = json.loads((export("run", "labelstudio") / "tasks.json").read_text())
        assert tasks[0]["data"]["image"] == "memory:///bucket/photos/part0.png"
    finally:
        memory.rm("/bucket", recursive=True)


def test_two_exports_to_one_place(run, tmp_path):
    said = "another process writes '.*one.csv': wait for it, or choose another -o"
    with replacing(tmp_path / "one.csv", False, False) as part:
        part.touch()
        with pytest.raises(RunError, match=said):
            export(run, "csv", tmp_path / "one.csv")
    assert os.listdir(tmp_path) == ["one.csv"]


# --- the command --------------------------------------------------------------------------------


@pytest.mark.usefixtures("run")
def test_the_command_writes_every_format(tmp_path):
    for name in FORMATS:
        out = tmp_path / name
        command = ["export", "photos-run", "--format", name, "-o", str(out), "--quiet"]
        result = CliRunner().invoke(cli.app, command)
        assert (result.exit_code, result.stdout, result.stderr) == (0, f"{out}\n", "")
        assert out.exists()
        assert name in CliRunner().invoke(cli.app, ["export", "--help"]).stdout


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ([], 2, "give one of --format NAME, --flagged-to DIR"),
        (["--format", "csv", "--flagged-to", "x"], 2, "give one of"),
        (["--format", "csv", "--by", "symlink"], 2, "--by belongs to --flagged-to"),
        (["--flagged-to", "x", "--overwrite"], 2, "--overwrite belongs to --format"),
        (["--format", "xml"], 1, "patchcluster: no format 'xml'"),
        (["--flagged-to", "x", "--by", "magic"], 1, "patchcluster: no way 'magic' to take files"),
    ],
)
def test_the_command_says_what_is_wrong(options, code, words):
    result = CliRunner().invoke(cli.app, ["export", "photos-run", *options])
    assert result.exit_code == code
    assert words in " ".join(result.stderr.replace("│", " ").split())
