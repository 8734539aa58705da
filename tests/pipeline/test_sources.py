import io
import itertools
from collections import namedtuple

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from conftest import exif_of
from patchcluster.datasets import Category, Sample, Truth
from patchcluster.errors import InputError
from patchcluster.images.inputs import natural_key
from patchcluster.pipeline.sources import Source, open_inputs

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (9, 7), np.uint8)
COLOUR = RNG.integers(0, 256, (9, 7, 3), np.uint8)
DEEP = RNG.integers(0, 65536, (9, 7, 3), np.uint16)


def files(inputs):
    source = open_inputs(inputs)
    assert isinstance(source, Source)
    return list(source.files())


def decode(file):
    """Read pixels without the package: 16-bit colour with OpenCV, all else with Pillow."""
    _, data = file
    if data[24:26] == b"\x10\x02":  # a PNG of 16-bit colour
        return cv2.imdecode(np.frombuffer(data, np.uint8), -1)[..., ::-1]
    return np.array(Image.open(io.BytesIO(data)))


# --- pixels -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (GREY, GREY),
        (GREY[..., None], GREY),
        (COLOUR, COLOUR),
        (np.dstack([COLOUR, GREY]), np.dstack([COLOUR, GREY])),
        (COLOUR.transpose(2, 0, 1), COLOUR),
        (torch.from_numpy(COLOUR).permute(2, 0, 1), COLOUR),
        (torch.from_numpy(COLOUR), COLOUR),
        (torch.from_numpy(GREY), GREY),
        (torch.from_numpy(GREY)[None], GREY),
        (DEEP, DEEP),
        (DEEP[..., 0], DEEP[..., 0]),
        (torch.from_numpy(DEEP), DEEP),
        (COLOUR / 255, COLOUR),
        ((COLOUR / 255).astype(np.float16), COLOUR),
        (torch.from_numpy(COLOUR).permute(2, 0, 1) / 255, COLOUR),  # what ToTensor gives
        (np.array([[0.5, 1.00005], [-0.00005, 0.001]]), np.array([[128, 255], [0, 0]], np.uint8)),
    ],
)
def test_arrays_and_tensors_keep_their_values(given, expected):
    found = decode(files([given])[0])
    assert found.dtype == expected.dtype
    assert np.array_equal(found, expected)


def test_where_both_sides_could_be_channels_the_type_decides():
    both = RNG.integers(0, 256, (3, 5, 4), np.uint8)
    assert decode(files([both])[0]).shape == (3, 5, 4)  # an array: channels last
    assert np.array_equal(decode(files([torch.from_numpy(both)])[0]), both.transpose(1, 2, 0))


def draw(mode):
    if mode in ("I", "I;16"):
        return Image.fromarray(DEEP[..., 0].astype(np.int32 if mode == "I" else np.uint16))
    if mode == "F":
        return Image.fromarray(RNG.normal(size=(9, 7)).astype(np.float32))
    return Image.fromarray(COLOUR).convert(mode)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I", "F", "CMYK"])
def test_images_of_pillow_keep_their_pixels(mode):
    image = draw(mode)
    found = Image.open(io.BytesIO(files([image])[0][1]))
    assert found.mode == mode
    assert found.getpalette() == image.getpalette()
    assert np.array_equal(np.array(found), np.array(image))


def test_a_mode_that_no_file_has_becomes_rgb():
    image = Image.fromarray(COLOUR).convert("YCbCr")
    assert np.array_equal(decode(files([image])[0]), np.array(image.convert("RGB")))


def test_transparency_of_a_palette_is_kept():
    image = Image.fromarray(COLOUR).convert("P")
    image.info["transparency"] = 3
    found = Image.open(io.BytesIO(files([image])[0][1]))
    assert np.array_equal(np.array(found.convert("RGBA")), np.array(image.convert("RGBA")))


