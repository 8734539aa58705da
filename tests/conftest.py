import functools
import itertools
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

import patchcluster
from faults.watching import die, watch
from patchcluster import Scorer, benchmark, cli, report
from patchcluster.network import backbones
from patchcluster.network import weights as weights_of
from patchcluster.pipeline import forecast, job, loading
from patchcluster.runs.run import Run

pytest.register_assert_rewrite("page_reader")

PATIENCE = 300.0  # seconds that what must come about may take, however much else runs
SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real images with masks, which lie beside the repository on some machines only."""
    if not SHARED.is_dir():
        pytest.skip("the real images of ../shared/data are not on this machine")
    return SHARED


def textured_image(seed: int, width: int = 96, height: int = 96, blot: bool = False) -> np.ndarray:
    """A brick-like pattern with noise, uint8 [height, width, 3]; `blot`: with a dark disc."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    pattern = 128 + 50 * np.sign(np.sin(x / 4 + rng.uniform(0, 6)) * np.sin(y / 7))
    image = np.stack([pattern, pattern * 0.9, pattern * 0.8], axis=-1)
    if blot:
        centre = rng.uniform(0.3, 0.7, 2) * (width, height)
        image[(x - centre[0]) ** 2 + (y - centre[1]) ** 2 < (min(width, height) / 8) ** 2] = 20
    return np.clip(image + rng.normal(0, 6, image.shape), 0, 255).astype(np.uint8)


def save_image(path: Path, pixels: np.ndarray, **options: Any) -> Path:
    """Write an array as an image; bool: as a mask of black and white."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if pixels.dtype == bool:
        pixels = pixels * np.uint8(255)
    Image.fromarray(pixels).save(path, **options)
    return path


def exif_of(orientation: int) -> Image.Exif:
    """What a camera says of how it was held, 1 to 8; 6: the picture is shown turned clockwise."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def write_set(folder: Path, count: int = 8, blots: int = 1, size: int = 96) -> list[Path]:
    """Write `count` images of which the last `blots` have a blot."""
    return [
        save_image(folder / f"part{i}.png", textured_image(i, size, size, i >= count - blots))
        for i in range(count)
    ]


def left_half(width: int = 96, height: int = 96) -> np.ndarray:
    """A mask, bool [height, width]."""
    return np.arange(width)[None].repeat(height, 0) < width // 2


def read_files(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of change of all files of a folder, but for the lock of a run."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_mtime_ns) for p in files}


def scan_until(step: str, images: Path | str, out: Path, **given: Any) -> None:
    """Scan, and interrupt it when some of a step is done."""

    def stop(name: str, done: int, _: int) -> None:
        if name == step and done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        patchcluster.scan(images, out, progress=stop, **given)


def pytest_configure() -> None:
    # Whatever a shell script starts in the background ignores SIGINT, and so would all that the
    # tests start and interrupt.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # How long examples take to draw says how much else runs.
    hypothesis.settings.register_profile(
        "any load", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
    )
    hypothesis.settings.load_profile("any load")


def run_command(*words: object) -> Result:
    """The command in this process, which has torch already; what it does not catch is raised."""
    return CliRunner().invoke(cli.app, [*map(str, words)], catch_exceptions=False)


def wait_until(holds: Callable[[], object]) -> None:
    """Wait for what another thread or process does."""
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end, "it has not come about"
        time.sleep(0.01)


@pytest.fixture(scope="session", autouse=True)
def _done_once() -> Iterator[None]:
    """What each scan does anew is done once, since hundreds of small ones are made here.

    How fast this machine searches and draws maps is measured; the networks whose weights are
    installed are built, half of the time of such a scan, and the template of the page is compiled.
    Nobody changes either.
    """
    load = functools.cache(backbones.load_backbone)

    def load_once(name, weights=None, device="cpu", strides=backbones.STRIDES):
        if weights is None and name in weights_of.EMBEDDED and str(device) == "cpu":
            return load(name, strides=tuple(strides))
        return backbones.load_backbone(name, weights, device, strides)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("measure_search", "measure_maps"):
            patch.setattr(forecast, name, functools.cache(getattr(forecast, name)))
        patch.setattr(report, "load_template", functools.cache(report.load_template))
        for module in (job, loading, benchmark):
            patch.setattr(module, "load_backbone", load_once)
        yield


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run on 8 small images; the last one, part7.png, has a blot. Do not change it."""
    root = tmp_path_factory.mktemp("small")
    write_set(root / "images")
    return patchcluster.scan(root / "images", root / "run", size=(128,))


@pytest.fixture(scope="session")
def scorer(small_run: Run) -> Scorer:
    """Scores new images against `small_run`."""
    return Scorer(small_run, device="cpu")


@pytest.fixture(scope="module")  # for longer, its event loop would be in the way of others
def browser() -> Iterator[object]:
    sync_api = pytest.importorskip("playwright.sync_api")
    names = ("chromium", "chromium-browser", "chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip("chromium is not on this machine")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=path,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield started
        started.close()


def cut_batches(
    patch: pytest.MonkeyPatch, pixels: int = 2 * 128 * 128, patches: int = 2 * 8 * 8
) -> None:
    """Let a batch hold so many pixels, or patches to compare: two images of 128 pixels.

    A small set is then cut as a large one is.
    """
    patch.setattr("patchcluster.pipeline.extraction.BATCH_PIXELS", pixels)
    patch.setattr("patchcluster.methods.grids.COMPARED_PATCHES", patches)


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two images of 128 pixels a batch."""
    cut_batches(monkeypatch)


@pytest.fixture
def kill_at_each_change() -> Callable[[Path, Callable[[], object]], Iterator[int]]:
    """Does something in forked processes, of which the n-th dies right before its n-th change below
    a folder. Gives n after each death, until one lives to its end."""
    return _die_again_and_again


def _die_again_and_again(folder: Path, do: Callable[[], object]) -> Iterator[int]:
    for change in itertools.count(1):
        child = os.fork()
        if child == 0:
            _die_before(folder, change)
            try:
                do()
            finally:
                os._exit(int(sys.exc_info()[0] is not None))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == 0:
            return
        assert status == -signal.SIGKILL
        yield change


def _die_before(folder: Path, change: int) -> None:
    left = iter(range(change - 1))
    watch(folder, lambda _: die() if next(left, None) is None else None)


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)
