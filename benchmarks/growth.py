"""Growth: what an image takes, and a set needs, as the set grows.

    python benchmarks/growth.py [IMAGES...]

Sets of so many drawn parts, by default 50 to 800. Beyond the first 100 they are those again, each
shifted by up to 6 pixels, up to 5 % brighter or darker, with noise of its own, as JPEG. Each scan
is a process of its own, of the default preset; the start of Python and of the libraries,
which is the same for all, is told apart. Then 10 parts more are added to the run, and it is said
how many images of the bank changed with them.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from machine import describe, run_command
from PIL import Image

from patchcluster import load_run
from patchcluster.demo import write_parts
from patchcluster.pipeline.image_set import ImageSet
from patchcluster.pipeline.loading import load_method

SIZES = (50, 100, 200, 400, 800)
DRAWN = 100
ADDED = 10
_SHIFT, _LIGHT, _NOISE = 6, 0.05, 2.0


def write_many(folder: Path, count: int) -> list[Path]:
    """Write so many parts, of which one in ten is defective, and return their paths."""
    drawn = write_parts(folder, good=DRAWN * 9 // 10, defective=DRAWN // 10)
    parts = [np.asarray(Image.open(path).convert("RGB")) for path in drawn]
    order = np.random.default_rng(0).permutation(DRAWN)
    paths = []
    for number in range(count):
        rng = np.random.default_rng([1, number])
        part = parts[order[number % DRAWN]]
        if number >= DRAWN:
            part = np.roll(part, rng.integers(-_SHIFT, _SHIFT + 1, 2), (0, 1))
        light = 1 + rng.uniform(-_LIGHT, _LIGHT)
        noisy = part * light + rng.normal(0, _NOISE, (*part.shape[:2], 1))
        paths.append(folder / "many" / f"{number:06d}.jpg")
        paths[-1].parent.mkdir(exist_ok=True)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(paths[-1], quality=92)
    return paths


def link(files: list[Path], folder: Path) -> None:
    folder.mkdir()
    for path in files:
        (folder / path.name).symlink_to(path)


def bank_of(run: Path) -> set[str]:
    """Contents of the images that all are compared with."""
    found = load_run(run)
    contents = ImageSet.of(found.images).shas
    return {contents[image] for image in set(load_method(found).bank_image_.tolist())}


def main() -> None:
    sizes = [int(size) for size in sys.argv[1:]] or list(SIZES)
    print(describe())
    print(
        "images  wall s  start, page s  features ms  compare ms  maps ms  together ms  "
        "predicted s  peak GiB  predicted  MiB an image  update s  of the scan  new in the bank"
    )
    with tempfile.TemporaryDirectory() as work:
        root = Path(work)
        files = write_many(root, max(sizes) + ADDED)
        for size in sizes:
            run, folder, more = (root / f"{name}{size}" for name in ("run", "set", "more"))
            link(files[:size], folder)
            link(files[size : size + ADDED], more)
            result = run_command("scan", folder, "-o", run)
            bank = bank_of(run)
            update = run_command("update", run, "--add", more)["wall"]
            changed = len(bank_of(run) - bank)
            shutil.rmtree(run)
            count, seconds, memory = result["images"], result["seconds"], result["memory"]
            start = result["wall"] - sum(seconds.values()) + seconds["network"]  # and the page
            steps = [seconds[step] for step in ("features", "compare", "maps")]
            each = [1e3 * spent / count for spent in (*steps, sum(steps))]
            print(
                f"{count:6} {result['wall']:7.1f} {start:14.1f} "
                f"{each[0]:12.1f} {each[1]:11.1f} {each[2]:8.1f} {each[3]:12.1f} "
                f"{sum(result['predicted_seconds'].values()):12.1f} "
                f"{memory['peak'] / 2**30:9.2f} {memory['predicted'] / 2**30:10.2f} "
                f"{memory['peak'] / 2**20 / count:13.1f} "
                f"{update:9.1f} {update / result['wall']:12.1%} {changed:16}",
                flush=True,
            )


if __name__ == "__main__":
    main()
