"""Look for files that break the reading of images: damaged versions of those that the tests draw.

    python tools/fuzz.py [--minutes 10] [--seed 0] [--workers 2] [--keep FOLDER]

File number n of a seed is always the same. Each is read by read_header and load_image in a process
that is watched from outside, by /proc of Linux. Kept in the folder, and printed, is every file that
- ends its process (a signal), takes over 10 seconds, or over 1 GiB of memory;
- raises anything else than InputError, or an InputError whose reason has several lines, or comes
  from an error in a line of this package rather than of a decoder;
- is given pixels that are not finite, not within 0 to 255, or not of the size in its header;
- is a JPEG, PNG or TIFF that was cut within its pixels, and was read all the same.

Then the exit status is 1. The last lines count the files that were read and refused, by format.
"""

import argparse
import io
import itertools
import multiprocessing
import os
import re
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from numpy.random import Generator
from PIL import Image, UnidentifiedImageError

from patchcluster.errors import InputError
from patchcluster.images.decode import load_image, read_header
from patchcluster.images.formats import HEAD, prepare
from patchcluster.images.tiff import TiffImage, is_tiff
from patchcluster.images.window import choose_windows

TESTS = Path(__file__).parents[1] / "tests"
PACKAGE = str(Path("src", "patchcluster"))
SAYING = (zlib.error, UnidentifiedImageError)  # errors that say what is wrong with a file
SECONDS, MEMORY = 10, 1 << 30
MAX_PIXELS = 1 << 24  # a float64 image of so many, with alpha, takes most of MEMORY
SLACK = 16  # bytes at the end of pixels that may be checksums and padding
PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
ODD = [*range(10), 16, 32, 64, 255, 256, 999, 32767, 65535, 2**31 - 1, 2**32 - 1]
CUT = "cut within the pixels"


def draw_files() -> list[list[bytes]]:
    """Draw what the tests read, in groups that are damaged equally often."""
    sys.path[:0] = [str(TESTS), str(TESTS / "images")]
    import test_formats
    import test_jpeg
    import test_tiff

    from faults.decoding import make_cases

    layouts, modes = [], []
    for type_, samples in itertools.product(test_tiff.TYPES, (1, 3, 4)):
        for options in test_tiff.layouts(samples, type_):
            values = test_tiff.draw(type_, samples)
            if options["planarconfig"] == "separate":
                values = np.ascontiguousarray(np.moveaxis(values, -1, 0))
            colours = {"photometric": "minisblack" if samples == 1 else "rgb"}
            layouts.append(test_tiff.write(values, **options, **colours))
    for compression, names in test_tiff.MODES.items():
        for mode in set(names) - {"LA", "LAB", "RGBX"}:  # to which Pillow does not convert
            picture = Image.fromarray(test_tiff.draw("u1", 3)).convert(mode)
            modes.append(test_formats.encode(picture, "TIFF", compression=compression))
    rows = [[data for data, *_ in row] for row in test_formats.CASES.values() if len(row[0]) == 3]
    refused = [data for row in test_formats.CASES.values() for data, *rest in row if len(rest) == 1]
    hostile = [case.data for case in make_cases() if len(case.data) < 1 << 20]
    jpegs = list(test_jpeg.FILES.values())
    return [*rows, refused, hostile, hostile, layouts, layouts, modes, jpegs]


def name_format(data: bytes) -> str:
    """Name the format of a file that is not damaged."""
    try:
        prepare(data[:HEAD])
        return "TIFF" if is_tiff(data) else str(Image.open(io.BytesIO(data)).format)
    except Exception:
        return "not read"


# --- damage ---------------------------------------------------------------------------------------


