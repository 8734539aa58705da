"""Files that are hard to read, each made here, with what a scan must make of it."""

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, ImageCms, PngImagePlugin, TiffImagePlugin

from conftest import exif_of, textured_image
from patchcluster.images.raster import encode
from png_files import chunk, deep_png, png

SIDE = 96


@dataclass(frozen=True)
class Case:
    """A file and what becomes of it: scored, or skipped for a reason that has these words."""

    name: str
    data: bytes
    reason: str = ""  # "": it is scored
    size: tuple[int, int] = (SIDE, SIDE)  # (width, height) as shown, if it is scored


def make_cases() -> list[Case]:
    """All cases; their names are file names, each once."""
    cases = [case for make in MAKERS for case in make()]
    assert len({case.name for case in cases}) == len(cases)
    return cases


def picture(seed: int = 1, width: int = SIDE, height: int = SIDE) -> Image.Image:
    return Image.fromarray(textured_image(seed, width, height))


# --- what is no image, or only a part of one ------------------------------------------------------


def broken() -> list[Case]:
    whole, jpeg = encode(picture(), "PNG"), encode(picture(), "JPEG")
    tiff, gif = encode(picture(), "TIFF"), encode(picture().convert("P"), "GIF")
    noise = encode(picture().convert("L"), "PNG")
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    return [
        Case("empty.png", b"", "empty file"),
        Case("one-byte.png", b"\x89", "not an image"),
        Case("text.jpg", b"no image at all", "not an image"),
        Case("page.png", b"<!doctype html><html><body>404</body></html>", "not an image"),
        Case("drawing.svg", b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG file"),
        Case("archive.png", b"PK\x03\x04" + bytes(200), "not an image"),
        Case("pickle.png", b"\x80\x04\x95" + bytes(100), "not an image"),
        Case("signature.png", whole[:8], "not an image|damaged"),
        Case("header.png", whole[:33], "damaged|not an image"),
        Case("truncated.png", whole[: len(whole) // 2], "damaged"),
        Case("truncated.jpg", jpeg[: len(jpeg) // 2], "damaged"),
        Case("truncated.tif", tiff[: len(tiff) // 2], "damaged|not an image"),
        Case("truncated.gif", gif[: len(gif) // 2], "damaged"),
        Case("truncated.webp", encode(picture(), "WEBP")[:300], "damaged|not an image"),
        Case("flipped.png", bytes(flipped), "damaged"),
        Case("zeroed.png", noise[: len(noise) // 2] + bytes(len(noise) // 2), "fit their checksum"),
        Case("no-end.png", png(SIDE, SIDE, 8, 0, bytes(SIDE * (SIDE + 1)))[:-20]),  # all pixels
        Case("few-rows.png", png(SIDE, SIDE, 8, 0, bytes(10 * (SIDE + 1))), "damaged"),
        Case("no-size.png", png(0, 0, 8, 0, b""), "damaged|not an image"),
        Case("odd-depth.png", png(8, 8, 3, 2, bytes(400)), "damaged|not an image"),
        Case("noise.bmp", b"BM" + bytes(range(256)), "damaged|not an image"),
    ]


def bombs() -> list[Case]:
    bmp = struct.pack("<2sIHHI", b"BM", 100, 0, 0, 54)
    bmp += struct.pack("<IiiHHIIiiII", 40, 50_000, 50_000, 1, 24, 0, 0, 0, 0, 0, 0)
    gif = b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0x80, 0, 0) + bytes(6)
    gif += b"\x2c" + struct.pack("<HHHHB", 0, 0, 65_535, 65_535, 0) + b"\x02\x02\x4c\x01\x00\x3b"
    text = png(SIDE, SIDE, 8, 0, bytes(SIDE * (SIDE + 1)), chunk(b"zTXt", _text_bomb()))
    return [
        Case("bomb.png", png(50_000, 50_000, 8, 2, b""), "too large"),
        Case("bomb.bmp", bmp, "too large"),
        Case("bomb.gif", gif, "too large"),
        Case("bomb-deep.png", png(50_000, 50_000, 16, 2, b""), "too large"),
        Case("bomb-text.png", text, "damaged|too large"),
    ]


def _text_bomb() -> bytes:
    """Metadata of 100 MB in 100 KB."""
    return b"Comment\0\0" + zlib.compress(bytes(100_000_000), 9)


# --- what is an image, though an unusual one ------------------------------------------------------


def shapes() -> list[Case]:
    reasons = {
        (1, 1): "too small", (1, 5000): "too small", (2, 3): "too small", (200, 3): "too small",
        (20_000, 10): "too long", (10, 2001): "too long",
        (4, 4): "", (8, 1600): "", (640, 8): "", (97, 61): "", (4096, 256): "",
    }  # fmt: skip
    return [
        Case(f"{wide}x{high}.png", encode(picture(2, wide, high), "PNG"), reason, (wide, high))
        for (wide, high), reason in reasons.items()
    ]


def frames() -> list[Case]:
    """The first frame counts."""
    many = [picture(i) for i in (3, 4, 5)]
    options: dict[str, object] = {"save_all": True, "append_images": many[1:]}
    stack = [many[0], picture(4, 40, 30)]
    tiff = encode(stack[0], "TIFF", save_all=True, append_images=stack[1:])
    return [
        Case("animated.gif", encode(many[0].convert("P"), "GIF", **options)),
        Case("animated.webp", encode(many[0], "WEBP", **options)),
        Case("animated.png", encode(many[0], "PNG", **options)),
        Case("pages.tif", tiff),
    ]


def depths() -> list[Case]:
    grey = np.asarray(picture().convert("L")).astype(np.uint16) * 257
    colour = np.asarray(picture()).astype(np.uint16) * 257
    values = np.asarray(picture().convert("L")).astype(np.float32) / 255
    cases = [
        Case("grey16.png", encode(Image.fromarray(grey), "PNG")),
        Case("grey16.tif", encode(Image.fromarray(grey), "TIFF")),
        Case("rgb16.png", deep_png(colour)),
        Case("rgb16.tif", cv2.imencode(".tif", colour[..., ::-1])[1].tobytes()),
        Case("grey32.tif", encode(Image.fromarray(grey.astype(np.int32)), "TIFF")),
        Case("float.tif", encode(Image.fromarray(values), "TIFF")),
        Case("binary.png", encode(picture().convert("1"), "PNG")),
        Case("grey8.jpg", encode(picture().convert("L"), "JPEG")),
        Case("short-rgb16.png", png(SIDE, SIDE, 16, 2, bytes(100)), "damaged"),
    ]
    for name, bad in (("nan", np.nan), ("inf", np.inf), ("minus-inf", -np.inf)):
        changed = values.copy()
        changed[4, 5] = bad
        data = encode(Image.fromarray(changed), "TIFF")
        cases.append(Case(f"{name}.tif", data, "not finite numbers"))
    return cases


def colours() -> list[Case]:
    clear = picture().convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize((SIDE, SIDE)))
    palette = picture().convert("P", palette=Image.Palette.ADAPTIVE)
    return [
        Case("cmyk.jpg", encode(picture().convert("CMYK"), "JPEG")),
        Case("cmyk.tif", encode(picture().convert("CMYK"), "TIFF")),
        Case("ycbcr.tif", encode(picture().convert("YCbCr"), "TIFF")),
        Case("lab.tif", encode(picture().convert("LAB"), "TIFF")),
        Case("rgba.png", encode(clear, "PNG")),
        Case("la.png", encode(clear.convert("LA"), "PNG")),
        Case("palette.png", encode(palette, "PNG")),
        Case("palette-clear.png", encode(palette, "PNG", transparency=3)),
        Case("grey-clear.png", encode(picture().convert("L"), "PNG", transparency=7)),
        Case("palette.gif", encode(palette, "GIF", transparency=3)),
        Case("clear.webp", encode(clear, "WEBP", lossless=True)),
    ]


def containers() -> list[Case]:
    jpeg = encode(picture(), "JPEG")
    big = TiffImagePlugin.ImageFileDirectory_v2(prefix=b"MM")
    return [
        Case("jpeg.png", jpeg),  # by its content, not by its name
        Case("no-extension", jpeg),
        Case("progressive.jpg", encode(picture(), "JPEG", progressive=True)),
        Case("trailing.jpg", jpeg + bytes(1000)),
        Case("trailing.png", encode(picture(), "PNG") + b"<script>alert(1)</script>"),
        Case("lossless.webp", encode(picture(), "WEBP", lossless=True)),
        Case("deflated.tif", encode(picture(), "TIFF", compression="tiff_adobe_deflate")),
        Case("lzw.tif", encode(picture(), "TIFF", compression="tiff_lzw")),
        Case("tagged.tif", encode(picture(), "TIFF", tiffinfo=big)),
        Case("picture.bmp", encode(picture(), "BMP")),
        Case("picture.ppm", encode(picture(), "PPM")),
        Case("picture.tga", encode(picture(), "TGA")),
        Case("picture.jp2", encode(picture(), "JPEG2000")),
    ]


def metadata() -> list[Case]:
    cases = []
    for orientation in range(1, 9):
        exif = exif_of(orientation)
        size = (120, 80) if orientation < 5 else (80, 120)
        image = picture(6, 120, 80)
        for format_, ending in (("JPEG", "jpg"), ("PNG", "png")):
            name = f"turned{orientation}.{ending}"
            cases.append(Case(name, encode(image, format_, exif=exif), "", size))
    odd = exif_of(99)
    text = PngImagePlugin.PngInfo()
    text.add_text("Raw profile type exif", "\nexif\n  9999\nnot hexadecimal")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = b"Exif\0\0II*\0\xff\xff\xff\xff"
    return [
        *cases,
        Case("turned99.jpg", encode(picture(), "JPEG", exif=odd)),
        Case("exif.jpg", encode(picture(), "JPEG", exif=exif)),
        Case("exif.png", encode(picture(), "PNG", pnginfo=text)),
        Case("profile.jpg", encode(picture(), "JPEG", icc_profile=profile[:40])),
        Case("profile.png", encode(picture(), "PNG", icc_profile=bytes(60))),
        Case("resolution.jpg", encode(picture(), "JPEG", dpi=(0, 0))),
    ]


MAKERS: tuple[Callable[[], list[Case]], ...] = (
    broken, bombs, shapes, frames, depths, colours, containers, metadata,
)  # fmt: skip
