import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from patchcluster.errors import UnreadableImage
from patchcluster.images.decode import Header, deep_range, load_image, network_size, survey
from png_files import deep_png, insert_chunk


def load(path, size=None, ranges=None):
    header = survey(str(path))
    sizes = [size or (header.height, header.width)]
    return load_image(str(path), header, sizes, ranges or deep_range([header])).pixels[0]


def gradient(width=40, height=30):
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 6, y * 8, 255 - x * 3], -1).astype(np.uint8)


# --- 8 bits -------------------------------------------------------------------------------------


def test_png_keeps_its_pixels(tmp_path):
    Image.fromarray(gradient()).save(tmp_path / "a.png")
    np.testing.assert_array_equal(load(tmp_path / "a.png"), gradient())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    image = Image.fromarray(gradient())
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened))
    header = survey(str(tmp_path / "a.png"))
    assert (header.height, header.width) == expected.shape[:2]
    np.testing.assert_array_equal(load(tmp_path / "a.png"), expected)


def orientation_chunks():
    exif = Image.Exif()
    exif[0x0112] = 6
    raw = exif.tobytes()
    xmp = b"<x:xmpmeta xmlns:tiff='http://ns.adobe.com/tiff/1.0/' tiff:Orientation='6'/>"
    as_text = b"\nexif\n" + str(len(raw)).encode() + b"\n" + raw.hex().encode()
    key = b"XML:com.adobe.xmp\0"
    return {
        "EXIF": (b"eXIf", raw.removeprefix(b"Exif\0\0")),
        "EXIF as text": (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(as_text)),
        "XMP": (b"iTXt", key + b"\0\0\0\0" + xmp),
        "compressed XMP": (b"iTXt", key + b"\1\0\0\0" + zlib.compress(xmp)),
        "XMP without": (b"iTXt", key + b"\0\0\0\0<x:xmpmeta/>"),
        "a remark": (b"tEXt", b"Comment\0Orientation"),
    }


@pytest.mark.parametrize("behind_pixels", [False, True])
@pytest.mark.parametrize("kind", list(orientation_chunks()))
def test_orientation_of_a_png_is_found_wherever_it_is(tmp_path, kind, behind_pixels):
    buffer = io.BytesIO()
    Image.fromarray(gradient()).save(buffer, "PNG")
    name, content = orientation_chunks()[kind]
    path = tmp_path / "a.png"
    path.write_bytes(insert_chunk(buffer.getvalue(), name, content, behind_pixels))
    with Image.open(path) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened))
    header = survey(str(path))
    assert (header.height, header.width) == expected.shape[:2]
    np.testing.assert_array_equal(load(path), expected)


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "LA", "RGBA"])
def test_every_mode_becomes_rgb_as_pillow_shows_it(tmp_path, mode):
    source = Image.fromarray(gradient()).convert("RGB")
    image = source.convert("L").convert(mode) if mode in ("LA", "1") else source.convert(mode)
    name = "a.jpg" if mode == "CMYK" else "a.png"
    image.save(tmp_path / name)
    with Image.open(tmp_path / name) as opened:
        expected = np.asarray(opened.convert("RGB"))
    np.testing.assert_array_equal(load(tmp_path / name), expected)


def test_transparent_pixels_lie_on_white(tmp_path):
    pixels = np.zeros((10, 10, 4), np.uint8)
    pixels[:, 5:, 3] = 255
    pixels[0, 0] = (0, 0, 0, 51)  # one fifth of black on white
    Image.fromarray(pixels).save(tmp_path / "a.png")
    loaded = load(tmp_path / "a.png")
    assert (loaded[5, :5] == 255).all()
    assert (loaded[:, 5:] == 0).all()
    assert loaded[0, 0].tolist() == [204, 204, 204]


