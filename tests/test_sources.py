import io
import itertools
from collections import namedtuple
from dataclasses import dataclass

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from patchcluster.datasets import Category, Sample, Truth
from patchcluster.errors import InputError
from patchcluster.inputs import natural_key
from patchcluster.sources import Source, open_inputs

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (9, 7), np.uint8)
COLOUR = RNG.integers(0, 256, (9, 7, 3), np.uint8)
DEEP = RNG.integers(0, 65536, (9, 7, 3), np.uint16)


def files(inputs):
    source = open_inputs(inputs)
    assert isinstance(source, Source)
    return list(source.pictures())


def decode(picture):
    """As independent of the package as can be: OpenCV for 16-bit colour, else Pillow."""
    image = Image.open(io.BytesIO(picture.data))
    if picture.data[24:26] == b"\x10\x02":  # a PNG of 16-bit colour
        return cv2.imdecode(np.frombuffer(picture.data, np.uint8), -1)[..., ::-1]
    return np.array(image)


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
    found = Image.open(io.BytesIO(files([image])[0].data))
    assert found.mode == mode
    assert found.getpalette() == image.getpalette()
    assert np.array_equal(np.array(found), np.array(image))


def test_a_mode_that_no_file_has_becomes_rgb():
    image = Image.fromarray(COLOUR).convert("YCbCr")
    assert np.array_equal(decode(files([image])[0]), np.array(image.convert("RGB")))


def test_transparency_of_a_palette_is_kept():
    image = Image.fromarray(COLOUR).convert("P")
    image.info["transparency"] = 3
    found = Image.open(io.BytesIO(files([image])[0].data))
    assert np.array_equal(np.array(found.convert("RGBA")), np.array(image.convert("RGBA")))


def test_the_orientation_of_a_photograph_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    Image.fromarray(COLOUR).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as image:
        found = Image.open(io.BytesIO(files([image])[0].data))
    assert np.array_equal(np.array(found), np.rot90(COLOUR, -1))
    assert 0x0112 not in found.getexif()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (COLOUR / 127.5 - 1, r"image 1 of the data set has values from -1 to 1.*drop Normalize"),
        (COLOUR.astype(float), "has floats up to 25[0-9].*divide them, or give uint8"),
        (np.full((4, 4), np.nan), "no finite numbers"),
        (COLOUR.astype(np.int64), "values of type int64: give uint8"),
        (np.zeros((2, 5, 5), np.uint8), r"has the shape \[2, 5, 5\]: one side must be 1, 3 or 4"),
        (np.zeros((0, 5, 3), np.uint8), "no pixels"),
        (torch.zeros(5), r"has no image in it \(shape \[5\]\)"),
        ((3, "label"), r"has no image in it \(a tuple of int, str\)"),
        ({"a": GREY, "b": GREY}, r"has several images \(a, b\) in it"),
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

    with pytest.raises(InputError, match="image 1 of the data set cannot be had: disk on fire"):
        files(images())


# --- items --------------------------------------------------------------------------------------

Pair = namedtuple("Pair", ["picture", "label"])


@dataclass
class Item:
    """As anomalib's."""

    image: torch.Tensor
    gt_label: int = 0


@pytest.mark.parametrize(
    "item",
    [
        COLOUR,
        (COLOUR, 1),
        [1, COLOUR, GREY],
        Pair(COLOUR, 0),
        {"image": COLOUR, "mask": GREY},
        {"img": COLOUR, "mask": GREY},
        {"photo": COLOUR, "label": 3},
        Item(torch.from_numpy(COLOUR)),
    ],
)
def test_the_image_of_an_item_is_found(item):
    assert np.array_equal(decode(files([item])[0]), COLOUR)


def test_bytes_are_taken_as_they_are():
    buffer = io.BytesIO()
    Image.fromarray(COLOUR).save(buffer, "JPEG")
    (picture,) = files([buffer.getvalue()])
    assert (picture.name, picture.data) == ("000000.jpeg", buffer.getvalue())
    assert files([b"no image"])[0].name == "000000.img"  # that it is none is for the scan to say


def test_nothing_is_an_empty_file():
    assert [(p.name, p.data) for p in files([None, (None, 1)])] == [
        ("000000.png", b""),
        ("000001.png", b""),
    ]


def test_one_image_at_a_time_is_asked_for():
    asked = []
    images = (asked.append(i) or GREY for i in itertools.count())
    pictures = open_inputs(images).pictures()
    for i in range(5):
        next(pictures)
        assert asked == list(range(i + 1))


# --- torch --------------------------------------------------------------------------------------


class Rows(Dataset):
    """A map-style data set that has no end of its own, as many."""

    def __len__(self):
        return 7

    def __getitem__(self, i):
        return torch.full((3, 4, 5), i, dtype=torch.uint8), i


