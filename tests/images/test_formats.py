"""Each row of the first table of docs/reading-images.md: format x kind x what happens."""

import re
import struct
import sys
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from patchcluster.errors import UnreadableImage
from patchcluster.images.decode import load_image, read_header
from patchcluster.images.raster import encode
from png_files import chunk, deep_png, png

RANGES = {"integer": [0.0, 65535.0], "float": [0.0, 1.0]}
PAGE = Path(__file__).parents[2] / "docs" / "reading-images.md"
Y, X = np.mgrid[:48, :64]
GRADIENT = np.stack([X * 4, Y * 5, 255 - X * 3], -1).astype(np.uint8)
DEEP = np.random.default_rng(0).integers(0, 65536, (6, 5, 4)).astype(np.uint16)
DEEP[0, 0, 3] = 65535
CLEAR = np.dstack([GRADIENT, np.zeros(GRADIENT.shape[:2], np.uint8)])
HALF = np.dstack([GRADIENT, X * 4]).astype(np.uint8)


def load(data):
    header = read_header(data)
    return load_image(data, header, [(header.height, header.width)], RANGES).pixels[0]


def on_white(pixels):
    """Colour, and alpha of the same depth, as 0 to 255."""
    top = np.iinfo(pixels.dtype).max
    share = pixels[..., -1:] / top
    return (pixels[..., :-1] / top * share + 1 - share) * 255


def bmp_with_alpha(pixels):
    """A BMP of version 4, whose header says where alpha is."""
    height, width = pixels.shape[:2]
    rows = pixels[::-1, :, [2, 1, 0, 3]].tobytes()
    masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    info = struct.pack(
        "<IiiHHIIiiII4I", 108, width, height, 1, 32, 3, len(rows), 0, 0, 0, 0, *masks
    )
    info += b"BGRs" + bytes(48)
    return struct.pack("<2sIHHI", b"BM", 14 + 108 + len(rows), 0, 0, 14 + 108) + info + rows


