"""Files and texts that anybody may have changed: each gives a valid value, or is refused in a line.

Whatever else a parser raises is a fault, and so is a value that the rest of the program could not
use: what is read is used here, or written and read again.
"""

import copy
import csv
import io
import json
import os
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest
import torch
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from conftest import exif_of
from faults.decoding import png
from patchcluster.cli import options
from patchcluster.datasets import Truth, match_truth, read_shown
from patchcluster.errors import InputError, PatchclusterError, RunError, UnreadableImage
from patchcluster.images.decode import load_image, read_header
from patchcluster.images.masks import name_region, read_mask_file
from patchcluster.images.raster import encode
from patchcluster.images.window import choose_windows
from patchcluster.pipeline.costs import parse_bytes
from patchcluster.runs import runfolder, storage, tables
from patchcluster.runs.run import load_run
from patchcluster.scores.labels import read_labels
from patchcluster.scores.thresholds import Flagging
from patchcluster.settings import resolve
from png_files import deep_png
from synthetic import write_run

# As `main` does: what Pillow remarks of damaged files is not the user's work.
pytestmark = pytest.mark.filterwarnings("ignore:::PIL")

MOST_PIXELS = 1 << 20  # of what is worked on here
NAMES = [os.fsdecode(b"caf\xe9.png"), "a,b.png", "two\nlines.png", 'say "hi".png', "e.png"]


def fuzz(examples):
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=checks,
    )


def attempt(read, kind=PatchclusterError):
    """What reading gives; None if it is refused, which must be in one line."""
    try:
        return read()
    except kind as error:
        lines = str(error).splitlines()
    assert len(lines) == 1
    return None


@contextmanager
def changed(path, data):
    """A file with other content, for a while."""
    before = path.read_bytes()
    path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(before)


