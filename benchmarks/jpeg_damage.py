"""How much damage inside of JPEG files is found, by kind.

    python benchmarks/jpeg_damage.py [IMAGE...]

Each image (without any: two drawn ones) is written as baseline and progressive JPEG, with all and
with a quarter of the colours, grey and with restart markers, and damaged behind the header. Damage
is visible if over 0.5 % of the pixels differ by more than 8 of 255 from those of the whole file.
"""

import io
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from patchcluster.errors import UnreadableImage
from patchcluster.images.decode import load_image, read_header

REPEATS = 8
KINDS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "all colours": {"subsampling": 0, "quality": 90},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_rows": 1},
}
END = b"\xff\xd9"
Random = np.random.Generator
Fill = Callable[[int], bytes]


def draw(seed: int) -> Image.Image:
    """Draw a picture of blobs of all sizes and some noise, 480 x 640."""
    random = np.random.default_rng(seed)
    picture = np.zeros((480, 640, 3))
    for side in (4, 15, 60, 240):
        blobs = random.integers(0, 255, (side * 3 // 4, side, 3), dtype=np.uint8)
        picture += np.asarray(Image.fromarray(blobs).resize((640, 480), Image.Resampling.BICUBIC))
    return Image.fromarray(np.uint8(picture / 4 + random.normal(0, 3, picture.shape)))


def write(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **{"quality": 80, **options})
    return buffer.getvalue()


def read(data: bytes) -> NDArray[np.int64] | None:
    """Read a file as a scan does, int64 [height, width, 3]; None: it is refused."""
    try:
        header = read_header(data)
        loaded = load_image(data, header, [(header.height, header.width)], {})
    except UnreadableImage:
        return None
    return loaded.pixels[0].astype(np.int64)


def read_by_pillow(data: bytes) -> NDArray[np.int64] | None:
    try:
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(np.int64)
    except Exception:  # damaged files make it raise almost anything
        return None


def flip(data: bytes, start: int, random: Random, bits: int) -> bytes:
    changed = bytearray(data)
    for place in random.integers(start, len(data) - 2, bits):
        changed[place] ^= 1 << random.integers(8)
    return bytes(changed)


def replace(data: bytes, start: int, random: Random, size: int, by: Fill) -> bytes:
    place = int(random.integers(start, len(data) - 2 - size))
    return data[:place] + by(size) + data[place + size :]


def damage(data: bytes, random: Random) -> Iterator[tuple[str, bytes]]:
    """Damage a file in each way once."""
    start = data.index(b"\xff\xda") + 20  # behind the header of the first scan
    cut = data[: int(random.uniform(start, len(data) - 200))]
    yield "cut", cut
    yield "cut, with an end marker", cut + END
    yield "zeros to the end", cut + bytes(len(data) - len(cut))
    for bits in (1, 3, 10, 100):
        yield f"bits flipped: {bits}", flip(data, start, random, bits)
    for size in (64, 512, 4096):
        yield f"bytes zeroed: {size}", replace(data, start, random, size, bytes)
    yield "random bytes: 512", replace(data, start, random, 512, random.bytes)
    for size in (1, 16, 512):
        yield f"bytes lost: {size}", replace(data, start, random, size, lambda _: b"")


def is_visible(shown: NDArray[np.int64] | None, whole: NDArray[np.int64]) -> bool:
    if shown is None or shown.shape != whole.shape:
        return True
    return float((abs(shown - whole) > 8).any(2).mean()) > 0.005


def main() -> None:
    images = [Image.open(path).convert("RGB") for path in sys.argv[1:]] or [draw(0), draw(1)]
    files = [write(image, **options) for image in images for options in KINDS.values()]
    files += [write(image.convert("L")) for image in images]
    random = np.random.default_rng(0)
    found: dict[str, list[tuple[bool, bool]]] = {}  # whether visible, whether refused
    for data in files * REPEATS:
        whole = read(data)
        assert whole is not None, "a good file is refused"
        for kind, bad in damage(data, random):
            shown = read_by_pillow(bad)
            found.setdefault(kind, []).append((is_visible(shown, whole), read(bad) is None))
    print("damage | files | found | of the visible")
    for kind, cases in found.items():
        visible, refused = np.array(cases).T
        print(f"{kind} | {len(cases)} | {refused.mean():.0%} | {refused[visible].mean():.0%}")


if __name__ == "__main__":
    main()
