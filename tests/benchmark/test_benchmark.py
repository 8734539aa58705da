"""The benchmark on a small drawn data set, against the methods run by hand."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from conftest import textured_image
from patchcluster.benchmark import benchmark, predict_memory
from patchcluster.benchmark.cells import group_variants
from patchcluster.benchmark.features import ImageInfo, InputRule
from patchcluster.benchmark.report import describe_images, incomparable
from patchcluster.benchmark.tables import (
    DEFAULT_METHODS,
    PAPER_CATEGORIES,
    TABLE_NUMBERS,
    TABLES,
    Plan,
    read_published,
)
from patchcluster.datasets import SETTINGS, Split, read_dataset
from patchcluster.errors import InputError, RunError, SettingError
from patchcluster.methods import METHODS, MuSc, PaDiM, PatchCluster, PatchCoreLOF, SpadeCluster
from patchcluster.network.backbones import load_backbone, random_backbone
from patchcluster.network.patches import patch_grid
from patchcluster.scores.metrics import PixelMetrics

SIZE = 64  # of the network's input; images are 96 pixels wide
QUICK = {"size": SIZE, "tables": [2, 4], "methods": ["patchcluster", "patchcore", "padim"]}


def write_category(root, name, train=5, good=3, bad=4, first=0):
    """Textured images; the defective ones have a dark square, which is their mask."""
    rng = np.random.default_rng(first)
    for i in range(train + good + bad):
        image = textured_image(first + i)
        part, kind = ("train", "good") if i < train else ("test", "good")
        if i >= train + good:
            kind = "blot"
            y, x = rng.integers(20, 60, 2)
            image[y : y + 16, x : x + 16] = 20
            mask = np.zeros((96, 96), np.uint8)
            mask[y : y + 16, x : x + 16] = 255
            path = root / name / "ground_truth" / kind / f"{i:03d}_mask.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(path)
        path = root / name / part / kind / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)


@pytest.fixture(scope="module", autouse=True)
def coarse_histograms():
    """Bins of pixel metrics for images of 64 pixels: a million would cost more than the methods."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PixelMetrics.__init__, "__defaults__", (1 << 14,))
        yield


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_category(root, "nut")
    write_category(root, "tile", first=100)
    write_category(root, "untrained", train=0, first=200)
    return root


@pytest.fixture(scope="module")
def whole(dataset, tmp_path_factory):
    """Everything there is, with figures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("patchcluster.methods.reverse_distillation._STEPS", 1)  # for speed
        steps, lines = [], []
        result = benchmark(
            dataset,
            tmp_path_factory.mktemp("bench") / "out",
            size=SIZE,
            figures=True,
            progress=lambda *step: steps.append(step),
            tell=lines.append,
        )
    return result, steps, lines


def plan(methods=DEFAULT_METHODS, tables=TABLE_NUMBERS, size=SIZE, categories=()):
    settings, rule = list(SETTINGS), InputRule(size, True)
    return Plan("", list(categories), settings, list(tables), list(methods), False, rule, 0)


def find(cells, setting, category, variant):
    (cell,) = [
        c for c in cells if (c.setting, c.category, c.variant) == (setting, category, variant)
    ]
    return cell


# --- cells against the methods run by hand ------------------------------------------------------


def load(dataset, part, strides):
    """Images as the paper's rule brings them in, and what the network gives: done by hand."""
    paths = sorted((dataset / "nut" / part).rglob("*.png"))
    side = round(SIZE * 256 / 224)
    margin = (side - SIZE) // 2
    inputs, masks = [], []
    for path in paths:
        kind = path.parent.name
        mask = dataset / "nut" / "ground_truth" / kind / f"{path.stem}_mask.png"
        image = Image.open(path).resize((side, side), Image.Resampling.BILINEAR)
        shown = Image.open(mask) if mask.exists() else Image.new("L", (96, 96))
        flat = shown.resize((side, side), Image.Resampling.NEAREST)
        cut = slice(margin, margin + SIZE)
        inputs.append(np.asarray(image)[cut, cut])
        masks.append(np.asarray(flat)[cut, cut] > 127)
    return load_backbone(strides=strides).features(inputs), np.stack(masks)