def test_the_orientation_of_a_photograph_is_applied(tmp_path):
    exif = exif_of(6)  # to be turned clockwise
    Image.fromarray(COLOUR).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as image:
        found = Image.open(io.BytesIO(files([image])[0][1]))
    assert np.array_equal(np.array(found), np.rot90(COLOUR, -1))
    assert 0x0112 not in found.getexif()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (COLOUR / 127.5 - 1, r"image 1 of the data set has values from -1 to 1.*drop Normalize"),
        (COLOUR.astype(float), "has floats up to 25[0-9].*divide them, or give uint8"),
        (np.full((4, 4), np.nan), "NaN or infinite values"),
        (COLOUR.astype(np.int64), "values of type int64: give uint8"),
        (np.zeros((2, 5, 5), np.uint8), r"has the shape \[2, 5, 5\]: give one image, .* 1, 3 or 4"),
        (np.zeros((0, 5, 3), np.uint8), "no pixels"),
        (torch.zeros(5), r"has the shape \[5\]: give one image"),
        (torch.zeros(2, 3, 4, 5), r"has the shape \[2, 3, 4, 5\]: give one image"),
        ({"image": torch.zeros(2, 3, 4, 5)}, r"has the shape \[2, 3, 4, 5\]: give one image"),
        ([GREY, GREY], r"has no image in it \(a list of ndarray, ndarray\)"),
        ((3, "label"), r"has no image in it \(a tuple of int, str\)"),
        ((), r"has no image in it \(a tuple of \)"),
        ({"a": GREY, "b": GREY}, r"has no image in it \(a dict of a, b\): .* in a dict as 'image'"),
        ("a.png", r"has no image in it \(str\)"),
    ],
)
def test_what_is_no_image_is_one_line(bad, message):
    with pytest.raises(InputError, match=message) as caught:
        files([GREY, bad])
    assert "\n" not in str(caught.value)


def test_an_error_of_the_data_set_names_the_image():
    def images():
        yield GREY
        raise OSError("disk on fire")

    with pytest.raises(InputError, match="image 1 of the data set cannot be read: disk on fire"):
        files(images())


# --- items --------------------------------------------------------------------------------------

Pair = namedtuple("Pair", ["picture", "label"])


@pytest.mark.parametrize(
    "item",
    [COLOUR, (COLOUR, 1), (COLOUR, GREY), Pair(COLOUR, 0), {"mask": GREY, "image": COLOUR}],
)
def test_the_image_of_an_item_is_found(item):
    assert np.array_equal(decode(files([item])[0]), COLOUR)


def test_bytes_are_taken_as_they_are():
    buffer = io.BytesIO()
    Image.fromarray(COLOUR).save(buffer, "JPEG")
    assert files([buffer.getvalue()]) == [("000000.jpeg", buffer.getvalue())]
    assert files([b"no image"]) == [("000000.img", b"no image")]  # the scan lists it as unreadable


def test_nothing_is_an_empty_file():
    expected = [("000000.png", b""), ("000001.png", b""), ("000002.png", b"")]
    assert files([None, (None, 1), {"image": None}]) == expected


def test_one_image_at_a_time_is_asked_for():
    asked = []
    images = (asked.append(i) or GREY for i in itertools.count())
    converted = open_inputs(images).files()
    for i in range(5):
        next(converted)
        assert asked == list(range(i + 1))


# --- torch --------------------------------------------------------------------------------------


class Rows(Dataset):
    """A map-style data set; iterating it by index alone would not end."""

    def __len__(self):
        return 7

    def __getitem__(self, i):
        return torch.full((3, 4, 5), i, dtype=torch.uint8), i


class Stream(IterableDataset):
    def __iter__(self):
        return iter({"image": image, "label": i} for image, i in (Rows()[i] for i in range(7)))


@pytest.mark.parametrize(
    ("inputs", "total"),
    [
        (lambda: Rows(), 7),
        (lambda: Stream(), 0),
        (lambda: Subset(Rows(), range(7)), 7),
        (lambda: TensorDataset(torch.stack([Rows()[i][0] for i in range(7)])), 7),
        (lambda: torch.stack([Rows()[i][0] for i in range(7)]), 7),
        (lambda: np.stack([Rows()[i][0].permute(1, 2, 0).numpy() for i in range(7)]), 7),
    ],
)
def test_data_sets_of_torch(inputs, total):
    assert open_inputs(inputs()).total == total
    assert [int(decode(file)[0, 0, 0]) for file in files(inputs())] == list(range(7))


def test_a_data_loader_is_refused():
    for loader in (DataLoader(Rows(), 2), DataLoader(Stream(), 2), DataLoader(Rows(), None)):
        with pytest.raises(InputError, match=r"DataLoader gives batches.*: give .*loader\.dataset"):
            open_inputs(loader)
    with pytest.raises(InputError, match=r"image 0 .* has the shape \[2, 3, 4, 5\]"):
        files(batch[0] for batch in DataLoader(Rows(), 2))


