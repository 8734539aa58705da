"""Masks as tools write them: whatever is not the background is inside."""

import io
import zlib

import numpy as np
import pytest
import tifffile
from imagecodecs import png_encode
from PIL import Image

from conftest import exif_of
from patchcluster.errors import InputError
from patchcluster.images.masks import pair_masks, read_mask_file, to_mask
from patchcluster.images.raster import encode

INSIDE = np.zeros((6, 8), bool)
INSIDE[1:4, 2:5] = True
INSIDE[4, 6] = True  # a single pixel
SOFT = np.roll(INSIDE, 1, 1) * np.uint8(60)  # a border of the mask, where that is not
IDS = INSIDE * np.arange(1, 9)  # 2 x 2 pixels of one value nowhere


PHOTOGRAPH = np.random.default_rng(0).integers(1, 90, (6, 8, 3), np.uint8)
PHOTOGRAPH[2, 3] = PHOTOGRAPH[0, 0] = 255  # highlights


def colours(background, inside, kind=np.uint8):
    """[6, 8, c]"""
    return np.where(INSIDE[..., None], kind(inside), kind(background))


def palette(indices, entries, **options):
    image = Image.fromarray(np.asarray(indices, np.uint8), "P")
    image.putpalette(np.ravel(entries).tolist())
    return encode(image, **options)


def tiff(*pages, **options):
    """A TIFF of pages that are arrays, or pairs of an array and options of its own."""
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        for page in pages:
            values, own = page if isinstance(page, tuple) else (page, {})
            writer.write(values, **options, **own)
    return buffer.getvalue()


def turned(png, orientation):
    """A PNG with an EXIF orientation."""
    exif = exif_of(orientation)
    chunk = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    crc = zlib.crc32(chunk).to_bytes(4, "big")
    return png[:33] + (len(chunk) - 4).to_bytes(4, "big") + chunk + crc + png[33:]


MASKS = {
    "1 bit": encode(INSIDE),
    "ids in grey": encode(IDS.astype(np.uint8)),
    "ids to 255 in grey": encode((INSIDE * np.where(IDS == 7, 255, 3)).astype(np.uint8)),
    "ids in red": encode(colours((0, 0, 0), (1, 0, 0))),
    "ids in blue": encode(colours((0, 0, 0), (0, 0, 1)), "BMP"),
    "16-bit ids": encode((IDS * 255).astype(np.uint16)),
    "16-bit ids to 255": encode((INSIDE * np.where(IDS == 7, 255, 1)).astype(np.uint16)),
    "16-bit ids in green": png_encode(colours((0, 0, 0), (0, 1, 0), np.uint16)),
    "16-bit alpha": png_encode(colours((9, 9, 9, 0), (9, 9, 9, 1), np.uint16)),
    "16-bit TIFF": tiff(IDS.astype(np.uint16)),
    "32-bit TIFF": tiff((INSIDE * 70_000).astype(np.int32)),
    "negative ids": tiff((-IDS).astype(np.int32)),
    "float TIFF": tiff((INSIDE * 0.25).astype(np.float32)),
    "64-bit float TIFF": tiff((INSIDE * 0.25).astype(np.float64)),
    "16-bit float TIFF": tiff((INSIDE * 0.25).astype(np.float16)),
    "64-bit TIFF": tiff((INSIDE * 2**40).astype(np.int64)),
    "unsigned 64-bit TIFF": tiff((INSIDE * 2**40).astype(np.uint64)),
    "planes of 16 bits": tiff(
        colours((0, 0, 0), (0, 0, 1), np.uint16).transpose(2, 0, 1),
        photometric="rgb",
        planarconfig="separate",
    ),
    "WhiteIsZero": tiff(~(INSIDE * np.uint8(255)), photometric="miniswhite"),
    "16-bit WhiteIsZero": tiff(~IDS.astype(np.uint16), photometric="miniswhite"),
    "reduced page first": tiff(
        (INSIDE[::2, ::2] * np.uint8(1), {"subfiletype": 1}), INSIDE * np.uint8(1)
    ),
    "TIFF of a palette": palette(~INSIDE, [(255, 255, 255), (0, 0, 0)], form="TIFF"),
    "TIFF of a black palette": palette(IDS, np.zeros((9, 3), int), form="TIFF"),
    "16-bit RGBA TIFF": tiff(
        colours((9, 9, 9, 0), (9, 9, 9, 1), np.uint16), photometric="rgb", extrasamples=[2]
    ),
    "16-bit colours, turned": turned(
        png_encode(np.rot90(colours((0, 0, 0), (0, 1, 0), np.uint16)).copy()), 6
    ),
    "palette": palette(INSIDE, [(0, 0, 0), (1, 0, 0)]),
    "palette of black": palette(IDS, np.zeros((9, 3), int)),
    "palette without black": palette(IDS, np.full((9, 3), 50)),
    "palette, black later": palette(~INSIDE, [(255, 255, 255), (0, 0, 0)]),
    "palette, clear": palette(INSIDE, [(0, 0, 0), (1, 0, 0)], transparency=0),
    "alpha on white": encode(colours((255, 255, 255, 0), (255, 255, 255, 255))),
    "alpha on black": encode(colours((0, 0, 0, 0), (0, 0, 0, 255))),
    "alpha on grey": encode(Image.fromarray(colours((7, 0), (7, 1)), "LA")),
    "black on clear white": encode(colours((255, 255, 255, 0), (0, 0, 0, 255))),
    "red on clear": encode(colours((0, 0, 0, 0), (255, 0, 0, 255))),
    "red on opaque black": encode(colours((0, 0, 0, 255), (1, 0, 0, 255))),
    "red, all clear": encode(colours((0, 0, 0, 0), (1, 0, 0, 0))),
    "alpha on a photograph": encode(np.dstack([PHOTOGRAPH, INSIDE * np.uint8(255)])),
    "photograph, soft alpha": encode(np.dstack([PHOTOGRAPH, np.where(INSIDE, 255, SOFT)])),
    "CMYK": encode(Image.fromarray(colours((0, 0, 0), (200, 9, 9))).convert("CMYK"), "TIFF"),
}


