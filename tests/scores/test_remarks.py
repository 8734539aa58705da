"""Remarks about whole images: the limits, and a scan from end to end."""

import csv
import json
import math
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from scipy import ndimage

import patchcluster
from conftest import save_image, textured_image
from patchcluster.images.looks import measure_look
from patchcluster.pipeline.scoring import Scorer
from patchcluster.scores.remarks import Limits, find_limits, find_remarks

USUAL = [100.0, 80.0, 120.0, 4.0, 1.0, -1.0]  # width, height, light, sharp, red, blue


def remark_on(figures, others=19):
    """Remarks about an image with some of the figures changed, among others alike."""
    rows = [USUAL] * others + [figures]
    return find_remarks(rows, find_limits(rows))[-1]


@pytest.mark.parametrize(
    ("column", "value", "remark"),
    [
        (2, 103.9, "darker"),
        (2, 136.1, "brighter"),
        (3, 3.29, "blurred"),
        (4, 3.1, "other colour"),
        (5, -3.1, "other colour"),
    ],
)
def test_a_figure_beyond_the_least_distance_is_remarked_and_within_it_is_not(column, value, remark):
    changed = list(USUAL)
    changed[column] = value
    assert remark_on(changed) == (remark,)
    changed[column] = USUAL[column] + 0.9 * (value - USUAL[column])
    assert remark_on(changed) == ()


def test_size_and_aspect_are_told_apart():
    assert remark_on([200.0, 160.0, *USUAL[2:]]) == ("other size",)
    assert remark_on([80.0, 100.0, *USUAL[2:]]) == ("other aspect ratio",)
    assert remark_on([100.0, 100.0, *USUAL[2:]]) == ("other size", "other aspect ratio")


def test_the_limit_is_five_deviations_where_a_set_varies():
    # Of 1 to 101 the median is 51 and the median absolute deviation 25: 51 - 5 * 1.4826 * 25 < 0.
    light = np.arange(1.0, 102.0)
    rows = np.tile(USUAL, (101, 1))
    rows[:, 2] = 100 + light
    limits = Limits.of(rows)
    edge = 5 * 1.4826 * 25
    for off, said in [(edge - 0.1, ()), (edge + 0.1, ("brighter",))]:
        assert limits.remarks(np.array([[*USUAL[:2], 151 + off, *USUAL[3:]]])) == [said]


def test_what_more_than_a_quarter_has_is_not_odd():
    large = [200.0, 160.0, *USUAL[2:]]
    rows = [USUAL] * 15 + [large] * 5
    assert find_remarks(rows, find_limits(rows)).count(("other size",)) == 5
    rows = [USUAL] * 14 + [large] * 6
    assert set(find_remarks(rows, find_limits(rows))) == {()}


def test_fewer_than_eight_images_get_none_and_neither_do_those_without_figures():
    dark = [*USUAL[:2], 0.0, *USUAL[3:]]
    assert remark_on(dark, others=6) == ()
    assert remark_on(dark, others=7) == ("darker",)
    rows = [USUAL] * 9 + [None, dark]
    assert find_remarks(rows, find_limits(rows))[-2:] == [(), ("darker",)]


figures = st.tuples(
    *[st.integers(1, 5000)] * 2, st.floats(0, 255), st.floats(-7, 11), *[st.floats(-90, 90)] * 2
)


@given(st.lists(figures, min_size=8, max_size=40), st.randoms())
def test_the_order_of_images_does_not_matter(rows, random):
    order = list(range(len(rows)))
    random.shuffle(order)
    before = find_remarks(rows, find_limits(rows))
    after = find_remarks([rows[i] for i in order], find_limits([rows[i] for i in order]))
    assert after == [before[i] for i in order]


@given(st.lists(figures, min_size=8, max_size=40))
def test_at_most_a_quarter_has_a_remark(rows):
    found = find_remarks(rows, find_limits(rows))
    for word in {word for one in found for word in one}:
        assert sum(word in one for one in found) <= len(rows) / 4


def test_the_figures_of_an_image_are_those_of_their_formulas():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (9, 7, 3), np.uint8)
    red, green, blue = (pixels[..., c].astype(np.float64) for c in range(3))
    light = 0.299 * red + 0.587 * green + 0.114 * blue
    edges = [
        light[y - 1, x] + light[y + 1, x] + light[y, x - 1] + light[y, x + 1] - 4 * light[y, x]
        for y in range(1, 8)
        for x in range(1, 6)
    ]
    total = red.mean() + green.mean() + blue.mean() + 30
    expected = [
        light.mean(),
        math.log(np.var(edges) / (light.mean() + 10) ** 2),
        100 * (red.mean() - green.mean()) / total,
        100 * (blue.mean() - green.mean()) / total,
    ]
    np.testing.assert_allclose(measure_look(pixels), expected, atol=0.006)
    assert measure_look(pixels.astype(np.float32)) == measure_look(pixels)