class Stream(IterableDataset):
    def __iter__(self):
        return iter({"image": image, "label": i} for image, i in (Rows()[i] for i in range(7)))


def values(inputs):
    return [int(decode(picture)[0, 0, 0]) for picture in files(inputs)]


@pytest.mark.parametrize(
    "inputs",
    [
        lambda: Rows(),
        lambda: Stream(),
        lambda: DataLoader(Rows()),
        lambda: DataLoader(Rows(), batch_size=3),
        lambda: DataLoader(Rows(), batch_size=None),
        lambda: DataLoader(Stream(), batch_size=4),
        lambda: DataLoader(Rows(), batch_size=3, collate_fn=list),
        lambda: DataLoader(Rows(), batch_size=4, collate_fn=lambda rows: [r[0] for r in rows]),
        lambda: DataLoader(TensorDataset(torch.stack([Rows()[i][0] for i in range(7)])), 2),
        lambda: torch.stack([Rows()[i][0] for i in range(7)]),
        lambda: np.stack([Rows()[i][0].permute(1, 2, 0).numpy() for i in range(7)]),
    ],
)  # fmt: skip
def test_data_sets_and_loaders_of_torch(inputs):
    assert values(inputs()) == list(range(7))


def test_batches_of_grey_images():
    grey = torch.arange(7, dtype=torch.uint8)[:, None, None].expand(7, 4, 5)
    for size in (1, 3, 4):
        loader = DataLoader(TensorDataset(grey, torch.zeros(7)), size)
        assert [int(decode(p)[0, 0]) for p in files(loader)] == list(range(7))


def pictures(rows):
    return [Image.fromarray(row[0].permute(1, 2, 0).numpy()) for row in rows]


@pytest.mark.parametrize(
    "collate",
    [
        lambda rows: (pictures(rows), [row[1] for row in rows]),
        lambda rows: [(picture, row[1]) for picture, row in zip(pictures(rows), rows, strict=True)],
        lambda rows: {"image": pictures(rows), "mask": pictures(rows)},
        lambda rows: [{"image": picture} for picture in pictures(rows)],
        lambda rows: Item(torch.stack([row[0] for row in rows])),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 3])
def test_batches_of_other_forms(collate, size):
    assert values(DataLoader(Rows(), size, collate_fn=collate)) == list(range(7))


def test_batches_that_could_be_two_things_are_refused():
    loader = DataLoader(Rows(), 2, collate_fn=lambda rows: [(p, p) for p in pictures(rows)])
    with pytest.raises(InputError, match="image 0 of the data set comes in lists of images"):
        files(loader)


def test_loaders_that_shuffle_or_leave_out_are_refused():
    with pytest.raises(InputError, match=r"random order.*shuffle=False"):
        open_inputs(DataLoader(Rows(), batch_size=2, shuffle=True))
    with pytest.raises(InputError, match=r"leaves images out.*drop_last=False"):
        open_inputs(DataLoader(Rows(), batch_size=2, drop_last=True))


def test_a_batch_that_is_taken_apart_wrongly_is_noticed():
    def summed(rows):
        return torch.stack([row[0] for row in rows]).sum(0, dtype=torch.uint8)[None]

    with pytest.raises(InputError, match="4 images came from a data set of 7"):
        files(DataLoader(Rows(), batch_size=2, collate_fn=summed))


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


@pytest.mark.parametrize("form", ["plain", "torch", "numpy", "streamed"])
def test_files_of_hugging_face_are_not_decoded(huggingface, form):
    _, paths, dataset = huggingface
    if form == "streamed":
        dataset = dataset.to_iterable_dataset()
    elif form != "plain":
        dataset = dataset.with_format(form)
    found = files(dataset)
    assert [picture.data for picture in found] == [path.read_bytes() for path in paths]
    names = ["000000-part_10.jpg", "000001-part_9.jpg", "000002-part_8.jpg"]
    assert [picture.name for picture in found] == names
    assert sorted(names, key=natural_key) == names


def test_bytes_of_hugging_face_are_taken_as_they_are(huggingface):
    datasets, paths, _ = huggingface
    rows = [{"bytes": paths[0].read_bytes(), "path": None}, None]
    features = datasets.Features({"image": datasets.Image()})
    dataset = datasets.Dataset.from_dict({"image": rows}, features=features)
    found = files(dataset)
    assert [picture.data for picture in found] == [paths[0].read_bytes(), b""]
    assert found[0].name == "000000.jpeg"


def test_a_file_that_is_gone_is_one_line(huggingface):
    datasets, _, _ = huggingface
    rows = datasets.Dataset.from_dict({"image": ["gone.png"]})
    with pytest.raises(InputError, match="image 0 of the data set cannot be had: no such file"):
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
        (7, "a int is no set of images"),
    ],
)
def test_what_is_no_set_is_one_line(inputs, message):
    with pytest.raises(InputError, match=message):
        open_inputs(inputs)
