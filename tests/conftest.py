from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import patchcluster
from patchcluster.runs import Run

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


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run on 8 small images; the last one, part7.png, has a blot. Do not change it."""
    root = tmp_path_factory.mktemp("small")
    write_set(root / "images")
    return patchcluster.scan(root / "images", root / "run", size=(128,))


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)