# --- Hugging Face -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def huggingface(tmp_path_factory):
    """`datasets`, a folder of 3 JPEGs, and a data set of them by their paths, with masks."""
    datasets = pytest.importorskip("datasets", reason="Hugging Face's datasets is not installed")
    datasets.disable_progress_bars()
    root = tmp_path_factory.mktemp("photos")
    paths = [root / f"part {i}.jpg" for i in (10, 9, 8)]
    for i, path in enumerate(paths):
        Image.fromarray(np.roll(COLOUR, i, axis=0)).save(path, quality=70)
    rows = {"photo": list(map(str, paths)), "label": [0, 1, 0]}
    return datasets, paths, datasets.Dataset.from_dict(rows).cast_column("photo", datasets.Image())


@pytest.mark.parametrize("form", ["plain", "undecoded", "torch", "numpy", "streamed"])
def test_files_of_hugging_face_are_not_decoded(huggingface, form):
    datasets, paths, dataset = huggingface
    if form == "streamed":
        dataset = dataset.to_iterable_dataset()
    elif form == "undecoded":
        dataset = dataset.cast_column("photo", datasets.Image(decode=False))
    elif form != "plain":
        dataset = dataset.with_format(form)
    found = files(dataset)
    names = ["000000-part_10.jpg", "000001-part_9.jpg", "000002-part_8.jpg"]
    assert found == list(zip(names, [path.read_bytes() for path in paths], strict=True))
    assert sorted(names, key=natural_key) == names


def test_bytes_of_hugging_face_are_taken_as_they_are(huggingface):
    datasets, paths, _ = huggingface
    rows = [{"bytes": paths[0].read_bytes(), "path": None}, None]
    features = datasets.Features({"image": datasets.Image()})
    dataset = datasets.Dataset.from_dict({"image": rows}, features=features)
    assert files(dataset) == [("000000.jpeg", paths[0].read_bytes()), ("000001.png", b"")]


def test_a_file_that_is_gone_is_one_line(huggingface):
    datasets, _, _ = huggingface
    rows = datasets.Dataset.from_dict({"image": ["gone.png"]})
    with pytest.raises(InputError, match="image 0 of the data set cannot be read: no such file"):
        files(rows.cast_column("image", datasets.Image()))


def test_a_transform_of_hugging_face_is_applied(huggingface):
    _, paths, dataset = huggingface

    def crop(rows):
        return {"image": [image.crop((0, 0, 2, 3)) for image in rows["photo"]]}

    found = files(dataset.with_transform(crop))
    with Image.open(paths[1]) as image:
        assert np.array_equal(decode(found[1]), np.array(image)[:3, :2])


def test_a_choice_of_hugging_face_is_the_users(huggingface):
    datasets, _, dataset = huggingface
    two = dataset.add_column("second", dataset.with_format(None)["label"])
    two = two.cast_column("second", datasets.Value("string")).cast_column(
        "second", datasets.Image()
    )
    with pytest.raises(
        InputError, match=r"several columns of images \(photo, second\).*select_col"
    ):
        open_inputs(two)
    with pytest.raises(InputError, match=r"a dict of 'train'.*dataset\['train'\]"):
        open_inputs(datasets.DatasetDict({"train": dataset}))
    with pytest.raises(InputError, match=r"no image in it \(a dict of label\)"):
        files(dataset.select_columns(["label"]))


# --- paths --------------------------------------------------------------------------------------


def test_paths_stay_paths(tmp_path):
    assert open_inputs("photos") == ["photos"]
    assert open_inputs(tmp_path) == [str(tmp_path)]
    assert open_inputs(tmp_path / name for name in "ab") == [f"{tmp_path}/a", f"{tmp_path}/b"]
    assert open_inputs([]) == []
    nut = Category(
        "nut", [Sample("a.png", True, Truth(False)), Sample("b.png", False, Truth(True))]
    )
    assert open_inputs(nut) == ["a.png", "b.png"]
    assert open_inputs([nut, nut]) == ["a.png", "b.png"] * 2


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (["a.png", GREY], "paths and something else"),
        (GREY, "one image: a blind scan compares"),
        (COLOUR, "one image"),
        (torch.from_numpy(COLOUR).permute(2, 0, 1), "one image"),
        (Image.fromarray(GREY), "one image"),
        (7, "cannot be read from type int: give paths"),
    ],
)
def test_what_is_no_set_is_one_line(inputs, message):
    with pytest.raises(InputError, match=message):
        open_inputs(inputs)
