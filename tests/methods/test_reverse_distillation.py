"""Reverse distillation: its formula, and what training makes of drawn stages."""

import numpy as np
import pytest
import torch

from patchcluster.errors import SettingError
from patchcluster.methods import ReverseDistillation
from patchcluster.network.backbones import random_backbone
from patchcluster.network.patches import patch_grid
from references import random_patches


def stage_patches(n=12, seed=0):
    """Patches of three stages of 3, 4 and 5 channels on grids of 8, 4 and 2, all images alike."""
    rng = np.random.default_rng(seed)
    pattern = [rng.normal(size=(c, s, s)) for c, s in ((3, 8), (4, 4), (5, 2))]
    stages = [
        torch.from_numpy((p + 0.1 * rng.normal(size=(n, *p.shape))).astype(np.float32))
        for p in pattern
    ]
    return patch_grid(stages, "stages"), stages


STAGES = {"stages": (3, 4, 5), "strides": (4, 8, 16)}


def test_reverse_distillation_is_the_sum_of_cosine_distances_over_the_stages():
    patches, stages = stage_patches()
    method = ReverseDistillation(epochs=2, **STAGES).fit(patches)
    with torch.no_grad():
        given = method._student([stage[:3] for stage in stages])
    expected = np.zeros((3, 8, 8))
    for teacher, student in zip(stages, given, strict=True):
        t, s = teacher[:3].double().numpy(), student.double().numpy()
        assert t.shape == s.shape
        norms = np.linalg.norm(t, axis=1) * np.linalg.norm(s, axis=1)
        distance = torch.from_numpy(1 - (t * s).sum(1) / norms)[:, None]
        size = {"size": (8, 8), "mode": "bilinear", "align_corners": False}
        expected += torch.nn.functional.interpolate(distance, **size)[:, 0].numpy()
    np.testing.assert_allclose(method.score(patches[:3]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_reverse_distillation_learns_to_give_back_and_an_odd_image_is_not_given_back():
    patches, _ = stage_patches(20)
    new, _ = stage_patches(20)
    trained = ReverseDistillation(epochs=60, **STAGES).fit(patches)
    untrained = ReverseDistillation(epochs=1, **STAGES).fit(patches)
    assert trained.score(new).mean() < 0.25 * untrained.score(new).mean()
    odd = new.clone()
    odd[4, 4:6, 4:6] += 4 * torch.randn(12, generator=torch.Generator().manual_seed(0))
    scores = trained.score(odd)
    assert int(scores.flatten(1).max(1).values.argmax()) == 4
    inside = scores[4, 4:6, 4:6].mean()
    assert inside > 3 * scores[[0, 1, 2, 3]].mean()


@pytest.mark.slow
def test_reverse_distillation_stops_early_and_keeps_the_best_state():
    patches, _ = stage_patches(20)
    seen = []
    stopped = ReverseDistillation(epochs=500, patience=2, **STAGES)
    stopped.fit(patches, progress=lambda *done: seen.append(done))
    assert seen.pop() == (500, 500)
    assert len(seen) < 500
    best = ReverseDistillation(epochs=len(seen) - 2, patience=2, **STAGES).fit(patches)
    torch.testing.assert_close(stopped.score(patches), best.score(patches))


def test_reverse_distillation_depends_on_its_seed():
    patches, _ = stage_patches()
    scores = [ReverseDistillation(epochs=2, seed=s, **STAGES).fit_score(patches) for s in (0, 1)]
    assert not torch.allclose(*scores)


@pytest.mark.parametrize("name", ["convnext_atto", "vit_tiny_patch16_224"])
def test_reverse_distillation_works_with_any_teacher_of_three_stages(name):
    teacher = random_backbone(name, strides=(4, 8, 16))
    assert len(teacher.channels) == 3
    images = torch.randint(0, 256, (4, 64, 96, 3), generator=torch.Generator().manual_seed(0))
    patches = patch_grid(teacher(images.to(torch.uint8)), "stages")
    method = ReverseDistillation(epochs=1, stages=teacher.channels, strides=teacher.strides)
    scores = method.fit_score(patches)
    assert scores.shape == patches.shape[:3]
    assert bool(torch.isfinite(scores).all())


def test_reverse_distillation_refuses_stages_that_do_not_add_up():
    with pytest.raises(SettingError, match="do not add up to 7"):
        ReverseDistillation(stages=(3, 3)).fit(random_patches())
    with pytest.raises(SettingError, match="at least 1 of each"):
        ReverseDistillation(epochs=0).fit(random_patches())