def pixel_auroc(scores, masks):
    """Bilinear to the input's size, Gaussian of sigma 4, AUROC over all pixels."""
    wide = torch.nn.functional.interpolate(
        torch.as_tensor(scores, dtype=torch.float32)[:, None], (SIZE, SIZE), mode="bilinear"
    )[:, 0].numpy()
    smooth = np.stack([ndimage.gaussian_filter(m, 4, mode="nearest") for m in wide])
    return roc_auc_score(masks.ravel(), smooth.ravel()), smooth.reshape(len(smooth), -1).max(1)


@pytest.mark.parametrize(
    ("variant", "method", "strides"),
    [
        ("patchcluster-100% k=50", PatchCluster(k=50, ratio=1.0), (8, 16)),
        ("patchcluster-25%", PatchCluster(k=25, ratio=0.25), (8, 16)),
        ("patchcore-100%", PatchCluster(k=1, ratio=1.0), (8, 16)),
        ("patchcore-lof", PatchCoreLOF(k=100), (8, 16)),
        ("spade-cluster k=20", SpadeCluster(k=20), (8, 16)),
        ("padim", PaDiM(), (4, 8, 16)),
    ],
)
def test_blind_cells_are_the_methods_run_by_hand(dataset, whole, variant, method, strides):
    stages, masks = load(dataset, "test", strides)
    if variant == "patchcluster-25%":  # a greedy coreset starts at the first image of the set
        images = json.loads((whole[0].folder / "cells" / "nut" / "images.json").read_text())
        paths = [image["path"] for image in images["images"]]
        names = [path.split("/")[-1] for path in paths if "/test/" in path]
        files = [p.name for p in sorted((dataset / "nut" / "test").rglob("*.png"))]
        order = [files.index(name) for name in names]
        stages, masks = [stage[order] for stage in stages], masks[order]
    scores = method.fit_score(patch_grid(stages, "fine"))
    expected, highest = pixel_auroc(scores, masks)
    cell = find(whole[0].cells, "test", "nut", variant)
    assert cell.figures.pixel_auroc == pytest.approx(expected, abs=2e-3)
    if variant in ("padim", "patchcore-lof"):
        labels = masks.reshape(len(masks), -1).any(1)
        assert cell.figures.image_auroc == pytest.approx(roc_auc_score(labels, highest), abs=1e-9)


@pytest.mark.parametrize(
    ("variant", "method"),
    [("patchcluster-100%", PatchCluster(k=100, ratio=1.0)), ("padim", PaDiM())],
)
def test_one_class_cells_compare_with_the_training_images(dataset, whole, variant, method):
    strides = (4, 8, 16) if variant == "padim" else (8, 16)
    train, _ = load(dataset, "train", strides)
    test, masks = load(dataset, "test", strides)
    scores = method.fit(patch_grid(train, "fine")).score(patch_grid(test, "fine"))
    cell = find(whole[0].cells, "one-class", "nut", variant)
    assert cell.figures.pixel_auroc == pytest.approx(pixel_auroc(scores, masks)[0], abs=2e-3)


def test_a_method_that_is_not_the_papers_runs_if_it_is_asked_for(dataset, whole, tmp_path):
    assert "musc" not in whole[0].report.read_text()
    asked = {"methods": ["musc"], "settings": ["test"], "categories": ["nut"]}
    result = benchmark(dataset, tmp_path / "out", size=SIZE, **asked)
    assert "musc (not in the paper)" in result.report.read_text()
    stages, masks = load(dataset, "test", (8, 16))
    method = MuSc(stages=[len(stage[0]) for stage in stages], strides=(8, 16))
    scores = method.fit_score(patch_grid(stages, "stages"))
    (cell,) = result.cells
    assert cell.figures.pixel_auroc == pytest.approx(pixel_auroc(scores, masks)[0], abs=2e-3)


def test_k_1_is_patchcore_with_the_whole_bank(whole):
    for setting in ("mix", "test", "ano"):
        mine, theirs = (
            find(whole[0].cells, setting, "nut", variant).figures
            for variant in ("patchcluster-100% k=1", "patchcore-100%")
        )
        assert mine == theirs


