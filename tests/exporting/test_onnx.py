"""The feature network as ONNX, and the example that scores with it and without torch."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import patchcluster
from conftest import exif_of, textured_image, write_set
from patchcluster.errors import RunError, SettingError
from patchcluster.exporting.onnx import export_backbone, export_network
from patchcluster.network.backbones import Backbone, load_backbone, random_backbone
from patchcluster.network.patches import patch_grid
from patchcluster.runs.run import Run
from patchcluster.settings import resolve

pytest.importorskip("onnx", reason="onnx is not installed: pip install 'patchcluster[onnx]'")
onnxruntime = pytest.importorskip("onnxruntime")

EXAMPLE = Path(__file__).parents[2] / "examples" / "score_with_onnx.py"


@pytest.fixture(scope="module")
def paper_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of the paper's method on images of two shapes."""
    root = tmp_path_factory.mktemp("paper")
    write_set(root / "images", 6)
    Image.fromarray(textured_image(9, 96, 150)).save(root / "images" / "tall.png")
    return patchcluster.scan(root / "images", root / "run", method="patchcluster", size=(64,))


@pytest.fixture(scope="module")
def network(paper_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return patchcluster.export(paper_run, "onnx", tmp_path_factory.mktemp("onnx") / "network.onnx")


def run_network(path: Path, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": images})
    assert isinstance(found, np.ndarray)
    return found


@pytest.mark.parametrize("size", [(32, 32), (64, 224), (288, 96)])
def test_it_gives_the_patches_of_any_size(network: Path, size: tuple[int, int]) -> None:
    images = textured_image(3, size[1], size[0])[None]
    expected = patch_grid(load_backbone()(torch.from_numpy(images)), "fine")[0].numpy()
    found = run_network(network, images)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_it_says_what_it_is_of(paper_run: Run, network: Path) -> None:
    session = onnxruntime.InferenceSession(network)
    about = json.loads(session.get_modelmeta().custom_metadata_map["patchcluster"])
    backbone = paper_run.info.backbone
    assert about == {
        "backbone": "tf_efficientnet_lite0",
        "weights_sha256": backbone["sha256"],
        "layout": "fine",
        "strides": [8, 16],
        "method": "patchcluster",
        "size": [64],
    }
    assert [node.name for node in session.get_inputs()] == ["images"]
    assert [node.name for node in session.get_outputs()] == ["patches"]


@pytest.mark.parametrize(
    ("name", "method", "strides"),
    [
        ("tf_efficientnet_lite0", "patchcluster-plus", (8, 16, 32)),
        ("tf_efficientnet_lite0", "patchcluster-plus", (8,)),
        ("tf_efficientnet_lite0", "musc", (8, 16)),
        ("resnet10t", "patchcluster", (4, 8, 16)),  # not all of its norms are folded
    ],
)
def test_every_layout_can_be_exported(
    tmp_path: Path, name: str, method: str, strides: tuple[int, ...]
) -> None:
    backbone, settings = random_backbone(name, strides=strides), resolve(method=method)
    path = export_backbone(backbone, settings, tmp_path / "network.onnx")
    images = textured_image(4, 96, 64)[None]
    expected = patch_grid(backbone(torch.from_numpy(images)), settings.layout)[0].numpy()
    gap = np.abs(run_network(path, images) - expected).max()
    assert gap < 1e-3 * np.sqrt(np.square(expected).mean())


class Forgetful(Backbone):
    """A network that does something else when it is traced."""

    def compute_stages(self, images: torch.Tensor) -> list[torch.Tensor]:
        stages = super().compute_stages(images)
        return [stage * 1.01 for stage in stages] if torch.jit.is_tracing() else stages


def test_a_file_that_gives_other_patches_is_not_written(tmp_path: Path) -> None:
    forgetful = random_backbone("tf_efficientnet_lite0")
    forgetful.__class__ = Forgetful
    with pytest.raises(SettingError, match="gives other patches of tf_efficientnet_lite0"):
        export_backbone(forgetful, resolve(method="patchcluster"), tmp_path / "network.onnx")
    assert not list(tmp_path.iterdir())


def test_a_network_has_no_flagged_images(paper_run: patchcluster.Run, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="format onnx has no images"):
        patchcluster.export(paper_run, "onnx", tmp_path / "network.onnx", flagged_only=True)
    assert not any(tmp_path.iterdir())


def test_a_network_that_onnx_cannot_hold_is_one_line(tmp_path: Path) -> None:
    vit = random_backbone("vit_tiny_patch16_224")  # its positions are interpolated by the size
    with pytest.raises(SettingError, match="choose another backbone") as caught:
        export_backbone(vit, resolve(method="patchcluster"), tmp_path / "network.onnx")
    assert "\n" not in str(caught.value)


def test_without_onnx_it_says_what_to_install(
    paper_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(RunError, match=r"onnxruntime is not installed.*patchcluster\[onnx\]"):
        export_network(paper_run, tmp_path / "network.onnx")


# --- the example --------------------------------------------------------------------------------


def test_the_example_scores_as_the_product_does_without_torch(
    paper_run: Run, network: Path, tmp_path: Path
) -> None:
    """Images of other shapes than the set's, grey, and turned by EXIF, are resized alike too."""
    paths = write_set(tmp_path / "new", 2, size=140)
    Image.fromarray(textured_image(20, 200, 110, blot=True)).save(tmp_path / "new" / "wide.png")
    grey = Image.fromarray(textured_image(21, 90, 130)[..., 0])
    grey.save(tmp_path / "new" / "turned.jpg", exif=exif_of(6))
    paths += [tmp_path / "new" / "wide.png", tmp_path / "new" / "turned.jpg"]
    blocked = "import runpy, sys; sys.modules |= dict.fromkeys(('torch', 'patchcluster')); "
    run_it = f"{blocked}runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    command = [sys.executable, "-c", run_it, EXAMPLE, paper_run.folder, network, *paths]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [line.rpartition(",") for line in done.stdout.splitlines()]
    found = {path: float(score) for path, _, score in rows}
    expected = {one.path: one.score for one in patchcluster.score(paper_run, paths).images}
    assert found.keys() == expected.keys()
    for path, score in expected.items():
        assert found[path] == pytest.approx(score, rel=1e-3)
