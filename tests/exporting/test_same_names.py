"""Images of one base name in several folders, through every export and back."""

import csv
import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import tifffile

import patchcluster
from conftest import save_image, textured_image
from patchcluster.datasets import match_truth, read_truth
from patchcluster.exporting import FORMATS, export
from patchcluster.exporting.flagged import take_flagged
from patchcluster.exporting.names import mirror
from patchcluster.images.inputs import hash_file
from patchcluster.images.matching import match_names
from patchcluster.scores.labels import match_labels, read_labels
from synthetic import SIDE, write_run

FILES = [  # the first 3 are defective
    "photos/a.png", "photos/x/a.png", "photos/y/a.jpg",
    "photos/y/a.png", "photos/x/a.jpg", "photos/x/deep/a.png",
]  # fmt: skip
NAMES = [path.removeprefix("photos/") for path in FILES]


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(FILES):
        save_image(Path(name), textured_image(i, SIDE, SIDE))
    write_run(tmp_path / "run", FILES, defective=3, hashed=True)
    return patchcluster.load_run("run")


def expected_masks(run):
    return [run.map(path) > run.map_threshold(path) for path in run.paths]


def check_truth(run, root):
    for truth, mask in zip(match_truth(run.paths, root), expected_masks(run), strict=True):
        assert truth.anomalous == mask.any()
        if mask.any():
            np.testing.assert_array_equal(read_truth(truth), mask)
    found = patchcluster.evaluate(run, root)
    assert (found.image_auroc, found.left_out) == (1, {})


def check_rows(run, rows):
    """rows: path, score and hash of each image."""
    assert {path: (score, sha256) for path, score, sha256 in rows} == {
        image.path: (pytest.approx(score), image.sha256)
        for image, score in zip(run.images, run.scores, strict=True)
    }


def check_csv(run, file):
    with open(file, newline="") as opened:
        rows = [(r["path"], float(r["score"]), r["sha256"]) for r in csv.DictReader(opened)]
    check_rows(run, rows)
    labels = "\n".join(
        f"{path},{'anomalous' if i < 3 else 'normal'}" for i, path in enumerate(NAMES)
    )
    Path("labels.csv").write_text(f"path,label\n{labels}\n")
    found = match_labels(read_labels("labels.csv"), run.paths)
    assert found == {i: "anomalous" if i < 3 else "normal" for i in range(len(FILES))}


def check_json(run, file):
    images = json.loads(file.read_text())["images"]
    check_rows(run, [(image["path"], image["score"], image["sha256"]) for image in images])


def check_parquet(run, file):
    rows = pytest.importorskip("pyarrow.parquet").read_table(file).to_pylist()
    check_rows(run, [(row["path"], row["score"], row["sha256"]) for row in rows])


def check_masks(run, folder):
    Path("data").mkdir()
    folder.rename("data/masks")
    Path("photos").rename("data/images")
    Path("photos").symlink_to("data/images")
    check_truth(run, "data")


def check_heatmaps(run, folder):
    files = list(folder.rglob("*.tiff"))
    assert len(files) == len(FILES)
    maps = {run.map(path).tobytes() for path in FILES}
    assert {tifffile.imread(file).tobytes() for file in files} == maps


def check_coco(run, file):
    check_truth(run, file)
    Path("photos").rename("moved")  # names are of images wherever they lie
    check_truth(patchcluster.load_run(run.folder), file)


def check_cvat(run, file):
    images = ElementTree.parse(file).getroot().findall("image")
    assert [image.get("name") for image in images] == mirror(run.paths) == NAMES
    assert [len(image.findall("polygon")) for image in images] == [1, 1, 1, 0, 0, 0]


def check_labelstudio(run, folder):
    tasks = json.loads((folder / "tasks.json").read_text())
    names = [task["data"]["image"] for task in tasks]
    assert match_names(names, run.paths).found == {i: i for i in range(len(FILES))}
    assert [task["data"]["path"] for task in tasks] == FILES


def check_yolo(run, folder):
    lines = {}
    for file in (folder / "images").rglob("*.*"):
        labels = folder / "labels" / file.relative_to(folder / "images").with_suffix(".txt")
        lines[hash_file(str(file))] = len(labels.read_text().splitlines())
    assert lines == {image.sha256: int(i < 3) for i, image in enumerate(run.images)}


def check_fiftyone(run, folder):
    samples = json.loads((folder / "samples.json").read_text())["samples"]
    found = {sample["path"]: hash_file(str(folder / sample["filepath"])) for sample in samples}
    assert found == {image.path: image.sha256 for image in run.images}
    assert len({sample["heatmap"]["map_path"] for sample in samples}) == len(FILES)


CHECKS = {
    "csv": check_csv, "json": check_json, "parquet": check_parquet, "masks": check_masks,
    "heatmaps": check_heatmaps, "coco": check_coco, "cvat": check_cvat,
    "labelstudio": check_labelstudio, "yolo": check_yolo, "fiftyone": check_fiftyone,
}  # fmt: skip


@pytest.mark.parametrize("name", CHECKS)
def test_nothing_is_overwritten_nor_mixed_up(run, tmp_path, name):
    assert {*CHECKS, "onnx"} == set(FORMATS)
    options = {"coco": {"segmentation": "rle"}, "fiftyone": {"images": "copy"}}.get(name, {})
    output = tmp_path / "out" / f"{name}{FORMATS[name].ending}"
    CHECKS[name](run, export(run, name, output, **options))


@pytest.mark.parametrize("prefix", [None, "https://host/photos/"])
@pytest.mark.parametrize("other", ["../other", "/other", "photos/../more"])
def test_folders_given_in_different_ways(tmp_path, monkeypatch, other, prefix):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    folder = str(tmp_path / "other") if other == "/other" else other
    files = [f"{place}/{i}.png" for place in ("photos", folder) for i in range(3)]
    run = write_run(tmp_path / "run", files)
    check_truth(run, export(run, "coco", tmp_path / "out.json", segmentation="rle"))
    tasks = export(run, "labelstudio", tmp_path / "tasks", image_prefix=prefix) / "tasks.json"
    names = [task["data"]["image"] for task in json.loads(tasks.read_text())]
    assert match_names(names, run.paths).found == {i: i for i in range(len(files))}


@pytest.mark.parametrize("by", ["copy", "hardlink", "symlink"])
def test_flagged_files_of_one_name(run, by):
    assert take_flagged(run, Path("pulled"), by).left == {}
    files = [path for path in Path("pulled").iterdir() if path.name != ".lock"]
    assert sorted(hash_file(str(file)) for file in files) == sorted(
        image.sha256 for image in run.images[:3]
    )