def damage(rng: Generator, data: bytes, other: bytes) -> tuple[bytes, str]:
    """Damage a file, by parts of another or without; say how, CUT if it must be refused."""
    if rng.random() < 0.15:
        return cut(rng, data)
    ways = rng.choice(
        ["flip", "zero", "drop", "insert", "swap", "head", "tag", "tag"], rng.integers(1, 4)
    )
    for way in ways:
        start, middle, end = sorted(int(at) for at in rng.integers(len(data) + 1, size=3))
        short = data[start : start + int(2 ** rng.uniform(0, 12))]
        match way:
            case "flip":
                bits = np.unpackbits(np.frombuffer(data, np.uint8))
                bits[rng.integers(len(bits), size=int(2 ** rng.uniform(0, 5))) if data else []] ^= 1
                data = np.packbits(bits).tobytes()
            case "zero":
                data = data[:start] + bytes(len(short)) + data[start + len(short) :]
            case "drop":
                data = data[:start] + data[start + len(short) :]
            case "insert":
                data = data[:start] + rng.bytes(len(short)) + data[start:]
            case "swap":
                data = data[:start] + data[middle:end] + data[start:middle] + data[end:]
            case "head":
                size = int(2 ** rng.uniform(2, 10))
                data = other[:size] + data[size:]
            case "tag":
                data = change_number(rng, data)
    if rng.random() < 0.5:
        data = mend_checksums(data)
    return data, ", ".join(ways)


def cut(rng: Generator, data: bytes) -> tuple[bytes, str]:
    """Cut a file; half of the JPEGs are given an end again."""
    at = int(rng.integers(len(data) + 1))
    how = CUT if at < find_pixels_end(data) - SLACK else "cut"
    if data.startswith(JPEG) and rng.random() < 0.5:
        return data[:at].rstrip(b"\xff") + b"\xff\xd9", how
    return data[:at], how


def find_pixels_end(data: bytes) -> int:
    """Find where the pixels of a JPEG, PNG or TIFF end; 0 of others, and of damaged ones."""
    try:
        if data.startswith(JPEG):
            return data.index(b"\xff\xd9", data.index(b"\xff\xda"))
        if data.startswith(PNG):
            return max(end for start, end in list_chunks(data) if data[start + 4 :][:4] == b"IDAT")
        page = TiffImage.open(io.BytesIO(data)).page
        return max(map(sum, zip(page.dataoffsets, page.databytecounts, strict=True)))
    except Exception:
        return 0


def list_chunks(png: bytes) -> Iterator[tuple[int, int]]:
    """List where the chunks of a PNG begin, and where their contents end."""
    at = len(PNG)
    while at + 8 <= len(png):
        end = at + 8 + int.from_bytes(png[at : at + 4], "big")
        yield at, end
        at = end + 4


def mend_checksums(data: bytes) -> bytes:
    """Let the checksums of a PNG be right, so that more than they is tried."""
    mended = bytearray(data)
    for start, end in list_chunks(data) if data.startswith(PNG) else ():
        if end + 4 <= len(data):
            struct.pack_into(">I", mended, end, zlib.crc32(mended[start + 4 : end]))
    return bytes(mended)


def change_number(rng: Generator, data: bytes) -> bytes:
    """Give a number another value: of a TIFF in a tag, of a PNG in a chunk, else in the header."""
    order, places = "<" if data[:2] == b"II" else ">", [(0, min(64, len(data)))]
    if is_tiff(data) and len(data) > 16:
        big = 43 in data[2:4]
        start = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)[0]
        size = 20 if big else 12
        places = [(start + 2 + i * size, start + 8 + (i + 1) * size) for i in range(15)]
    elif data.startswith(PNG):
        places = [(start + 8, end) for start, end in list_chunks(data)]
    start, end = places[rng.integers(len(places))] if places else (0, 0)
    form, value = order + str(rng.choice(["B", "H", "I"])), int(rng.choice(ODD))
    size = struct.calcsize(form)
    at = min(start + int(rng.integers(max(1, end - start - size))), len(data))
    number = struct.pack(form, value & (1 << 8 * size) - 1)
    return mend_checksums(data[:at] + number + data[at + size :])


# --- reading --------------------------------------------------------------------------------------