@st.composite
def spliced(draw, *files):
    """Bytes of a file that was cut, changed, or joined with those of another."""
    data = bytearray(draw(st.sampled_from(files)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["cut", "set", "insert", "drop", "join"])):
            case "cut":
                del data[at:]
            case "set" if at < len(data):
                data[at] = draw(st.integers(0, 255))
            case "insert":
                data[at:at] = draw(st.binary(max_size=12))
            case "drop":
                del data[at : at + draw(st.integers(1, 40))]
            case "join":
                other = draw(st.sampled_from(files))
                data[at:] = other[draw(st.integers(0, len(other))) :]
    return bytes(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run whose names are hard to write, with labels and skipped files."""
    folder = tmp_path_factory.mktemp("parsers") / "run"
    skipped = [runfolder.Skipped("notes.txt", "not an image")]
    labels = {NAMES[0]: "normal", NAMES[1]: "anomalous"}
    run = write_run(folder, NAMES, 3, skipped, labels, [[3, 4]])
    run.info.baseline = {"typical": 0.25, "limit": 0.5}
    run.info.windows = {"integer": [0, 4095]}
    run.info.map_rule = {"frame": 256, "native_from": None, "sigma": 4.0, "steps": "bilinear"}
    run.info.memory, run.info.seconds = {"peak": 1 << 30}, {"compare": 1.5}
    runfolder.write_info(folder, run.info, run.images, run.skipped)
    return folder


# --- run.json -------------------------------------------------------------------------------------

DEEP = {f"@{depth}": "[" * depth + "]" * depth for depth in (50, 500, 100_000)}
VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-5, 5000),
        st.sampled_from([1 << 31, 1 << 63, -(1 << 64), 10**400]),
        st.floats(),
        st.text(max_size=6),
        st.sampled_from(["\ud800", "a\udcff\nb", "running", "flagging", "fast", "padim", "max"]),
        st.sampled_from(list(DEEP)),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)


def find_places(value, at=()):
    """Keys on the way to each value within a JSON value."""
    yield at
    keys = value if isinstance(value, dict) else range(len(value) if isinstance(value, list) else 0)
    for key in keys:
        yield from find_places(value[key], (*at, key))


@st.composite
def changed_json(draw, value):
    """A JSON text with up to three values replaced, taken out, or added."""
    root = [copy.deepcopy(value)]
    for _ in range(draw(st.integers(1, 3))):
        *way, last = draw(st.sampled_from([at for at in find_places(root) if at]))
        inside = root
        for key in way:
            inside = inside[key]
        action = draw(st.sampled_from(["replace", "replace", "take out", "add"]))
        if action == "replace" or inside is root:
            inside[last] = draw(VALUES)
        elif action == "take out":
            del inside[last]
        elif isinstance(inside, dict):
            name = draw(st.sampled_from(["x", "two\nlines", "k", "path", "roi", "size"]))
            inside[name] = draw(VALUES)
        else:
            inside.append(draw(VALUES | st.just(inside[last])))
    text = json.dumps(root[0])
    for name, deep in DEEP.items():
        text = text.replace(f'"{name}"', deep)
    return text.encode()


def use(run):
    """Ask a run for all that follows from run.json and its tables."""
    assert len(run.scores) == len(run.flagged) == len(run.nearest) == len(run)
    assert np.isfinite(run.scores).all()
    assert run.flagged.dtype == bool
    assert all(isinstance(path, str) for path in run.nearest)
    assert len(run.doubtful) == len(run) - sum(path in run.info.labels for path in run.paths)
    first = run.images[0]
    if first.width * first.height <= MOST_PIXELS:
        shown = attempt(lambda: run.map(first.path))
        assert shown is None or shown.shape == (first.height, first.width)
    for image in run.images:
        attempt(lambda path=image.path: run.neighbours(path, 0, 0))
        for region in attempt(lambda path=image.path: run.regions(path)) or ():
            assert 0 <= region.x < region.x + region.width <= image.width
            assert 0 <= region.y < region.y + region.height <= image.height
            assert np.isfinite(region.peak)


def read_changed_info(folder, data):
    """Read a changed run.json; if it is valid, it is written and read again, and used."""
    with changed(folder / "run.json", data):
        found = attempt(lambda: runfolder.read_info(folder), RunError)
        if found is None:
            return
        runfolder.write_info(folder, *found)
        assert runfolder.read_info(folder) == found
        run = attempt(lambda: load_run(folder), RunError)
        if run is not None:
            use(run)


def test_a_run_that_is_whole_is_read(folder):
    info, images, skipped = runfolder.read_info(folder)
    assert [image.path for image in images] == NAMES
    assert info.labels == {NAMES[0]: "normal", NAMES[1]: "anomalous"}
    assert len(skipped) == 1
    use(load_run(folder))


def test_a_changed_run_json_is_valid_or_refused(folder):
    value = json.loads((folder / "run.json").read_bytes())

    @fuzz(400)
    @given(changed_json(value))
    def check(data):
        read_changed_info(folder, data)

    check()


def test_a_run_json_of_other_bytes_is_valid_or_refused(folder):
    whole = (folder / "run.json").read_bytes()

    @fuzz(80)
    @given(st.binary(max_size=60) | spliced(whole, b"[" * 100_000, b"\xff\xfe{}\0", b"null"))
    def check(data):
        read_changed_info(folder, data)

    check()


# --- tables ---------------------------------------------------------------------------------------

CELLS = st.one_of(
    st.sampled_from(["", "nan", "inf", "-1", "1e999", "9" * 5000, "true", "x" * 140_000, "1_0"]),
    st.text(max_size=5),
    st.integers(-300, 300).map(str),
    st.floats().map(str),
)


@st.composite
def changed_table(draw, data):
    """A CSV file with cells, rows or bytes changed."""
    text = data.decode("utf-8", "surrogateescape")
    rows = list(csv.reader(io.StringIO(text, newline="")))
    for _ in range(draw(st.integers(1, 3))):
        row = draw(st.integers(0, len(rows) - 1))
        column = draw(st.integers(0, len(rows[row])))
        match draw(st.sampled_from(["cell", "cell", "row", "copy", "more", "fewer"])):
            case "cell" if column < len(rows[row]):
                rows[row][column] = draw(CELLS)
            case "row" if len(rows) > 1:
                del rows[row]
            case "copy":
                rows.append(list(rows[row]))
            case "more":
                rows[row].insert(column, draw(CELLS))
            case "fewer":
                del rows[row][column:]
    table = tables.to_csv(rows[0], rows[1:])
    return draw(st.just(table) | spliced(table, b'"', b"\0\r"))


@pytest.mark.parametrize("name", ["scores.csv", "regions.csv"])
def test_a_changed_table_of_a_run_is_valid_or_refused(folder, name):
    @fuzz(150)
    @given(changed_table((folder / name).read_bytes()))
    def check(data):
        with changed(folder / name, data):
            run = attempt(lambda: load_run(folder), RunError)
            if run is not None:
                use(run)

    check()


def test_a_changed_list_of_labels_is_valid_or_refused(tmp_path):
    rows = [[path, label] for path in NAMES for label in ("normal", "Anomalous ", "unsure")]
    file = tmp_path / "labels.csv"

    @fuzz(200)
    @given(changed_table(tables.to_csv(["path", "label"], rows)) | st.binary(max_size=40))
    def check(data):
        file.write_bytes(data)
        labels = attempt(lambda: read_labels(file), InputError)
        if labels is not None:
            assert set(labels.values()) <= {"normal", "anomalous"}
            file.write_bytes(tables.to_csv(["path", "label"], list(labels.items())))
            assert read_labels(file) == labels

    check()


def test_a_changed_file_of_annotations_is_valid_or_refused(tmp_path):
    Image.new("RGB", (6, 4)).save(tmp_path / "a.png")
    runs, triangle = {"size": [4, 6], "counts": "41D0"}, [[1, 1.5, 3, 1, 3, 4]]
    value = {
        "images": [
            {"id": i, "file_name": name, "width": 6, "height": 4}
            for i, name in enumerate(["a.png", "images\\b.png", "/data/local-files/?d=c%20d.png"])
        ],
        "annotations": [
            {"image_id": i, "segmentation": shape}
            for i, shape in enumerate([triangle, runs, {**runs, "counts": [4, 3, 17]}])
        ],
    }
    file = tmp_path / "annotations.json"
    paths = [str(tmp_path / name) for name in ("a.png", "b.png", "c d.png")]

    @fuzz(300)
    @given(changed_json(value) | spliced(json.dumps(value).encode()))
    def check(data):
        file.write_bytes(data if isinstance(data, bytes) else data.encode("utf-8", "replace"))
        for truth in attempt(lambda: match_truth(paths, file), InputError) or []:
            if isinstance(truth, Truth):
                mask = attempt(partial(read_shown, truth, paths[0], 6, 4), InputError)
                assert mask is None or (mask.shape, mask.dtype) == ((4, 6), bool)

    check()


# --- arrays ---------------------------------------------------------------------------------------


def npy(header, data, version=1):
    """A .npy file of a header, which need not fit."""
    text = header.encode("latin-1", "replace") + b"\n"
    length = len(text).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + length + text + data


def archive():
    buffer = io.BytesIO()
    np.savez(buffer, grid=np.zeros((2, 2), np.float16))
    return buffer.getvalue()


@st.composite
def arrays(draw):
    kinds = ["<f2", ">f2", "<f4", "|O", "<U3", "|V4", "<M8[s]", "f2", "", "x", "<f999999999999"]
    sides = st.sampled_from([0, 1, 2, 3, -1, 10**6, 1 << 62, 10**30, 1.5, True, None])
    kind = draw(st.sampled_from([*map(repr, kinds), "[('a', '<f2')]", "('<f2', (2,))", "7"]))
    shape = tuple(draw(st.lists(sides, max_size=4)))
    tail = draw(st.sampled_from(["", ", 'more': 1", ")", "(((", "\t\n  x", "'" * 3, "(" * 3000]))
    order = draw(st.sampled_from(["False", "True", "0", "()"]))
    header = f"{{'descr': {kind}, 'fortran_order': {order}, 'shape': {shape}{tail}}}"
    return npy(header, draw(st.binary(max_size=40)), draw(st.sampled_from([1, 2, 3, 9])))


def test_a_changed_map_is_valid_or_refused(folder):
    file = runfolder.map_path(folder, 0)
    run = load_run(folder)

    @fuzz(300)
    @given(arrays() | spliced(file.read_bytes(), archive(), b"\x80\x04\x95"))
    def check(data):
        with changed(file, data):
            grid = attempt(lambda: run.grid(NAMES[0]), RunError)
            assert grid is None or (grid.ndim == 2 and grid.size and grid.dtype == np.float32)

    check()


KINDS = ["BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F4", "F6_E2M3", "I16", "U16", "F16"]
KINDS += ["BF16", "I32", "U32", "F32", "F64", "I64", "U64", "C64", "X"]


@st.composite
def tensor_files(draw):
    """A safetensors file whose header need not fit its data."""
    data = draw(st.binary(max_size=64))
    header = {}
    start = 0
    for name in draw(st.lists(st.sampled_from(["a", "b", "two\nlines", "\ud800"]), unique=True)):
        stop = draw(st.integers(start, len(data) + 1))
        sides = st.sampled_from([0, 1, 2, 4, stop - start, (stop - start) // 2, -1, 1 << 62])
        header[name] = {
            "dtype": draw(st.sampled_from(KINDS)),
            "shape": draw(st.lists(sides, max_size=3)),
            "data_offsets": [start, stop],
        }
        start = stop
    note = draw(st.sampled_from(["null", "[1, 2]", "{", "NaN", '"\\ud800"', "[" * 100_000, ""]))
    header["__metadata__"] = draw(st.sampled_from([{}, {"note": note}, {"note": 1}, 3]))
    text = json.dumps(header).encode()
    length = draw(st.sampled_from([len(text), len(text), len(text), len(text) + 1, 1 << 62]))
    return length.to_bytes(8, "little") + text + data


def test_a_changed_file_of_tensors_is_valid_or_refused(tmp_path):
    file, again = tmp_path / "a.safetensors", tmp_path / "again.safetensors"
    storage.write_tensors(file, {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4)}, [1, "x"])

    @fuzz(400)
    @given(tensor_files() | spliced(file.read_bytes()) | st.binary(max_size=40))
    def check(data):
        file.write_bytes(data)
        found = attempt(lambda: storage.read_tensors(file), RunError)
        note = storage.read_note(file)
        if found is None:
            return
        assert note == found[1]
        storage.write_tensors(again, *found)
        tensors, note = storage.read_tensors(again)
        assert note == found[1]
        assert {name: (t.dtype, t.shape) for name, t in tensors.items()} == {
            name: (t.dtype, t.shape) for name, t in found[0].items()
        }

    check()


@fuzz(150)
@given(st.data())
def test_changed_neighbours_are_places_of_the_run_or_refused(folder, data):
    tensors, _ = storage.read_tensors(folder / "neighbours.safetensors")
    name = data.draw(st.sampled_from(sorted(tensors)))
    tensor = tensors[name]
    match data.draw(st.sampled_from(["value", "value", "kind", "shape", "none"])):
        case "value":
            flat = tensor.flatten().clone()
            at = data.draw(st.sampled_from([0, 1, 2, 3]))
            flat[min(at, len(flat) - 1)] = data.draw(st.sampled_from([-1, 5, 999, 30_000]))
            tensors[name] = flat.view(tensor.shape)
        case "kind":
            kinds = [torch.bool, torch.uint8, torch.float64, torch.complex64, torch.bfloat16]
            tensors[name] = tensor.to(data.draw(st.sampled_from(kinds)))
        case "shape":
            shapes = [tensor[:0], tensor[:1], tensor.flatten(), tensor[None], tensor.flatten()[0]]
            tensors[name] = data.draw(st.sampled_from(shapes))
        case "none":
            del tensors[name]
    buffer = folder.parent / "changed.safetensors"
    storage.write_tensors(buffer, tensors)
    with changed(folder / "neighbours.safetensors", buffer.read_bytes()):
        run = load_run(folder)
        for near in attempt(lambda: run.neighbours(NAMES[0], 0, 0), RunError) or ():
            image = run.images[run.index(near.path)]
            assert 0 <= near.x <= image.width
            assert 0 <= near.y <= image.height


# --- images and masks -----------------------------------------------------------------------------


def make_files():
    """Small images of all formats and depths that people have, by name."""
    rng = np.random.default_rng(0)
    colour = Image.fromarray(rng.integers(0, 256, (18, 26, 3), np.uint8))
    deep = rng.integers(0, 65_536, (18, 26, 3)).astype(np.uint16)
    exif = exif_of(6)
    clear = colour.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(colour.size))
    return {
        "png": encode(colour, "PNG", exif=exif),
        "png-clear": encode(clear, "PNG"),
        "png-palette": encode(colour.quantize(16), "PNG", transparency=2),
        "png-1": encode(colour.convert("1"), "PNG"),
        "png-16": encode(Image.fromarray(deep[..., 0]), "PNG"),
        "png-rgb16": deep_png(deep),
        "jpeg": encode(colour, "JPEG", exif=exif),
        "jpeg-progressive": encode(colour, "JPEG", progressive=True),
        "jpeg-cmyk": encode(colour.convert("CMYK"), "JPEG"),
        "tiff": encode(colour, "TIFF", exif=exif),
        "tiff-lzw": encode(colour, "TIFF", compression="tiff_lzw"),
        "tiff-deflate": encode(colour, "TIFF", compression="tiff_adobe_deflate"),
        "tiff-float": encode(Image.fromarray(deep[..., 0] / np.float32(65_535)), "TIFF"),
        "webp": encode(colour, "WEBP"),
        "webp-lossless": encode(clear, "WEBP", lossless=True),
        "gif": encode(colour.quantize(16), "GIF"),
        "bmp": encode(colour, "BMP"),
    }


FILES = make_files()
WINDOWS = {"integer": [0.0, 65_535.0], "float": [0.0, 1.0]}


def load_pixels(data, windows=None):
    """An image at the size that it is shown at, as a scan loads it."""
    header = read_header(data, MOST_PIXELS)
    sizes = [(header.height, header.width)]
    loaded = load_image(data, header, sizes, windows or choose_windows([header.spread]))
    assert loaded.file_size == len(data)
    with Image.open(io.BytesIO(loaded.thumbnail)) as thumbnail:
        thumbnail.load()
    return loaded.pixels[0], header


@pytest.mark.parametrize("name", FILES)
def test_a_changed_image_is_valid_or_refused(name):
    assert load_pixels(FILES[name])[0].std() > 20

    @fuzz(60)
    @given(spliced(FILES[name], FILES[name], *FILES.values()))
    def check(data):
        found = attempt(lambda: load_pixels(data), UnreadableImage)
        if found is not None:
            pixels, header = found
            assert pixels.shape == (header.height, header.width, 3)
            assert pixels.dtype in (np.uint8, np.float32)
            assert 0 <= pixels.min() <= pixels.max() <= 255  # and so no NaN

    check()


@pytest.mark.parametrize("name", FILES)
def test_an_image_that_is_cut_short_is_refused_unless_all_its_pixels_are_there(name):
    whole, _ = load_pixels(FILES[name], WINDOWS)
    length = len(FILES[name])
    cuts = {*range(0, length, max(1, length // 60)), *range(length - 24, length)}
    for cut in sorted(cuts):
        found = attempt(lambda cut=cut: load_pixels(FILES[name][:cut], WINDOWS), UnreadableImage)
        assert found is None or np.array_equal(found[0], whole), cut


@pytest.mark.parametrize(
    ("depth", "colour", "channels"),
    [(8, 0, 1), (8, 2, 3), (8, 6, 4), (8, 4, 2), (16, 0, 1), (16, 2, 3), (16, 6, 4), (16, 4, 2)],
)
def test_a_png_whose_rows_end_early_is_refused(depth, colour, channels):
    row = b"\0" + b"\xff" * (20 * channels * depth // 8)
    assert load_pixels(png(20, 30, depth, colour, row * 30), WINDOWS)[0].min() == 255
    for rows in (0, 1, 10, 29):
        for more in (b"", row[:7]):
            data = png(20, 30, depth, colour, row * rows + more)
            assert attempt(lambda data=data: load_pixels(data, WINDOWS), UnreadableImage) is None


def test_a_changed_mask_is_valid_or_refused(tmp_path):
    grey = Image.fromarray(np.indices((9, 13)).sum(0).astype(np.uint8) // 8 * 255)
    modes = {"1": "PNG", "L": "BMP", "P": "GIF", "LA": "PNG", "I;16": "TIFF", "CMYK": "JPEG"}
    masks = [
        encode(grey.convert("RGB").convert(m) if m == "CMYK" else grey.convert(m), f)
        for m, f in modes.items()
    ]
    file, again = tmp_path / "mask", tmp_path / "again.png"
    expected = np.asarray(grey) > 0
    for mask in masks:
        file.write_bytes(mask)
        np.testing.assert_array_equal(read_mask_file(file), expected)

    @fuzz(200)
    @given(spliced(*masks, FILES["png-16"], FILES["tiff-float"]))
    def check(data):
        file.write_bytes(data)
        mask = attempt(lambda: read_mask_file(file), InputError)
        if mask is not None:
            assert (mask.ndim, mask.dtype) == (2, bool)
            again.write_bytes(encode(mask))
            assert name_region(read_mask_file(again)) == name_region(mask)

    check()


# --- texts of options -----------------------------------------------------------------------------

TEXTS = st.one_of(
    st.text(max_size=12),
    st.from_regex(r"\s?[-+]?[0-9_]{0,4}(\.[0-9]{0,3})?(e[0-9]{1,3})?\s?[a-zA-Z%]{0,3}\s?"),
    st.sampled_from(["nan", "inf", "-inf", "1e999", "9" * 5000, "\u0661\u0662h", "0.4", "1e-9GB"]),
    st.lists(st.integers(-100, 5000).map(str), max_size=3).map(",".join),
)


@fuzz(400)
@given(TEXTS)
def test_texts_of_options_are_valid_or_refused(text):
    count = attempt(lambda: parse_bytes(text))
    assert count is None or (isinstance(count, int) and count >= 1)
    sizes = attempt(lambda: options.parse_sizes(text), typer.BadParameter)
    if sizes is not None:
        found = attempt(lambda: resolve(size=sizes))
        assert found is None or (found.size == sizes and 32 <= min(sizes) <= max(sizes) <= 4096)
    share = attempt(lambda: options.parse_share(text), typer.BadParameter)
    if share is not None:
        how = attempt(lambda: Flagging(expect=share))
        assert how is None or 0 <= how.expect <= 1


@given(st.integers(1, 1 << 50))
def test_numbers_of_bytes_are_read_as_they_are(count):
    assert parse_bytes(str(count)) == parse_bytes(f"{count} b") == count
    assert parse_bytes(f"{count}KiB") == count << 10
