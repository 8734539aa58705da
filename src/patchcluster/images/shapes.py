"""Limits of images: which are read, and what the network sees of them."""

import math

from ..errors import UnreadableImage

STRIDE = 32  # sides of the network's input are multiples of this
LEAST_SIDE = 4  # pixels, of an image
MOST_ASPECT = 200  # at 448 pixels such an image has a network input of one stride by 198
MAX_PIXELS = 178_956_970  # of an image that is read, unless asked otherwise; Pillow's own limit
LARGEST = 3e38  # number of a pixel, about float32's
DECODING_BYTES = 11  # a pixel of an image that is decoded: 5 to 13, of grey or WebP with alpha 17
DEEP_BYTES = 35  # of one of more than 8 bits: 12 to 32, with alpha 49


def network_size(width: int, height: int, size: int) -> tuple[int, int]:
    """Give the network's input (height, width) for an image of width x height.

    About size x size pixels in all, the image's aspect as far as no side is under 32, sides
    multiples of 32: square images become size x size. Images of similar aspect share an input
    size, so that they batch together.
    """
    aspect = math.sqrt(width / height)
    longest = max(1, size * size // STRIDE**2)  # strides, of a side next to one of one stride
    high, wide = (
        STRIDE * min(longest, max(1, round(size * side / STRIDE))) for side in (1 / aspect, aspect)
    )
    return high, wide


def decoding_bytes(width: int, height: int, deep: bool) -> int:
    """Return the memory that it takes to decode an image, about."""
    return width * height * (DEEP_BYTES if deep else DECODING_BYTES)


def check_shape(width: int, height: int, max_pixels: int, deep: bool) -> None:
    """Raise UnreadableImage if an image of width x height cannot be scored sensibly, or read.

    An image is scored if its shorter side has LEAST_SIDE pixels, its longer side is at most
    MOST_ASPECT times as long, and it has no more than `max_pixels`. One of more than MAX_PIXELS is
    decoded as a whole, for which `decoding_bytes` have to be free.
    """
    short, long = sorted((width, height))
    size, pixels = f"{width} x {height} pixels", width * height
    if short < LEAST_SIDE:
        raise UnreadableImage(f"too small: {size}, and no side may be under {LEAST_SIDE}")
    if long > MOST_ASPECT * short:
        raise UnreadableImage(
            f"too long: {size}, and a side may be {MOST_ASPECT} times as long as the other"
        )
    if pixels > max_pixels:
        raise UnreadableImage(
            f"too large: {size} are more than {max_pixels}, which --max-pixels raises"
        )
    free = free_memory() if pixels > MAX_PIXELS else None
    needed = decoding_bytes(width, height, deep)
    if free is not None and needed > free:
        raise UnreadableImage(
            f"too large: {size} need {needed >> 20} MB of memory to be decoded, "
            f"and {free >> 20} MB are free"
        )


def raise_pillow_limit(pixels: int) -> None:
    """Have Pillow open images of so many pixels; its limit is one for the whole process."""
    from PIL import Image  # commands that read no image start without it

    if Image.MAX_IMAGE_PIXELS is not None and pixels > 2 * Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = pixels


def free_memory() -> int | None:
    """Bytes of memory that can be had without swapping; None where the system does not say."""
    try:
        with open("/proc/meminfo") as file:
            free = next(int(line.split()[1]) for line in file if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration):
        return None
    return free * 1024