def read(data: bytes) -> tuple[str, str]:
    """Read a file; return "read", "refused" or what is wrong, and more words about it."""
    try:
        header = read_header(data, MAX_PIXELS)
        size = (header.height, header.width)
        pixels = load_image(data, header, [size], choose_windows([header.spread])).pixels[0]
    except InputError as error:
        words = str(error)
        if "while the scan" in words:
            return "another size", words
        cause = error.__cause__
        own = cause and PACKAGE in traceback.extract_tb(cause.__traceback__)[-1].filename
        if own and not isinstance(cause, SAYING):
            return "stumble", "".join(traceback.format_exception(cause))
        return "long reason" if "\n" in words else "refused", words
    except Exception:
        return "another error", traceback.format_exc()
    if pixels.shape != (*size, 3):
        return "another size", f"{pixels.shape} of {size}"
    good = np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= 255
    return "read" if good else "bad pixels", f"{size}, {header.depth}"


def work(files: Connection) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # warnings of libraries in C
    warnings.simplefilter("ignore")
    while True:
        files.send(read(files.recv_bytes()))


class Worker:
    """A process that reads files, watched from outside, and started again when it ends."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()

    def judge(self, data: bytes) -> tuple[str, str]:
        """Have a file read: what `read` returns, or what became of the process."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")  # forget the peak of memory
        before, end, wrong = self.memory(), time.monotonic() + SECONDS, ""
        self.pipe.send_bytes(data)
        while not wrong and not self.pipe.poll(0.1):
            too_much = self.memory() - before > 4 * MEMORY  # else it may end, and say what it read
            wrong = f"over {SECONDS} s" if time.monotonic() > end else "over 1 GiB" * too_much
        try:
            if wrong:
                self.process.kill()
            found = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode
            self.start()
            return wrong or "crash", f"exit code {code}"
        grown = self.memory() - before
        return ("over 1 GiB", f"{grown >> 20} MB, {found}") if grown > MEMORY else found

    def memory(self) -> int:
        """Peak of the process's memory in bytes, 0 if it has ended."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        peak = re.search(r"VmHWM:\s+(\d+)", status)
        return int(peak[1]) << 10 if peak else 0


def run(
    numbers: Iterator[int], options: argparse.Namespace, groups: list[list[bytes]]
) -> Counter[tuple[str, str]]:
    """Read damaged files until the time is over; count them by format and outcome."""
    counts: Counter[tuple[str, str]] = Counter()
    worker, end = Worker(), time.monotonic() + 60 * options.minutes
    while time.monotonic() < end:
        number = next(numbers)
        rng = np.random.default_rng((options.seed, number))
        chosen = [groups[i] for i in rng.integers(len(groups), size=2)]
        data, other = (group[rng.integers(len(group))] for group in chosen)
        damaged, how = damage(rng, data, other)
        outcome, words = worker.judge(damaged)
        outcome = CUT if (outcome, how) == ("read", CUT) else outcome
        counts[name_format(data), outcome] += 1
        if outcome not in ("read", "refused"):
            options.keep.mkdir(exist_ok=True)
            (options.keep / f"{number}-{outcome.replace(' ', '-')}").write_bytes(damaged)
            print(f"{number}: {outcome}, {name_format(data)} ({how}): {words}", flush=True)
    return counts


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir(), "fuzz-findings"))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    groups, numbers = draw_files(), itertools.count()
    with ThreadPoolExecutor(options.workers) as threads:
        jobs = [threads.submit(run, numbers, options, groups) for _ in range(options.workers)]
        counts = sum((job.result() for job in jobs), Counter())
    for name in sorted({name for name, _ in counts}):
        print(f"{name}: {counts[name, 'read']} read, {counts[name, 'refused']} refused")
    found = sum(n for (_, kind), n in counts.items() if kind not in ("read", "refused"))
    print(f"{counts.total()} files, {found} findings, kept in {options.keep}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
