import io
import itertools
import struct

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from conftest import exif_of
from patchcluster.errors import UnreadableImage
from patchcluster.images.decode import load_image, read_header
from patchcluster.images.tiff import TiffImage
from tiff_files import WHITE_IS_ZERO, tiff

TYPES = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "f2", "f4", "f8"]
UNSPECIFIED, ASSOCIATED, UNASSOCIATED = 0, 1, 2


def draw(type_, samples=1, shape=(35, 50)):
    rng, dtype = np.random.default_rng(0), np.dtype(type_)
    shape = (*shape, samples) if samples > 1 else shape
    if dtype.kind == "f":
        return rng.random(shape).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)


def shown(values):
    """Of 1 or 2 bands the first, of more the first three."""
    return (
        values if values.ndim == 2 else values[..., 0] if values.shape[2] < 3 else values[..., :3]
    )


def write(values, **options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **options)
    return buffer.getvalue()


def read(data):
    return TiffImage.open(io.BytesIO(data)).read()


def load(data, top=255):
    header = read_header(data)
    windows = {"integer": [0.0, top], "float": [0.0, 1.0]}
    return load_image(data, header, [(header.height, header.width)], windows).pixels[0]


def by_pillow(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


# --- every layout -------------------------------------------------------------------------------


def layouts(samples, type_):
    """Options of tifffile: planes, tiles, byte order, compression and predictor, BigTIFF."""
    planar = ["contig", "separate"] if samples > 1 else ["contig"]
    compressions = [
        (None, None),
        ("packbits", None),
        *itertools.product(("lzw", "zlib", "zstd"), (None, True)),
    ]
    for plane, tile, order, (compression, predictor) in itertools.product(
        planar, [None, (16, 32)], "<>", compressions
    ):
        if predictor and type_ == "u8":
            continue  # tifffile does not write it
        yield {
            "planarconfig": plane if samples > 1 else None, "tile": tile, "byteorder": order,
            "compression": compression, "predictor": predictor,
            "bigtiff": order == ">" and tile is not None, "rowsperstrip": None if tile else 8,
        }  # fmt: skip


@pytest.mark.parametrize("samples", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("type_", TYPES)
def test_every_depth_and_layout_gives_the_values_that_were_written(type_, samples):
    values = draw(type_, samples)
    expected = shown(values)
    for layout in layouts(samples, type_):
        stored = values
        if layout["planarconfig"] == "separate":
            stored = np.ascontiguousarray(np.moveaxis(values, -1, 0))
        kinds = [UNSPECIFIED] * (samples - 1)
        data = write(stored, photometric="minisblack", extrasamples=kinds or None, **layout)
        found = read(data)
        assert found.dtype == expected.dtype, layout
        np.testing.assert_array_equal(found, expected, err_msg=str(layout))


@pytest.mark.parametrize("type_", [t for t in TYPES if "f" not in t])
def test_white_is_zero_is_inverted(type_):
    values = draw(type_)
    limits = np.iinfo(values.dtype)
    expected = (limits.max - values) if limits.min == 0 else -1 - values
    np.testing.assert_array_equal(read(tiff(values, photometric=WHITE_IS_ZERO)), expected)


@pytest.mark.parametrize("bits", [1, 2, 4, 6, 10, 12, 14])
@pytest.mark.parametrize("inverted", [False, True])
def test_samples_that_fill_no_bytes(bits, inverted):
    top = 2**bits - 1
    values = np.random.default_rng(0).integers(0, top, (9, 21), endpoint=True)
    stored = values.astype(bool if bits == 1 else np.uint8 if bits < 8 else np.uint16)
    photometric = "miniswhite" if inverted else "minisblack"
    found = read(write(stored, bitspersample=bits, photometric=photometric))
    right = top - values if inverted else values
    np.testing.assert_array_equal(found, np.rint(right * 255 / top) if bits < 8 else right)


MODES = {
    "raw": ["1", "L", "P", "LA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB"],
    "tiff_lzw": ["1", "L", "P", "LA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB"],
    "jpeg": ["L", "LA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB"],
    "group3": ["1"],
    "group4": ["1"],
}


@pytest.mark.parametrize(
    ("compression", "mode"), [(name, mode) for name, modes in MODES.items() for mode in modes]
)
def test_pixels_of_8_bits_are_those_of_pillow(compression, mode):
    y, x = np.mgrid[:40, :64]
    image = Image.fromarray(np.stack([x * 4, y * 6, 255 - x * 3], -1).astype(np.uint8))
    if mode == "LAB":
        profiles = [ImageCms.createProfile(name) for name in ("sRGB", "LAB")]
        image = ImageCms.profileToProfile(image, *profiles, outputMode="LAB")
    elif mode == "LA":
        image = image.convert("L")
    buffer = io.BytesIO()
    image.convert(mode).save(buffer, "TIFF", compression=compression)
    np.testing.assert_array_equal(load(buffer.getvalue()), by_pillow(buffer.getvalue()))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("type_", ["u1", "u2"])
def test_orientation(orientation, type_):
    values = draw("u1", 3, (4, 6))
    exif = exif_of(orientation)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "TIFF", exif=exif)
    expected = by_pillow(buffer.getvalue())  # which turns it
    data = tiff(values.astype(type_), tags={274: (3, [orientation])})
    np.testing.assert_array_equal(load(data), expected)


# --- what the samples are -----------------------------------------------------------------------


def test_a_palette_of_16_bits_and_one_of_8_by_mistake():
    indices = draw("u1")
    colours = np.random.default_rng(1).integers(0, 256, (3, 256))
    for palette in (colours, colours * 257):
        data = write(indices, photometric="palette", colormap=palette.astype(np.uint16))
        np.testing.assert_array_equal(read(data), colours.T[indices])


def test_a_palette_of_two_colours():
    indices = np.random.default_rng(0).integers(0, 2, (9, 21), np.uint8)
    palette = {320: (3, [10, 20, 30, 40, 50, 60])}
    tags = {256: (4, [21]), 258: (3, [1]), 262: (3, [3]), **palette}
    data = tiff(np.packbits(indices, axis=1), tags=tags)
    np.testing.assert_array_equal(read(data), np.array([[10, 30, 50], [20, 40, 60]])[indices])


@pytest.mark.parametrize("type_", ["u1", "u2", "f2", "f4"])
@pytest.mark.parametrize("samples", [2, 4])
def test_alpha_lies_on_white(type_, samples):
    values = draw(type_, samples)
    top = np.iinfo(type_).max if "u" in type_ else 1
    values[0, 0, -1] = top
    colour, alpha = values[..., :-1].astype(float), values[..., -1:] / top
    expected = (colour * alpha + top * (1 - alpha)) * (255 / top)
    found = load(tiff(values, extra=[UNASSOCIATED]), top)
    np.testing.assert_allclose(found, expected + np.zeros(3), atol=0.51)
    premultiplied = np.concatenate([colour * alpha, alpha * top], -1).astype(type_)
    found = load(tiff(premultiplied, extra=[ASSOCIATED]), top)
    np.testing.assert_allclose(found, expected + np.zeros(3), atol=1.5)


@pytest.mark.parametrize("opaque", [255, 4095, 65_535])
def test_alpha_of_a_deep_image_has_any_range_and_does_not_widen_the_window(opaque):
    values = np.random.default_rng(0).integers(1000, 3000, (20, 30, 4), np.uint16)
    values[..., 3] = opaque
    plain = load(tiff(values[..., :3].copy()), 4096)
    np.testing.assert_array_equal(load(tiff(values, extra=[UNASSOCIATED]), 4096), plain)
    values[:4, :, 3] = 0
    data = tiff(values, extra=[UNASSOCIATED])
    assert read_header(data).spread.most < 3000
    np.testing.assert_array_equal(load(data, 4096)[:4], 255)
    np.testing.assert_array_equal(load(data, 4096)[4:], plain[4:])


def test_pixels_without_data_are_refused():
    values = draw("f4") + 20
    tag = {"extratags": [(42113, 2, 6, "-9999", True)]}
    np.testing.assert_array_equal(read(write(values, **tag)), values)
    values[3, 4] = -9999
    with pytest.raises(UnreadableImage, match="without data"):
        read_header(write(values, **tag))


@pytest.mark.parametrize("stated", ["-9999", "nan", "none", "7.5"])
def test_a_value_without_data_that_no_sample_has_refuses_none(stated):
    values = draw("u2")
    values[3, 4] = 0
    tag = {"extratags": [(42113, 2, 0, stated, True)]}
    np.testing.assert_array_equal(read(write(values, **tag)), values)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_damaged_jpeg_in_a_tiff_is_refused(share):
    y, x = np.mgrid[:128, :160]
    picture = np.stack([128 + 90 * np.sin(x / 7 + y / (9 + c)) for c in range(3)], -1)
    data = bytearray(write(np.uint8(picture), compression="jpeg", photometric="rgb"))
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as file:
        at, count = file.pages[0].dataoffsets[0], file.pages[0].databytecounts[0]
    assert load(bytes(data)).shape == (128, 160, 3)
    data[at + int(share * count) : at + count] = bytes(count - int(share * count))
    with pytest.raises(UnreadableImage, match="damaged"):
        load(bytes(data))


@pytest.mark.parametrize("kind", [UNSPECIFIED, ASSOCIATED, UNASSOCIATED])
@pytest.mark.parametrize("type_", ["u1", "u2", "f4"])
def test_colour_under_a_fourth_sample_that_is_zero(type_, kind):
    values = draw(type_, 4)
    values[..., 3] = 0
    np.testing.assert_array_equal(read(tiff(values, extra=[kind])), values[..., :3])


def test_inks_of_16_bits():
    inks = draw("u2", 4)
    share = 1 - inks / 65535
    expected = share[..., :3] * share[..., 3:] * 65535
    np.testing.assert_allclose(read(write(inks, photometric="separated")), expected, atol=0.51)


# --- pages --------------------------------------------------------------------------------------


def pages(*written):
    """A file of pages: values, and options of tifffile."""
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        for values, options in written:
            writer.write(values, **{"photometric": "rgb", **options})
    return buffer.getvalue()


FULL = draw("u1", 3, (32, 48))
SMALL = np.full((8, 12, 3), 7, np.uint8)


@pytest.mark.parametrize(
    "file",
    {
        "marked": pages((SMALL, {"subfiletype": 1}), (FULL, {})),
        "marked by the older tag": pages(
            (SMALL, {"extratags": [(255, 3, 1, 2, True)]}), (FULL, {})
        ),
        "not marked": pages((SMALL, {}), (FULL, {})),
        "not marked, of another shape": pages((FULL[:20, :15], {}), (FULL, {})),
        "full one below": pages((SMALL, {"subfiletype": 1, "subifds": 1}), (FULL, {})),
        "copies behind": pages((FULL, {"subifds": 1}), (SMALL, {"subfiletype": 1})),
    }.items(),
    ids=lambda file: file[0],
)
def test_a_reduced_copy_is_not_what_is_scored(file):
    np.testing.assert_array_equal(load(file[1]), FULL)
    assert not read_header(file[1]).several


def test_of_several_full_pages_the_first_is_taken_and_it_is_known():
    data = pages((FULL, {}), (FULL[::-1], {}), (FULL[:20], {}))
    np.testing.assert_array_equal(load(data), FULL)
    assert read_header(data).several


def test_pages_that_lead_back_to_the_first_end():
    data = bytearray(tiff(draw("u1")))
    start = struct.unpack_from("<I", data, 4)[0]
    entries = struct.unpack_from("<H", data, start)[0]
    struct.pack_into("<I", data, start + 2 + 12 * entries, start)
    np.testing.assert_array_equal(read(data), draw("u1"))


# --- what is not read ---------------------------------------------------------------------------

BROKEN_ALPHA = draw("f4", 4)
BROKEN_ALPHA[2, 3, 3] = np.nan

CFA = {
    "photometric": "cfa",
    "extratags": [(33421, 3, 2, (2, 2), True), (33422, 1, 4, b"\0\1\1\2", True)],
}
TILED = {322: (3, [64]), 323: (3, [48])}
DNG = {"extratags": [(50706, 1, 4, b"\1\4\0\0", True)], "subfiletype": 1}


def make(name):
    return {**CFA, "extratags": [*CFA["extratags"], (271, 2, len(name), name, True)]}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (pages((SMALL, DNG), (FULL[..., 0], CFA)), "camera [(]DNG[)]: develop"),
        (pages((FULL[..., 0], make("NIKON CORPORATION"))), "camera [(]NEF[)]: develop"),
        (pages((FULL[..., 0], make("SONY"))), "camera [(]ARW[)]: develop"),
        (pages((FULL[..., 0], make("an unknown one"))), "camera .*: develop"),
        (pages((SMALL, {"subfiletype": 1})), "without a page in full resolution"),
        (write(np.zeros((4, 4), np.complex64)), "complex"),
        (write(np.zeros((16, 16, 16), np.uint8), volumetric=True, tile=(16, 16, 16)), "volume"),
        (tiff(draw("u1", 3), photometric=9), "ICC L.a.b. values: convert"),
        (tiff(draw("u1", 3))[:-40], "damaged"),
        (tiff(draw("u1"), tags={259: (3, [34676])}), "unknown compression"),
        (tiff(np.full((4, 4), np.nan, np.float32)), "not finite"),
        (tiff(np.full((4, 4), 1e300)), "not finite"),
        (tiff(BROKEN_ALPHA, extra=[UNASSOCIATED]), "not finite"),
        (tiff(draw("u1"), tags={256: (4, [60_000]), 257: (4, [60_000])}), "too large"),
        (tiff(draw("u1"), tags={257: (4, [400]), 278: (4, [400])}), "damaged"),
        (tiff(draw("u1"), tags={256: (4, [50, 50]), **TILED}), "its size is no number"),
        (tiff(draw("u1"), tags={257: (4, [35, 35]), **TILED}), "its size is no number"),
        (tiff(draw("u1"), tags={273: (2, [0x413834])}), "tags cannot be read"),
        (tiff(draw("u1"), tags={279: (7, [0x413834])}), "tags cannot be read"),
        (tiff(draw("u1", 2), tags={338: (2, [0x32])}), "tags cannot be read"),
        (tiff(draw("f2"), tags={262: (3, [3]), 320: (3, [9] * 768)}), "floats that are looked up"),
        (tiff(draw("u1"), tags={262: (3, [3]), 320: (3, [9] * 7)}), "palette is missing"),
        (tiff(draw("u1"), tags={262: (3, [3]), 320: (3, [9] * 300)}), "palette is shorter"),
        (tiff(draw("u1"), photometric=5), "fewer than four inks"),
        (tiff(draw("u2", 3), photometric=5), "fewer than four inks"),
        (tiff(draw("u1"), tags={338: (3, [2])}), "all samples are extra ones"),
        (tiff(draw("u1"), tags={338: (3, [0, 2])}), "all samples are extra ones"),
        (tiff(draw("u1"), tags={279: (4, [10_000_000])}), "pixels are missing"),
        (tiff(draw("u1"), tags={273: (4, [0]), 279: (4, [0])}), "pixels are missing"),
    ],
)  # fmt: skip
def test_what_is_refused_and_why(data, words):
    with pytest.raises(UnreadableImage, match=words):
        load(data)


@pytest.mark.parametrize("compression", ["lzw", "zlib", "packbits", "zstd"])
def test_a_strip_that_ends_early_is_damage(compression):
    data = write(draw("u2"), compression=compression, rowsperstrip=10)
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[0]
        tag, counts = page.tags[279], list(page.databytecounts)
    counts[1] //= 2
    changed = io.BytesIO(data)
    with tifffile.TiffFile(changed, mode="r+") as file:
        file.pages[0].tags[tag.code].overwrite(counts)
    with pytest.raises(UnreadableImage, match="damaged"):
        load(changed.getvalue())