def test_palette_with_a_transparent_colour(tmp_path):
    image = Image.fromarray(gradient()).quantize(16)
    image.save(tmp_path / "a.png", transparency=0)
    with Image.open(tmp_path / "a.png") as opened:
        transparent = np.asarray(opened) == 0
    assert transparent.any()
    assert (load(tmp_path / "a.png")[transparent] == 255).all()


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("L", (8, 8), value) for value in (10, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert (load(tmp_path / "a.gif") == 10).all()


def test_resizing_covers_the_whole_frame(tmp_path):
    """A mark in each corner stays in its corner: no crop, no shift."""
    image = np.zeros((90, 120, 3), np.uint8)
    image[:15, :15, 0] = image[:15, -15:, 1] = image[-15:, :15, 2] = 255
    Image.fromarray(image).save(tmp_path / "a.png")
    small = load(tmp_path / "a.png", size=(30, 40))
    assert small.shape == (30, 40, 3)
    assert small[0, 0].tolist() == [255, 0, 0]
    assert small[0, -1].tolist() == [0, 255, 0]
    assert small[-1, 0].tolist() == [0, 0, 255]


def test_several_sizes_at_once(tmp_path):
    Image.fromarray(gradient()).save(tmp_path / "a.png")
    header = survey(str(tmp_path / "a.png"))
    pixels = load_image(str(tmp_path / "a.png"), header, [(32, 64), (64, 96)], {}).pixels
    assert [p.shape for p in pixels] == [(32, 64, 3), (64, 96, 3)]


def test_thumbnail_keeps_the_aspect(tmp_path):
    Image.new("RGB", (1000, 400)).save(tmp_path / "a.png")
    header = survey(str(tmp_path / "a.png"))
    thumbnail = load_image(str(tmp_path / "a.png"), header, [(32, 32)], {}).thumbnail
    with Image.open(io.BytesIO(thumbnail)) as image:
        assert (image.format, image.size) == ("JPEG", (320, 128))


# --- deep images --------------------------------------------------------------------------------


def test_16_bit_grey_is_not_cut_to_8_bits(tmp_path):
    values = np.linspace(30_000, 30_200, 30 * 40).reshape(30, 40).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    loaded = load(tmp_path / "a.png", ranges={"integer": [0.0, 65535.0]})
    np.testing.assert_allclose(loaded[..., 1], values * (255 / 65535), rtol=1e-5)
    assert len(np.unique(loaded)) > 100


@pytest.mark.parametrize("channels", [3, 4])
def test_16_bit_colour_png_is_not_cut_to_8_bits(tmp_path, channels):
    values = np.random.default_rng(0).integers(0, 65536, (6, 5, channels)).astype(np.uint16)
    values[..., 3:] = 65535
    (tmp_path / "a.png").write_bytes(deep_png(values))
    header = survey(str(tmp_path / "a.png"))
    assert header.depth == "integer"
    loaded = load(tmp_path / "a.png", ranges={"integer": [0.0, 65535.0]})
    np.testing.assert_allclose(loaded, values[..., :3] * (255 / 65535), rtol=1e-5)


def test_16_bit_colour_tiff_is_not_cut_to_8_bits(tmp_path):
    values = np.random.default_rng(0).integers(0, 65536, (6, 5, 3)).astype(np.uint16)
    assert cv2.imwrite(str(tmp_path / "a.tif"), values[..., ::-1])
    loaded = load(tmp_path / "a.tif", ranges={"integer": [0.0, 65535.0]})
    np.testing.assert_allclose(loaded, values * (255 / 65535), rtol=1e-5)


def test_float_tiff(tmp_path):
    values = np.random.default_rng(0).random((9, 7)).astype(np.float32)
    Image.fromarray(values).save(tmp_path / "a.tif")
    np.testing.assert_allclose(load(tmp_path / "a.tif")[..., 0], values * 255, rtol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_float_tiff_with_values_that_are_not_finite_is_unreadable(tmp_path, bad):
    values = np.zeros((9, 7), np.float32)
    values[2, 3] = bad
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(UnreadableImage, match="not finite"):
        survey(str(tmp_path / "a.tif"))


@pytest.mark.parametrize(
    ("depth", "bounds", "expected"),
    [
        ("integer", [(0, 200)], [0, 255]),
        ("integer", [(0, 100), (12, 4000)], [0, 4095]),
        ("integer", [(0, 4096)], [0, 16383]),
        ("integer", [(0, 65535)], [0, 65535]),
        ("integer", [(-5, 1000)], [-5, 1000]),
        ("float", [(0, 0.7), (0.1, 1.0)], [0, 1]),
        ("float", [(0, 254.5)], [0, 255]),
        ("float", [(0, 3000.0), (100, 2000)], [0, 3000]),
        ("float", [(-1, 1)], [-1, 1]),
    ],
)
def test_range_of_a_set(depth, bounds, expected):
    headers = [Header(1, 1, depth, low, high) for low, high in bounds]
    assert deep_range(headers) == {depth: expected}


def test_8_bit_images_have_no_range():
    assert deep_range([Header(1, 1, "byte")]) == {}


# --- what cannot be read ------------------------------------------------------------------------


def damaged_files():
    png, jpeg = io.BytesIO(), io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(png, "PNG")
    Image.fromarray(noise).save(jpeg, "JPEG")
    return {
        "empty.png": b"",
        "text.png": b"hello, I am not an image",
        "page.png": b"<!doctype html><html></html>",
        "signature.png": png.getvalue()[:8],
        "truncated.png": png.getvalue()[: len(png.getvalue()) // 2],
        "truncated.jpg": jpeg.getvalue()[: len(jpeg.getvalue()) // 2],
        "flipped.png": png.getvalue()[:100] + b"\xff" * 50 + png.getvalue()[150:],
    }


@pytest.mark.parametrize("name", damaged_files())
def test_damaged_files_are_unreadable_with_a_reason(tmp_path, name):
    (tmp_path / name).write_bytes(damaged_files()[name])
    with pytest.raises(UnreadableImage, match=r"empty|not an image|damaged"):
        load(tmp_path / name)


def test_bomb_is_refused_by_its_header(tmp_path):
    data = bytearray(deep_png(np.zeros((1, 1, 3), np.uint16)))
    data[16:24] = struct.pack(">II", 50_000, 50_000)
    data[24] = 8
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    (tmp_path / "bomb.png").write_bytes(data)
    with pytest.raises(UnreadableImage, match="too large"):
        survey(str(tmp_path / "bomb.png"))


def test_file_that_changed_between_survey_and_load_is_unreadable(tmp_path):
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    header = survey(str(tmp_path / "a.png"))
    Image.new("RGB", (21, 10)).save(tmp_path / "a.png")
    with pytest.raises(UnreadableImage, match="changed"):
        load_image(str(tmp_path / "a.png"), header, [(32, 32)], {})


# --- size of the network's input ----------------------------------------------------------------


def test_square_images_get_the_size_that_was_asked_for():
    assert network_size(1024, 1024, 448) == (448, 448)


@given(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from([256, 448]))
def test_network_size_keeps_area_and_aspect_as_far_as_multiples_of_32_allow(width, height, size):
    h, w = network_size(width, height, size)
    assert h % 32 == 0
    assert w % 32 == 0
    if 1 / 8 < width / height < 8:
        assert abs(h - size * (height / width) ** 0.5) <= 16
        assert abs(w - size * (width / height) ** 0.5) <= 16