def test_every_cell_that_the_tables_need_is_there(whole):
    cells = whole[0].cells
    for setting in SETTINGS:
        names = {v.name for v in plan().variants(setting)}
        categories = ["nut", "tile"] if setting in ("mix", "one-class") else None
        for category in categories or ["nut", "tile", "untrained"]:
            assert {
                c.variant for c in cells if (c.setting, c.category) == (setting, category)
            } == names


def test_what_cannot_be_run_says_why(whole):
    cells, left_out = whole[0].cells, whole[0].left_out
    assert "mix: untrained has no training images" in left_out
    assert "one-class: untrained has no training images" in left_out
    cell = find(cells, "ano", "nut", "patchcluster-100% k=200")
    assert cell.figures is not None  # 4 images of 64 patches
    small = find(cells, "ano", "nut", "patchcluster-1%")
    assert small.figures is None
    assert "k=5 neighbours, but the bank offers" in small.error
    report = whole[0].report.read_text()
    assert "mix: untrained has no training images" in report
    assert "ano: nut patchcluster-1%: k=5 neighbours" in report


def test_image_figures_are_left_out_where_all_images_are_anomalous(whole):
    cell = find(whole[0].cells, "ano", "tile", "padim")
    assert cell.figures.image_auroc is None
    assert cell.figures.pixel_auroc > 0.5


def test_progress_reaches_its_end_and_every_cell_is_told(whole):
    result, steps, lines = whole
    cells = [(done, total) for name, done, total in steps if name == "cells"]
    assert cells[-1][0] == cells[-1][1]
    assert [done for done, _ in cells] == sorted(done for done, _ in cells)
    assert ("features", 12, 12) in steps
    assert len(lines) == len(result.cells)


# --- what is written ----------------------------------------------------------------------------


