"""JPEGs that are damaged inside, and good ones that look it, against what Pillow decodes."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from conftest import exif_of, textured_image
from patchcluster.errors import UnreadableImage
from patchcluster.images.decode import load_image, read_header

END = b"\xff\xd9"
PICTURE = Image.fromarray(textured_image(0, 150, 101))
UPRIGHT = exif_of(6)


def encode(image=PICTURE, **options):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **{"quality": 85} | options)
    return buffer.getvalue()


def encode_sampled(factor):
    options = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, factor]
    return cv2.imencode(".jpg", np.asarray(PICTURE), options)[1].tobytes()


FILES = {
    "4:2:0": encode(),
    "4:4:4": encode(subsampling=0),
    "4:2:2, tables of its own": encode(subsampling=1, optimize=True),
    "4:4:0": encode_sampled(cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440),
    "4:1:1": encode_sampled(cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411),
    "progressive": encode(progressive=True),
    "restarts": encode(restart_marker_rows=1),
    "progressive with restarts": encode(progressive=True, restart_marker_blocks=7),
    "grey": encode(PICTURE.convert("L")),
    "CMYK": encode(PICTURE.convert("CMYK")),
    "RGB": encode(keep_rgb=True),
    "turned": encode(exif=UPRIGHT),
    "one block": encode(PICTURE.resize((8, 8))),
}


def load(data):
    header = read_header(data)
    return load_image(data, header, [(header.height, header.width)], {}).pixels[0]


def shown(data):
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


def scan_data(data):
    """Begin and end of the first scan."""
    start = data.index(b"\xff\xda")
    ends = [data.find(bytes([0xFF, marker]), start + 2) for marker in (0xD9, 0xC4, 0xDA)]
    return start + 14, min(end for end in ends if end > 0)


@pytest.mark.parametrize("name", FILES)
def test_a_whole_jpeg_has_the_pixels_that_pillow_gives(name):
    np.testing.assert_array_equal(load(FILES[name]), shown(FILES[name]))


@pytest.mark.parametrize("name", ["4:2:0", "progressive", "grey", "restarts"])
@pytest.mark.parametrize(
    "add",
    {
        "a second image": lambda data: data + data,
        "noise behind": lambda data: data + np.random.default_rng(0).bytes(3000),
        "zeros behind": lambda data: data + bytes(3000),
        "zeros before the end": lambda data: data.removesuffix(END) + bytes(3000) + END,
        "fill bytes before the end": lambda data: data.removesuffix(END) + b"\xff" * 9 + END,
        "stray bytes before the end": lambda data: data.removesuffix(END) + b"\x12\x7f\x34" + END,
        "stray bytes in the header": lambda data: data.replace(
            b"\xff\xdb", b"\1" * 600 + b"\xff\xdb", 1
        ),
        "another version of JFIF": lambda data: data[:11] + b"\7" + data[12:],
        "half a colour profile": lambda data: (
            data[:2] + b"\xff\xe2\0\x20ICC_PROFILE\0\3\1" + bytes(16) + data[2:]
        ),
    }.items(),
    ids=lambda named: named[0],
)
def test_bytes_that_are_no_pixels_do_no_harm(name, add):
    np.testing.assert_array_equal(load(add[1](FILES[name])), shown(FILES[name]))


@pytest.mark.parametrize("name", [name for name in FILES if name != "one block"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.97])
def test_a_jpeg_that_is_cut_is_refused_also_with_an_end(name, share):
    start, end = scan_data(FILES[name])
    part = FILES[name][: round(start + share * (end - start))].rstrip(b"\xff")
    for data in (part, part + END):
        with pytest.raises(UnreadableImage, match="damaged image"):
            load(data)


@pytest.mark.parametrize("name", [name for name in FILES if name != "one block"])
def test_most_jpegs_with_a_lost_sector_are_refused(name):
    data = FILES[name]
    start, end = scan_data(data)
    rng, refused = np.random.default_rng(0), 0
    for _ in range(20):
        at, size = int(rng.integers(start, end - 64)), min(512, (end - start) // 3)
        lost = data[:at] + bytes(min(size, end - at)) + data[at + size :]
        try:
            load(lost)
        except UnreadableImage:
            refused += 1
    assert refused >= 12


def split(data):
    """A JPEG's segments before its first scan by their markers, and the scan with its header."""
    segments, at = {}, 2
    while data[at + 1] != 0xDA:
        size = 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        segments[data[at + 1]] = segments.get(data[at + 1], b"") + data[at : at + size]
        at += size
    return segments, data[at:].removesuffix(END)


def encode_apart(image):
    """A baseline JPEG of RGB whose components lie in one scan each."""
    bands = [split(encode(band)) for band in image.split()]
    before, _ = bands[0]
    frame = before[0xC0][:9] + b"\3" + b"".join(bytes([i, 0x11, 0]) for i in b"RGB")
    frame = frame[:2] + (len(frame) - 2).to_bytes(2, "big") + frame[4:]
    scans = [scan[:5] + bytes([i]) + scan[6:] for i, (_, scan) in zip(b"RGB", bands, strict=True)]
    return [b"\xff\xd8" + before[0xDB] + frame + before[0xC4], *scans]


def test_components_in_scans_of_their_own():
    parts = encode_apart(PICTURE)
    whole = b"".join(parts) + END
    np.testing.assert_array_equal(load(whole), shown(whole))
    assert np.abs(load(whole) - np.asarray(PICTURE, float)).mean() < 8
    for count in (1, 2, 3):
        with pytest.raises(UnreadableImage, match="damaged image"):
            load(b"".join(parts[:count]) + END)


@pytest.mark.parametrize(
    "name", ["progressive", "progressive with restarts", "progressive grey", "progressive CMYK"]
)
def test_a_progressive_jpeg_that_ends_between_scans_is_refused(name):
    modes = {"progressive grey": "L", "progressive CMYK": "CMYK"}
    data = FILES.get(name) or encode(PICTURE.convert(modes[name]), progressive=True)
    np.testing.assert_array_equal(load(data), shown(data))
    starts = [at for at in range(len(data)) if data[at : at + 2] in (b"\xff\xda", b"\xff\xc4")]
    assert len(starts) > 10
    for at in (*starts, *(start + 4 for start in starts)):
        with pytest.raises(UnreadableImage, match=r"damaged image: [^0-9']+$"):  # no exception's
            load(data[:at] + END)