def test_a_large_image_is_measured_part_by_part_with_the_same_result():
    pixels = np.random.default_rng(0).integers(0, 256, (1500, 900, 3), np.uint8)
    luminance = pixels @ np.array([0.299, 0.587, 0.114])
    edges = ndimage.laplace(luminance)[1:-1, 1:-1]
    light, sharp, *_ = measure_look(pixels)
    assert light == pytest.approx(luminance.mean(), abs=0.006)
    assert sharp == pytest.approx(math.log(edges.var() / (luminance.mean() + 10) ** 2), abs=6e-4)


def test_a_flat_image_and_one_of_a_pixel_have_figures():
    for shape in ((1, 1, 3), (5, 5, 3)):
        assert measure_look(np.full(shape, 9, np.uint8)) == [
            9,
            round(math.log(1e-3 / 19**2), 3),
            0,
            0,
        ]


WIDTH, HEIGHT = 240, 200
ODD = {
    "dark.png": "darker",
    "bright.png": "brighter",
    "soft.png": "blurred",
    "tiny.png": "blurred; other size",
    "tall.png": "other aspect ratio",
    "red.png": "other colour",
}


def draw_odd():
    """Draw an image for each thing that is remarked, by name."""
    values = textured_image(99, WIDTH, HEIGHT).astype(np.float64)
    image = Image.fromarray(values.astype(np.uint8))
    red = values * [1.2, 0.92, 0.9]

    def made(array):
        return array.clip(0, 255).round().astype(np.uint8)

    return {
        "dark.png": made(values * 0.7),
        "bright.png": made(values * 1.3),
        "soft.png": np.asarray(image.filter(ImageFilter.GaussianBlur(3))),
        "tiny.png": np.asarray(image.resize((WIDTH // 10, HEIGHT // 10))),
        "tall.png": textured_image(98, HEIGHT, WIDTH),
        "red.png": made(red),
    }


def to_cells(run):
    """The column `remarks` of scores.csv, by file name."""
    with open(run.folder / "scores.csv", newline="") as file:
        return {row["path"].rpartition("/")[2]: row["remarks"] for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("remarks")
    for i in range(24):
        save_image(root / "images" / f"usual{i}.png", textured_image(i, WIDTH, HEIGHT))
    return root


@pytest.fixture(scope="module")
def run(root):
    """A scan of 24 images alike, without those that are odd."""
    return patchcluster.scan(root / "images", root / "run", size=(128,))


@pytest.fixture(scope="module")
def odd(root):
    """A folder with an image for each thing that is remarked."""
    for name, pixels in draw_odd().items():
        save_image(root / "odd" / name, pixels)
    return root / "odd"


@pytest.fixture(scope="module")
def odd_run(root, odd):
    """A scan of the images that are alike and of those that are odd."""
    return patchcluster.scan([root / "images", odd], root / "odd-run", size=(128,))


def test_a_scan_remarks_what_is_odd_and_nothing_else(odd_run):
    cells = to_cells(odd_run)
    assert {name: said for name, said in cells.items() if said} == ODD
    by_path = dict(zip(odd_run.paths, odd_run.remarks, strict=True))
    names = {path.rpartition("/")[2]: "; ".join(one) for path, one in by_path.items()}
    assert names == cells
    for image in odd_run.images:  # luminance by Pillow's own conversion, of the whole file
        light = np.asarray(Image.open(image.path).convert("L"), np.float64).mean()
        assert image.look[0] == pytest.approx(light, abs=1.5)


def test_new_images_are_remarked_by_the_limits_of_the_set(run, odd):
    assert set(run.remarks) == {()}
    scorer = Scorer(run, device="cpu")
    for name, remarks in ODD.items():
        found = scorer.score((odd / name).read_bytes(), name)
        assert "; ".join(found.remarks) == remarks


def test_an_update_keeps_the_remarks(root, odd, tmp_path):
    folder = tmp_path / "run"
    some = [str(root / "images" / f"usual{i}.png") for i in range(20)]
    patchcluster.scan(some, folder, size=(128,))
    added = [name for name in ODD if name != "red.png"]
    patchcluster.update(folder, add=[str(odd / name) for name in added])
    updated = patchcluster.load_run(folder)
    said = {name: one for name, one in to_cells(updated).items() if one}
    assert said == {name: ODD[name] for name in added}


def test_a_run_without_figures_is_read_and_has_no_remarks(odd_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(odd_run.folder, folder)
    described = json.loads((folder / "run.json").read_text())
    for image in described["images"]:
        del image["look"]
    (folder / "run.json").write_text(json.dumps(described))
    assert set(patchcluster.load_run(folder).remarks) == {()}