def test_results_csv_has_a_row_a_cell(whole):
    with open(whole[0].folder / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(whole[0].cells)
    row = next(r for r in rows if (r["setting"], r["category"]) == ("test", "tile"))
    cell = find(whole[0].cells, "test", "tile", row["variant"])
    assert float(row["pro"]) == pytest.approx(cell.figures.pro, abs=1e-6)


def test_the_report_has_the_means_beside_the_papers_figures(whole):
    report = whole[0].report.read_text()
    lines = report.splitlines()
    table = lines[lines.index("## Table 2. Methods in the blind settings") :]
    header = next(line for line in table if line.startswith("|  |  | padim")).split(" | ")
    column = header.index("patchcluster-25%")
    row = next(line for line in table if line.startswith("| Test | Pixel")).split(" | ")
    found = [find(whole[0].cells, "test", c, "patchcluster-25%") for c in ("nut", "tile")]
    found.append(find(whole[0].cells, "test", "untrained", "patchcluster-25%"))
    mean = 100 * np.mean([cell.figures.pixel_auroc for cell in found])
    assert row[column].strip("*") == f"{mean:.1f}"
    published = table[table.index(" | ".join(row)) + 1].split(" | ")
    assert published[column] == "95.9"
    assert "not comparable" in "".join(table[:4])
    for number in TABLE_NUMBERS:
        assert f"## Table {number}. " in report
    assert "| Mix (2 of 3 categories) | measured | 8 | 4 | 67% |" in report
    assert "| Test | measured | 3 | 4 | 43% |" in report


def test_figures_of_other_settings_are_compared_only_with_the_papers_own():
    paper = {"backbone": "wide_resnet50_2.tv_in1k", "size": 224, "crop": True}
    assert incomparable(paper, PAPER_CATEGORIES) == []
    assert "backbone" in incomparable({**paper, "backbone": "resnet18"}, PAPER_CATEGORIES)[0]
    assert "resized to 224" in incomparable({**paper, "crop": False}, PAPER_CATEGORIES)[0]
    assert "the mean is over bottle" in incomparable(paper, ["bottle"])[0]


def test_table_1_counts_images_and_pixels():
    infos = [
        ImageInfo("a.png", "", False, False, 100, 0.0),
        ImageInfo("b.png", "", True, True, 300, 0.5),  # by a mask of any size
        ImageInfo("c.png", "", False, False, 100, 0.0),
        ImageInfo("d.png", "", True, True, 100, 0.1),
    ]
    assert describe_images(infos) == pytest.approx([2, 2, 50, 100 * 160 / 600])


@pytest.mark.parametrize("number", TABLES)
def test_every_column_has_a_published_one(number):
    table, published = TABLES[number], read_published(number)
    expected = {(s, m) for s in table.settings for m in table.metrics_in(s)}
    assert set(published) == expected
    headings = set(next(iter(published.values())))
    columns = {*PAPER_CATEGORIES, "average"} if table.by_category else set(table.columns)
    assert headings == columns


def test_published_tables_agree_with_each_other():
    """PatchCluster-25% stands in tables 2, 3 and 7; K = 1 of Table 5 is PatchCore-100%."""
    for setting in ("mix", "test", "ano"):
        for metric in ("pixel_auroc", "pro"):
            of = {n: read_published(n)[setting, metric] for n in (2, 3, 5, 7)}
            assert of[2]["patchcluster_25"] == pytest.approx(of[7]["25"], abs=0.21)
            assert of[3]["average"] == of[7]["25"]
            assert of[5]["1"] == of[2]["patchcore_100"]


def test_figures_are_drawn(whole):
    folder = whole[0].folder / "figures"
    names = {path.name for path in folder.glob("*.png")}
    assert names == {
        "figure1.png",
        "figure3.png",
        "figure4.png",
        "figure5-nut.png",
        "figure5-tile.png",
        "figure5-untrained.png",
    }
    # Side by side: image, mask and a map for each default method of Table 2; tile is a texture.
    columns = [v for v in TABLES[2].variants if v.method in DEFAULT_METHODS]
    detected, side_by_side = (
        np.asarray(Image.open(folder / f"{name}.png")) for name in ("figure1", "figure4")
    )
    assert side_by_side.shape[1] == (2 + len(columns)) * (SIZE + 6)
    assert detected.shape[1] == 3 * (SIZE + 6)
    shown = side_by_side[36 : 36 + SIZE]
    image, mask = shown[:, :SIZE], shown[:, SIZE + 6 : 2 * SIZE + 6]
    inside = (image < 40).all(-1)  # the dark square, which the mask leaves as it is
    assert inside.sum() > 60
    kept = ndimage.binary_erosion(inside, iterations=3)
    np.testing.assert_array_equal(mask[kept], image[kept])
    assert (mask == (0, 220, 120)).all(-1).sum() > 20  # its edge


# --- a start after a kill, and other starts -----------------------------------------------------


def test_a_finished_benchmark_can_be_extended_and_costs_nothing_again(dataset, tmp_path):
    out, options = tmp_path / "out", {"size": SIZE, "categories": ["nut"], "tables": [2]}
    benchmark(dataset, out, methods=["padim"], settings=["test"], **options)
    told = []
    more = benchmark(
        dataset, out, methods=["padim", "patchcore"], settings=["test"], tell=told.append, **options
    )
    assert len(more.cells) == 4
    assert len(told) == 3
    told.clear()
    same = benchmark(
        dataset, out, methods=["padim"], settings=["test"], tell=told.append, **options
    )
    assert len(same.cells) == 1
    assert not told


def test_table_1_needs_no_method(dataset, tmp_path):
    result = benchmark(dataset, tmp_path / "out", size=SIZE, tables=[1], categories=["untrained"])
    assert result.cells == []
    assert "| Test | measured | 3 | 4 | 43% |" in result.report.read_text()


def test_another_benchmark_in_the_same_folder_is_refused(dataset, tmp_path):
    out = tmp_path / "out"
    options = {"methods": ["padim"], "settings": ["ano"], "tables": [2], "categories": ["nut"]}
    benchmark(dataset, out, size=SIZE, **options)
    with pytest.raises(RunError, match="another size"):
        benchmark(dataset, out, size=96, **options)
    with pytest.raises(RunError, match="another seed"):
        benchmark(dataset, out, size=SIZE, seed=1, **options)
    known = json.loads((out / "benchmark.json").read_text())
    del known["format"]  # as before its files became what they are
    (out / "benchmark.json").write_text(json.dumps(known))
    with pytest.raises(RunError, match="another format"):
        benchmark(dataset, out, size=SIZE, **options)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(RunError, match=r"notes\.txt"):
        benchmark(dataset, tmp_path / "mine", size=SIZE, **options)


def test_changed_images_are_noticed(tmp_path):
    write_category(tmp_path / "data", "nut", 2, 2, 2)
    options = {"size": SIZE, "methods": ["padim"], "settings": ["test"], "tables": [2]}
    benchmark(tmp_path / "data", tmp_path / "out", **options)
    image = next((tmp_path / "data" / "nut" / "test" / "good").iterdir())
    Image.fromarray(textured_image(9)).save(image)
    with pytest.raises(RunError, match="images of nut have changed"):
        benchmark(tmp_path / "data", tmp_path / "out", **options)


def test_too_little_memory_is_refused_before_the_work(dataset, tmp_path):
    with pytest.raises(SettingError, match=r"over --max-memory 10 MB: choose fewer"):
        benchmark(dataset, tmp_path / "out", max_memory="10MB", **QUICK)
    assert not (tmp_path / "out").exists()


def test_predicted_memory_grows_with_the_bank_and_the_method(dataset):
    backbone = load_backbone(strides=(4, 8, 16))

    nut = [category for category in read_dataset(dataset) if category.name == "nut"]

    def predict(methods, size):
        return predict_memory(plan(methods, [2], size, nut), backbone)

    assert predict(["patchcore"], 448) > predict(["patchcore"], 224)
    assert predict(["padim"], 224) > predict(["patchcore"], 224)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"settings": ["blind"]}, "no setting 'blind': choose from mix, test"),
        ({"methods": ["nope"]}, "no method 'nope': choose from patchcluster-plus"),
        ({"tables": [8]}, "no table 8: choose from 1, 2"),
        ({"categories": ["nope"]}, "no category 'nope': choose from nut, tile"),
        ({"size": 100}, "multiple of 32"),
        ({"seed": -1}, "seed"),
        ({"tables": [4], "settings": ["mix"]}, "tables 4 show nothing.* in the settings mix"),
        ({"tables": [6], "methods": ["padim"]}, "nothing of the methods padim"),
    ],
)
def test_what_is_not_there_is_an_error_that_names_the_choice(dataset, tmp_path, given, words):
    with pytest.raises(SettingError, match=words):
        benchmark(dataset, tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_an_unreadable_image_is_an_error_that_names_it(tmp_path):
    write_category(tmp_path / "data", "nut", 0, 1, 2)
    (tmp_path / "data" / "nut" / "test" / "good" / "x.png").write_text("no image")
    with pytest.raises(InputError, match=r"good/x\.png.*not an image"):
        benchmark(tmp_path / "data", tmp_path / "out", size=SIZE, settings=["test"])


# --- sharing ------------------------------------------------------------------------------------


def test_variants_of_one_bank_are_one_group():
    asked = plan(METHODS)
    variants = asked.variants("test")
    network = random_backbone("tf_efficientnet_lite0", strides=(4, 8, 16, 32))
    groups = group_variants(variants, asked, network, Split([0, 1], [0, 1], blind=True))
    together = [{v.name for v in group.methods} for group in groups]
    full = next(names for names in together if "patchcore-100%" in names)
    assert {"patchcore-lof", "patchcluster-100%", "patchcluster-100% k=200"} <= full
    spade = next(names for names in together if "spade" in names)
    assert {"spade-cluster k=1", "spade-cluster k=150"} <= spade
    assert {"padim"} in together
    assert sum(map(len, together)) == len(variants)
    ratios = [next(iter(group.methods.values())).ratio for group in groups]
    assert ratios[-3:] == [0.25, 0.1, 0.01]  # so that the smaller are cut from the largest
    assert set(ratios[:-3]) == {1.0}
    assert all(group.cost > 0 for group in groups)