@pytest.mark.parametrize("kind", MASKS)
def test_whatever_is_not_background_is_inside(tmp_path, kind):
    (tmp_path / "mask").write_bytes(MASKS[kind])
    np.testing.assert_array_equal(read_mask_file(tmp_path / "mask"), INSIDE)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_the_orientation_of_a_mask_is_applied(tmp_path, orientation, form):
    exif = exif_of(orientation)
    (tmp_path / "mask").write_bytes(encode(IDS.astype(np.uint8), form, exif=exif))
    turns = {
        1: IDS, 2: IDS[:, ::-1], 3: IDS[::-1, ::-1], 4: IDS[::-1],
        5: IDS.T, 6: np.rot90(IDS, -1), 7: np.rot90(IDS.T, 2), 8: np.rot90(IDS),
    }  # fmt: skip
    np.testing.assert_array_equal(read_mask_file(tmp_path / "mask"), turns[orientation] > 0)


def test_a_border_that_went_through_jpeg_is_cut_at_half():
    """Also where the JPEG was saved as a PNG again; ids in flat areas are none of it."""
    whole = np.kron(INSIDE, np.ones((5, 5), bool))
    image = Image.open(io.BytesIO(encode((whole * 255).astype(np.uint8), "JPEG", quality=60)))
    soft = np.asarray(image)
    assert ((soft > 0) & (soft < 127)).sum() > 20  # else the test tests nothing
    assert np.mean(to_mask(image) != whole) < 0.01
    assert np.array_equal(to_mask(Image.fromarray(soft)), soft > 127)


def test_the_border_of_a_lossy_webp_is_cut_at_half(tmp_path):
    y, x = np.mgrid[:60, :80]
    whole = (x - 40) ** 2 + (y - 28) ** 2 < 300
    data = encode((whole * 255).astype(np.uint8), "WEBP", quality=60)
    soft = np.asarray(Image.open(io.BytesIO(data)).convert("L"))
    assert np.mean((soft > 0) != whole) > 0.02  # else the test tests nothing
    (tmp_path / "mask").write_bytes(data)
    assert np.mean(read_mask_file(tmp_path / "mask") != whole) < 0.01


def test_labels_in_a_lossless_webp_are_kept(tmp_path):
    labels = INSIDE * np.uint8(1)
    labels[-1, -1] = 255
    (tmp_path / "mask").write_bytes(encode(labels, "WEBP", lossless=True))
    np.testing.assert_array_equal(read_mask_file(tmp_path / "mask"), labels > 0)