def grey_png(clear):
    """A PNG of 16-bit grey of which one value is transparent."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in DEEP[..., 0])
    return png(5, 6, 16, 0, rows, chunk(b"tRNS", struct.pack(">H", clear)))


def palette(clear):
    """A picture of two colours, and it as a PNG in which the colours `clear` are transparent."""
    image = Image.fromarray((X > 30).astype(np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    colours = np.array([[10, 20, 30], [40, 50, 60]])[np.asarray(image)]
    transparency = bytes(0 if i in clear else 255 for i in range(2))
    return colours, encode(image, "PNG", transparency=transparency)


def frames(format_, **options):
    other = Image.fromarray(GRADIENT[::-1])
    return encode(GRADIENT, format_, save_all=True, append_images=[other], **options)


def box(brand):
    return struct.pack(">I", 24) + b"ftyp" + brand + bytes(200)


CLEARED = DEEP[2, 3, 0]
TWO, SOME = palette([0])
GREYED = np.where(X[..., None] > 30, TWO, 255)
ANY = GRADIENT.astype(float)
JPEG = encode(GRADIENT, "JPEG", quality=95, subsampling=0)
# encoded once by libheif, which pi-heif cannot
HEIC = (Path(__file__).parent / "gradient.heic").read_bytes()
RAW = "camera [(]{}[)]: develop it to TIFF or JPEG"
NOT_READ = "{} file, which is not read: convert it"

# (format, kind) -> files, each with the pixels that are shown and how far they may be off, or the
# words with which it is refused.
CASES = {
    ("PNG", "8 bits or fewer"): [
        (encode(GRADIENT, "PNG"), ANY, 0),
        (encode(GRADIENT[..., 0] > 99, "PNG"), 255.0 * (GRADIENT[..., :1] > 99), 0),
        (palette([])[1], TWO, 0),
    ],
    ("PNG", "16 bits"): [
        (deep_png(DEEP[..., :3]), DEEP[..., :3] / 257, 1e-3),
        (imagecodecs.png_encode(DEEP[..., 0].copy()), DEEP[..., :1] / 257, 1e-3),
    ],
    ("PNG, WebP, TGA, BMP, GIF", "alpha that varies"): [
        (encode(HALF, "PNG"), on_white(HALF), 1),
        (encode(HALF[..., [0, 3]], "PNG"), on_white(HALF[..., [0, 3]]), 1),
        (deep_png(DEEP), on_white(DEEP), 1e-2),
        (imagecodecs.png_encode(DEEP[..., [0, 3]].copy()), on_white(DEEP[..., [0, 3]]), 1e-2),
        (grey_png(CLEARED), np.where(DEEP[..., :1] != CLEARED, DEEP[..., :1] / 257, 255), 1e-3),
        (SOME, GREYED, 0),
        (encode(HALF, "WEBP", lossless=True, exact=True), on_white(HALF), 1),
        (encode(HALF, "TGA"), on_white(HALF), 1),
        (bmp_with_alpha(HALF), on_white(HALF), 1),
    ],
    ("PNG, WebP, TGA, BMP, GIF", "alpha that is the same everywhere"): [
        (encode(CLEAR, "PNG"), ANY, 0),
        (encode(CLEAR[..., [0, 3]], "PNG"), ANY[..., :1], 0),
        (deep_png(DEEP * np.uint16([1, 1, 1, 0])), DEEP[..., :3] / 257, 1e-3),
        (imagecodecs.png_encode(DEEP[..., :2] * np.uint16([1, 0])), DEEP[..., :1] / 257, 1e-3),
        (palette([0, 1])[1], TWO, 0),
        (encode(CLEAR, "WEBP", lossless=True, exact=True), ANY, 0),
        (encode(CLEAR, "TGA"), ANY, 0),
        (bmp_with_alpha(CLEAR), ANY, 0),
    ],
    ("PNG, GIF, WebP, AVIF", "several frames"): [
        (frames("PNG"), ANY, 0),
        (frames("WEBP", lossless=True), ANY, 0),
        (frames("GIF"), ANY, 40),
        (frames("AVIF", quality=100), ANY, 12),
    ],
    ("JPEG", "grey, YCbCr, CMYK"): [
        (JPEG, ANY, 12),
        (encode(GRADIENT[..., 0], "JPEG", quality=95), ANY[..., :1], 12),
        (encode(Image.fromarray(GRADIENT).convert("CMYK"), "JPEG", quality=95), ANY, 12),
    ],
    ("BMP, TGA, PPM, JPEG 2000, AVIF and what else Pillow reads", "8 bits"): [
        (encode(GRADIENT, "BMP"), ANY, 0),
        (encode(GRADIENT, "TGA"), ANY, 0),
        (encode(GRADIENT, "PPM"), ANY, 0),
        (encode(GRADIENT, "JPEG2000", irreversible=False), ANY, 0),
        (encode(GRADIENT, "AVIF", quality=100, subsampling="4:4:4"), ANY, 12),
    ],
    ("PPM, JPEG 2000", "16 bits: grey is kept, colours are cut to 8"): [
        (imagecodecs.jpeg2k_encode(DEEP[..., 0].copy(), level=0), DEEP[..., :1] / 257, 1e-3),
        (imagecodecs.jpeg2k_encode(DEEP[..., :3].copy(), level=0), DEEP[..., :3] / 257, 2),
        (b"P6 5 6 65535\n" + DEEP[..., :3].astype(">u2").tobytes(), DEEP[..., :3] / 257, 1),
    ],
    ("HEIC", "with `patchcluster[heic]`"): [
        (HEIC, ANY, 24),
    ],
    ("DNG, NEF, CR2, CR3, ARW, ORF, RW2, RAF", "raw pictures of cameras"): [
        (b"II*\0\x10\0\0\0CR\2\0" + bytes(200), RAW.format("CR2")),
        (box(b"crx "), RAW.format("CR3")),
        (b"IIRO\x08\0\0\0" + bytes(200), RAW.format("ORF")),
        (b"IIU\0\x18\0\0\0" + bytes(200), RAW.format("RW2")),
        (b"FUJIFILMCCD-RAW 0201" + bytes(200), RAW.format("RAF")),
    ],
    (
        "JPEG XL, DICOM, FITS, OpenEXR, Radiance HDR, HDF5, GRIB, GIMP, colour PFM, PDF, "
        "PostScript, SVG, metafiles",
        "all",
    ): [
        (imagecodecs.jpegxl_encode(GRADIENT), NOT_READ.format("JPEG XL")),
        (imagecodecs.jpegxl_encode(GRADIENT, usecontainer=True), NOT_READ.format("JPEG XL")),
        (bytes(128) + b"DICM" + bytes(200), NOT_READ.format("DICOM")),
        (f"{'SIMPLE  =                    T':80}".encode() * 36, NOT_READ.format("FITS")),
        (b"v/1\x01\2\0\0\0" + bytes(200), NOT_READ.format("OpenEXR")),
        (b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n", NOT_READ.format("Radiance HDR")),
        (b"#?RGBE\n", NOT_READ.format("Radiance HDR")),
        (b"\x89HDF\r\n\x1a\n" + bytes(200), NOT_READ.format("HDF5")),
        (b"GRIB" + bytes(200), NOT_READ.format("GRIB or BUFR")),
        (b"gimp xcf v011\0" + bytes(200), NOT_READ.format("GIMP")),
        (b"PF\n8 8\n-1.0\n" + bytes(768), NOT_READ.format("colour PFM")),
        (b"%PDF-1.7\n" + bytes(200), "PDF file: save its pages as images"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", NOT_READ.format("PostScript")),
        (b"\xd7\xcd\xc6\x9a" + bytes(200), NOT_READ.format("Windows metafile")),
        (b"<?xml version='1.0'?>\n<!-- a --><svg width='9'/>", NOT_READ.format("SVG")),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", NOT_READ.format("SVG")),
    ],
    ("MP4, MOV, MKV, WebM, AVI, MPEG", "video"): [
        (box(b"isom"), "video: save its frames as images"),
        (box(b"qt  "), "video: save its frames as images"),
        (b"\x1aE\xdf\xa3" + bytes(200), "video: save its frames as images"),
        (b"RIFF\0\1\0\0AVI LIST" + bytes(200), "video: save its frames as images"),
        (b"\0\0\1\xba" + bytes(200), "video: save its frames as images"),
    ],
    ("PNG, JPEG, GIF, WebP, PSD, ...", "no readable header, or a kind that Pillow does not know"): [
        (encode(GRADIENT, "PNG")[:20], "damaged"),
        (JPEG[:10], "damaged"),
        (encode(GRADIENT, "WEBP")[:14], "^WebP file without a readable header"),
        (HEIC[:300], "HEIC file without a readable header"),
        (b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 9, 9, 16, 3) + bytes(99), "^PSD file"),
    ],
    ("anything else", "text, archives, programs"): [
        (b"no image at all", "not an image"),
        (b"<!doctype html><html><body><svg/></body></html>", "not an image"),
        (b"PK\x03\x04" + bytes(200), "not an image"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=f"{name}-{kind}")
        for (name, kind), all_ in CASES.items()
        for case in all_
    ],
)
def test_what_happens_to_a_file(case):
    data, expected, *margin = case
    if isinstance(expected, str):
        with pytest.raises(UnreadableImage, match=expected):
            load(data)
        return
    found = load(data)
    np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), atol=margin[0])


@pytest.mark.parametrize("format_", ["PNG", "WEBP", "GIF", "AVIF"])
def test_several_frames_are_known(format_):
    assert read_header(frames(format_)).several
    assert not read_header(encode(GRADIENT, format_)).several


def test_a_damaged_second_frame_leaves_the_first():
    data = frames("GIF")
    assert np.isfinite(load(data[: len(data) * 3 // 5])).all()


def test_heic_without_its_package_says_which(monkeypatch):
    monkeypatch.setitem(sys.modules, "pi_heif", None)
    for brand in (b"heic", b"heix", b"mif1"):
        with pytest.raises(UnreadableImage, match=r"HEIC .*pip install 'patchcluster\[heic\]'"):
            load(box(brand))


def test_a_heic_whose_pixels_are_not_of_the_size_of_its_header():
    at = HEIC.index(b"clap") + 4  # the part that is shown: width, height and place as fractions
    assert struct.unpack_from(">4i", HEIC, at) == (64, 1, 48, 1)
    wider = HEIC[:at] + struct.pack(">i", 66) + HEIC[at + 4 :]
    with pytest.raises(UnreadableImage, match=r"damaged image: 64 x 48 pixels, .* says 66 x 48"):
        load(wider)


def test_the_page_has_a_row_for_each_case_and_no_other():
    table = PAGE.read_text().split("## TIFF")[0]
    rows = re.findall(r"^\| (.+?) \| (.+?) \| .+ \|$", table, re.MULTILINE)
    assert [row for row in rows if row[0] not in ("format", "---")] == list(CASES)
