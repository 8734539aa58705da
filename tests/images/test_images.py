import io
import subprocess
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from conftest import exif_of
from patchcluster.errors import UnreadableImage
from patchcluster.images import shapes
from patchcluster.images.decode import load_image, read_header
from patchcluster.images.raster import encode
from patchcluster.images.shapes import MAX_PIXELS, network_size
from png_files import insert_chunk, interlaced_png


def load(data, ranges=None):
    """Pixels at the size of the image."""
    header = read_header(data)
    return load_image(data, header, [(header.height, header.width)], ranges or {}).pixels[0]


def shown(data):
    """What Pillow decodes, the right way up."""
    return ImageOps.exif_transpose(Image.open(io.BytesIO(data)))


def gradient(width=40, height=30):
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 6, y * 8, 255 - x * 3], -1).astype(np.uint8)


# --- 8 bits -------------------------------------------------------------------------------------


def orientation_chunks():
    exif = exif_of(6)
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
def test_orientation_of_a_png_is_found_wherever_it_is(kind, behind_pixels):
    data = insert_chunk(encode(gradient()), *orientation_chunks()[kind], behind_pixels)
    np.testing.assert_array_equal(load(data), np.asarray(shown(data)))


def test_thumbnail_keeps_the_aspect():
    data = encode(Image.new("RGB", (1000, 400)))
    thumbnail = Image.open(
        io.BytesIO(load_image(data, read_header(data), [(32, 32)], {}).thumbnail)
    )
    assert (thumbnail.format, thumbnail.size) == ("JPEG", (320, 128))


# --- size of the network's input ----------------------------------------------------------------


@given(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from([256, 448]))
def test_network_size_keeps_area_and_aspect_as_far_as_multiples_of_32_allow(width, height, size):
    h, w = network_size(width, height, size)
    assert h % 32 == 0
    assert w % 32 == 0
    if 1 / 8 < width / height < 8:
        assert abs(h - size * (height / width) ** 0.5) <= 16
        assert abs(w - size * (width / height) ** 0.5) <= 16
    assert h * w <= 1.5 * size**2  # that of a square image, give or take rounding


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [(4096, 256, (128, 1792)), (256, 4096, (1792, 128)), (2000, 10, (32, 6272))],
)
def test_network_size_of_line_scan_pictures(width, height, expected):
    assert network_size(width, height, 448) == expected


@pytest.mark.parametrize(
    ("width", "height", "reason"),
    [
        (5000, 1, "too small: 5000 x 1 pixels, and no side may be under 4"),
        (3, 7, "too small: 3 x 7 pixels"),
        (2001, 10, "too long: 2001 x 10 pixels, and a side may be 200 times as long"),
        (10, 2001, "too long"),
        (101, 100, "too large: 101 x 100 pixels are more than 10000, which --max-pixels raises"),
    ],
)
def test_shapes_that_are_not_read(width, height, reason):
    data = encode(Image.new("L", (width, height)))
    with pytest.raises(UnreadableImage, match=reason):
        read_header(data, max_pixels=10_000 if width == 101 else MAX_PIXELS)


def test_images_over_the_limit_of_pillow_are_read_if_asked_and_memory_allows(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    monkeypatch.setattr(shapes, "MAX_PIXELS", 1000)
    data = encode(gradient())
    with pytest.raises(UnreadableImage, match=r"too large.*--max-pixels"):
        read_header(data, max_pixels=1000)
    header = read_header(data, max_pixels=1200)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)  # as in another worker
    loaded = load_image(data, header, [(30, 40)], {}).pixels[0]
    np.testing.assert_array_equal(loaded, gradient())
    monkeypatch.setattr(shapes, "free_memory", lambda: 13_000)
    with pytest.raises(UnreadableImage, match=r"need 0 MB of memory .* 0 MB are free"):
        read_header(data, max_pixels=1200)
    assert read_header(encode(gradient(20, 20)), max_pixels=1200).width == 20


def test_free_memory_is_what_the_system_says():
    said = subprocess.run(["free", "-b"], capture_output=True, text=True, check=True).stdout
    assert shapes.free_memory() == pytest.approx(int(said.splitlines()[1].split()[-1]), rel=0.2)


@pytest.mark.parametrize("maxval", [300, 1000, 4095, 65_535])
@pytest.mark.parametrize("head", ["P5\n7 5\n{}\n", "P5 # by a camera\n7\n# rows\n5 {} "])
def test_numbers_of_a_deep_pgm_are_those_of_the_file(maxval, head):
    values = np.linspace(0, maxval, 35).round().astype(np.uint16).reshape(5, 7)
    data = head.format(maxval).encode() + values.astype(">u2").tobytes()
    loaded = load(data, {"integer": [0.0, maxval]})
    np.testing.assert_allclose(loaded[..., 0], values / maxval * 255, rtol=1e-5)


@pytest.mark.parametrize("shape", [(8, 8), (9, 17), (31, 16), (33, 40)])
def test_an_interlaced_png_is_read_whole_and_refused_if_pixels_are_missing(shape):
    values = np.random.default_rng(0).integers(1, 256, shape, np.uint8)
    data = interlaced_png(values)
    image = load_image(data, read_header(data), [shape], {})
    np.testing.assert_array_equal(image.pixels[0][..., 0], values)
    pixels = zlib.decompress(data[data.index(b"IDAT") + 4 : -16])
    at = data.index(b"IDAT") - 4
    body = zlib.compress(pixels[: len(pixels) * 3 // 4])
    named = b"IDAT" + body
    cut = data[:at] + len(body).to_bytes(4, "big") + named + zlib.crc32(named).to_bytes(4, "big")
    with pytest.raises(UnreadableImage):
        load_image(cut + data[-12:], read_header(cut + data[-12:]), [shape], {})
