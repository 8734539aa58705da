"""Formats that are known by the beginning of a file: what is not read, and what to do about it."""

import re

from ..errors import UnreadableImage

HEAD = 1024  # bytes that tell a format
_CAMERA = "raw picture of a camera ({}): develop it to TIFF or JPEG first"
_CONVERT = "{} file, which is not read: convert it to PNG or TIFF first"
_NOT_READ = [  # beginning, name, what to say
    (rb"II\*\0....CR", "CR2", _CAMERA),
    (rb"....ftypcrx", "CR3", _CAMERA),
    (rb"IIR[OS]|MMOR", "ORF", _CAMERA),
    (rb"IIU\0", "RW2", _CAMERA),
    (rb"FUJIFILMCCD-RAW", "RAF", _CAMERA),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "JPEG XL", _CONVERT),
    (rb".{128}DICM", "DICOM", _CONVERT),
    (rb"SIMPLE  =", "FITS", _CONVERT),  # Pillow takes its numbers for little-endian
    (rb"v/1\x01", "OpenEXR", _CONVERT),
    (rb"#\?(RADIANCE|RGBE)", "Radiance HDR", _CONVERT),
    (rb"\x89HDF", "HDF5", _CONVERT),
    (rb"GRIB|BUFR", "GRIB or BUFR", _CONVERT),
    (rb"gimp xcf", "GIMP", _CONVERT),
    (rb"PF\s", "colour PFM", _CONVERT),
    (rb"%PDF", "PDF", "{} file: save its pages as images first"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "PostScript", _CONVERT),
    (rb"\xd7\xcd\xc6\x9a|\x01\0\0\0.{36} EMF", "Windows metafile", _CONVERT),
    (rb"(\xef\xbb\xbf)?\s*(<(\?xml|!--|!DOCTYPE svg).*)?<svg\b", "SVG", _CONVERT),
    (
        rb"....ftyp(?!avi[fs]|he[iv]|mif1|msf1)|\x1aE\xdf\xa3|RIFF....AVI |\0\0\x01[\xb3\xba]",
        "video", "{}: save its frames as images first",
    ),
]  # fmt: skip
_HEIC = rb"....ftyp(he[iv]|(mif1|msf1)(?!.{,40}avi[fs]))"
_READ = [  # of which a file may be damaged, or of a kind that Pillow does not know
    (rb"\x89PNG", "PNG"),
    (rb"\xff\xd8\xff", "JPEG"),
    (rb"GIF8", "GIF"),
    (rb"RIFF....WEBP", "WebP"),
    (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "JPEG 2000"),
    (rb"8BPS", "PSD"),
    (rb"DDS ", "DDS"),
    (rb"BM", "BMP"),
    (_HEIC, "HEIC"),
    (rb"....ftyp(avi[fs]|mif1|msf1)", "AVIF"),
]


def prepare(head: bytes) -> None:
    """Have Pillow read the format that a file begins with, if that takes another package.

    Raises UnreadableImage with the name of a format that is not read, and what to do.
    """
    for beginning, name, words in _NOT_READ:
        if _begins(head, beginning):
            raise UnreadableImage(words.format(name))
    if _begins(head, _HEIC):
        try:
            import pi_heif
        except ImportError as error:
            raise UnreadableImage("HEIC file: pip install 'patchcluster[heic]' reads it") from error
        pi_heif.register_heif_opener()


def describe(head: bytes) -> str:
    """Say why Pillow cannot tell what a file is, by its first HEAD bytes."""
    name = next((name for beginning, name in _READ if _begins(head, beginning)), None)
    if name is None:
        return "not an image, or of a format that is not known"
    return f"{name} file without a readable header: damaged, or of a kind that is not read"


def _begins(head: bytes, beginning: bytes) -> bool:
    return re.match(beginning, head, re.DOTALL) is not None
