import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
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
from patchcluster import cli
from patchcluster.network.backbones import Backbone, random_backbone
from patchcluster.pipeline.costs import GIB
from patchcluster.pipeline.planning import Planner
from patchcluster.pipeline.survey import Regions, survey_files, take_regions
from patchcluster.runs.run import Run
from patchcluster.settings import resolve

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


def write_set(folder: Path, count: int = 8, blots: int = 1, size: int = 96) -> list[Path]:
    """Write `count` images of which the last `blots` have a blot."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"part{i}.png" for i in range(count)]
    for i, path in enumerate(paths):
        Image.fromarray(textured_image(i, size, size, i >= count - blots)).save(path)
    return paths


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


def wait_for_the_hub() -> None:
    """Wait for threads of earlier tests that ask whether the hub can be reached."""
    wait_until(lambda: not any("(_ask)" in thread.name for thread in threading.enumerate()))


@pytest.fixture(scope="session")
def backbone() -> Backbone:
    """The default network without its weights: for plans, never for scores."""
    return random_backbone("tf_efficientnet_lite0", strides=(8, 16, 32))


def make_planner(
    paths: Sequence[Path], backbone: Backbone, mask: Path | None = None, **given: Any
) -> Planner:
    """What a scan of some files with the settings given would plan from."""
    settings = resolve(**given)
    names = [str(path) for path in paths]
    candidates, skipped = survey_files(names, settings, backbone.strides, 1, lambda *_: None)
    assert not skipped
    regions = take_regions(candidates, str(mask)) if mask else Regions(candidates)
    return Planner(regions.candidates, regions, settings, backbone, 2, GIB)


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run on 8 small images; the last one, part7.png, has a blot. Do not change it."""
    root = tmp_path_factory.mktemp("small")
    write_set(root / "images")
    return patchcluster.scan(root / "images", root / "run", size=(128,))


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
