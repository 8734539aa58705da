import numpy as np
import pytest
import torch

from patchcluster.network.patches import gather_up, patch_grid, pool_neighbourhood


def pooled64(stage: np.ndarray) -> np.ndarray:
    """Mean over the cells of a 3 x 3 neighbourhood that exist, [c, h, w]."""
    _, height, width = stage.shape
    result = np.empty(stage.shape)
    for y in range(height):
        for x in range(width):
            cells = stage[:, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
            result[:, y, x] = cells.reshape(len(stage), -1).mean(1)
    return result


def test_pooling_is_the_mean_of_the_neighbours_that_exist():
    stage = np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)
    pooled = pool_neighbourhood(torch.from_numpy(stage)[None])[0]
    np.testing.assert_allclose(pooled, pooled64(stage.astype(np.float64)), rtol=1e-5, atol=1e-6)


def test_middle_grid_averages_the_first_stage_and_deals_the_third_out():
    rng = np.random.default_rng(1)
    shapes = (2, 8, 12), (3, 4, 6), (6, 2, 3)
    fine, middle, coarse = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    patches = patch_grid([torch.from_numpy(a)[None] for a in (fine, middle, coarse)], "middle")
    assert patches.shape == (1, 4, 6, 2 + 3 + 2)
    np.testing.assert_allclose(
        patches[0, ..., :5],
        np.concatenate([pooled64(fine).reshape(2, 4, 2, 6, 2).mean((2, 4)), pooled64(middle)])
        .transpose(1, 2, 0),
        rtol=1e-4, atol=1e-5,
    )  # fmt: skip
    dealt = patches[0, ..., 5:].reshape(2, 2, 3, 2, 2).numpy().transpose(0, 2, 1, 3, 4)
    values = np.sort(dealt.reshape(2, 3, 8), -1)  # of the cells that each cell covers
    expected = np.concatenate([pooled64(coarse), np.zeros((2, 2, 3))]).transpose(1, 2, 0)
    np.testing.assert_allclose(values, np.sort(expected, -1), rtol=1e-4, atol=1e-5)
    back = gather_up(patches[0, ..., 5:], 2)
    np.testing.assert_allclose(back, expected, rtol=1e-4, atol=1e-5)


def test_fine_grid_interpolates_the_last_stage():
    stages = [torch.zeros(1, 1, 4, 4), torch.tensor([[0.0, 1.0], [0.0, 1.0]]).view(1, 1, 2, 2)]
    # 3 x 3 pooling of the last stage gives 0.5 everywhere; interpolation keeps it.
    patches = patch_grid(stages, "fine")
    assert patches.shape == (1, 4, 4, 2)
    torch.testing.assert_close(patches[..., 1], torch.full((1, 4, 4), 0.5))


def test_stages_layout_holds_what_the_network_gave():
    rng = np.random.default_rng(1)
    stages = [
        torch.from_numpy(rng.normal(size=(2, c, s, s)).astype(np.float32))
        for c, s in ((3, 8), (4, 4), (5, 2))
    ]
    patches = patch_grid(stages, "stages")
    assert patches.shape == (2, 8, 8, 12)
    taken_out = torch.split(patches.permute(0, 3, 1, 2), [3, 4, 5], 1)
    for maps, stage, ratio in zip(taken_out, stages, (1, 2, 4), strict=True):
        torch.testing.assert_close(maps[:, :, ::ratio, ::ratio], stage, rtol=0, atol=0)


@pytest.mark.parametrize("layout", ["fine", "middle"])
def test_stages_of_one_grid_are_joined_as_they_are(layout):
    stages = [torch.randn(2, 3, 5, 5), torch.randn(2, 4, 5, 5)]
    patches = patch_grid(stages, layout)
    expected = torch.cat([pool_neighbourhood(s) for s in stages], 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(patches, expected)