@pytest.mark.parametrize("largest", [128, 254, 255])
def test_a_border_that_was_resized_is_cut_at_half(largest):
    whole = Image.fromarray(np.kron(INSIDE, np.ones((20, 20))).astype(np.uint8) * np.uint8(largest))
    exact = np.asarray(whole.resize((127, 99), Image.Resampling.NEAREST)) > 0
    for way in (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.HAMMING):
        resized = whole.resize((127, 99), way)
        assert np.mean((np.asarray(resized) > 0) != exact) > 0.005  # else the test tests nothing
        assert np.mean(to_mask(resized) != exact) < 0.01


def test_labels_are_no_soft_border():
    areas = np.kron(INSIDE, np.ones((5, 5), bool)) * np.uint8(3)
    areas[-1, -1] = 255
    thin = np.zeros((40, 40), np.uint8)
    thin[5:20, 5:20] = 255
    thin[22:35:3, 5:35] = np.arange(1, 6)[:, None]
    touching = np.zeros((40, 40), np.uint8)
    touching[5:20, 5:20], touching[20:35, 5:20] = 255, 100
    crossing = np.zeros((40, 40), np.uint8)
    crossing[20], crossing[:, 20] = 1, 2
    for labels in (areas, thin, touching, crossing):
        assert np.array_equal(to_mask(Image.fromarray(labels)), labels > 0)


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (np.zeros((2, 3, 4)), r"shape \[2, 3, 4\]"),
        (np.zeros((0, 3)), r"shape \[0, 3\]"),
        (np.array([[0, np.nan]]), "not finite"),
    ],
)
def test_what_is_no_mask(mask, reason):
    with pytest.raises(ValueError, match=reason):
        to_mask(mask)


def test_a_damaged_file_is_one_line(tmp_path):
    for data in (
        png_encode(colours((0, 0, 0), (0, 1, 0), np.uint16)),
        encode(IDS.astype(np.uint8)),
        encode(IDS.astype(np.uint8), "JPEG"),
        tiff(IDS.astype(np.uint16)),
    ):
        for cut in (0, 20, len(data) // 2):
            (tmp_path / "mask").write_bytes(data[:cut])
            with pytest.raises(InputError, match="cannot read the mask") as error:
                read_mask_file(tmp_path / "mask")
            assert "BytesIO" not in str(error.value)


def test_a_tiff_of_several_masks_is_refused(tmp_path):
    (tmp_path / "mask").write_bytes(tiff(INSIDE * np.uint8(0), INSIDE * np.uint8(1)))
    with pytest.raises(InputError, match="2 pages in full resolution: save the mask alone"):
        read_mask_file(tmp_path / "mask")


def pair(folder, paths):
    masks, matches = pair_masks(paths, folder)
    return {paths[i]: str(masks[mask].relative_to(folder)) for i, mask in matches.found.items()}


def test_masks_are_found_by_the_names_of_their_images(tmp_path):
    system = ("._a.png", "@eaDir/a.png/THUMB_M.png", "__MACOSX/a.png", ".thumbnails/a.png")
    masks = ("a_mask.png", "a.png", "B.tif", "d.gif", "sub/c.jpg_mask.png")
    for name in (*masks, "sub/notes.txt", *system):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert len(pair_masks([], tmp_path)[0]) == 4
    assert pair(tmp_path, ["p/a.jpg", "p/b.jpg", "p/d.ppm", "p/sub/c.jpg", "p/sub/c.png"]) == {
        "p/a.jpg": "a_mask.png", "p/b.jpg": "B.tif", "p/d.ppm": "d.gif",
        "p/sub/c.jpg": "sub/c.jpg_mask.png",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("images", "masks", "expected"),
    [
        (["a", "a_mask"], ["a", "a_mask"], {"a": "a", "a_mask": "a_mask"}),
        (["a_mask", "b"], ["a_mask"], {"a_mask": "a_mask"}),
        (["a", "a_mask"], ["a_mask", "a_mask_mask"], {"a": "a_mask", "a_mask": "a_mask_mask"}),
        (["1/a", "2/a_mask"], ["1/a_mask"], {"1/a": "1/a_mask"}),
    ],
)
def test_an_image_may_be_called_a_mask(tmp_path, images, masks, expected):
    for name in masks:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.png").touch()
    found = pair(tmp_path, [f"p/{name}.jpg" for name in images])
    assert found == {f"p/{image}.jpg": f"{mask}.png" for image, mask in expected.items()}
