"""Rules that every method must keep."""

import pickle

import numpy as np
import pytest
import torch

from patchcluster.errors import SettingError
from patchcluster.methods import METHODS, PatchCluster, PatchCore, PatchCoreLOF
from patchcluster.pipeline.comparing import Query, Search
from references import random_patches

every_method = pytest.mark.parametrize("name", METHODS)
devices = pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
        ),
    ],
)


def make(name, **options):
    """A method with parameters that suit small sets."""
    small = {
        "patchcore-lof": {"k": 5},
        "spade-cluster": {"k": 3},
        "reverse-distillation": {"epochs": 1},
    }
    return METHODS[name](**{**small.get(name, {}), **options})


@every_method
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_arrays_in_arrays_out_tensors_in_tensors_out(name, dtype):
    patches = random_patches().astype(dtype)
    scores = make(name).fit_score(patches)
    assert isinstance(scores, np.ndarray)
    assert scores.shape == (6, 4, 5)
    assert np.isfinite(scores).all()
    tensors = make(name).fit_score(torch.from_numpy(patches))
    np.testing.assert_allclose(tensors.numpy(), scores, rtol=1e-6)
    listed = make(name).fit_score(list(patches))
    np.testing.assert_allclose(np.stack(listed), scores, rtol=1e-6)


@every_method
@devices
def test_scores_are_where_the_patches_are(name, device):
    patches = torch.from_numpy(random_patches())
    scores = make(name).fit_score(patches.to(device))
    assert scores.device.type == device
    if name != "reverse-distillation":  # training on another device ends elsewhere
        expected = make(name).fit_score(patches)
        torch.testing.assert_close(scores.cpu(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"padim"}))
def test_images_of_several_sizes(name):
    patches = [random_patches(1, h, w, seed=h)[0] for h, w in ((4, 5), (3, 3), (6, 2), (5, 5))]
    scores = make(name).fit_score(patches)
    assert [s.shape for s in scores] == [(4, 5), (3, 3), (6, 2), (5, 5)]


@every_method
def test_scores_do_not_depend_on_the_order_of_the_images(name):
    patches = random_patches(9)
    # A greedy coreset starts at the first patch of the set.
    options = {"ratio": 1.0} if name in ("patchcluster", "patchcore") else {}
    order = np.random.default_rng(5).permutation(9)
    scores = make(name, **options).fit_score(patches)
    shuffled = make(name, **options).fit_score(patches[order])
    np.testing.assert_allclose(shuffled, scores[order], rtol=1e-4)


@every_method
def test_same_input_same_scores(name):
    patches = random_patches()
    first, second = (make(name).fit_score(patches) for _ in range(2))
    np.testing.assert_array_equal(first, second)


@every_method
def test_a_method_that_was_not_fitted_says_so(name):
    with pytest.raises(SettingError, match="was not fitted: call fit first"):
        make(name).score(random_patches(2))


@every_method
def test_input_is_left_as_it_was(name):
    patches = random_patches()
    before = patches.copy()
    make(name).fit_score(patches)
    np.testing.assert_array_equal(patches, before)


@every_method
def test_a_fitted_method_that_was_sent_elsewhere_compares_as_here(name):
    """As workers of a cluster have it: its arrays lie where nobody may write to them."""
    patches = torch.from_numpy(random_patches()).half()
    search = Search(make(name).fit(patches), torch.device("cpu"))
    parts: list[pickle.PickleBuffer] = []
    sent = pickle.dumps(search, protocol=5, buffer_callback=parts.append)
    shared = [bytes(part.raw()) for part in parts]
    learned = search.method.state().values()
    assert sum(map(len, shared)) == sum(tensor.nbytes for tensor in learned)
    before = list(map(bytearray, shared))
    copied = pickle.loads(sent, buffers=shared).on(torch.device("cpu"))
    job = [Query(image, patches[image], None) for image in (1, 4)]
    for here, there in zip(
        search.finish(job).tensors().values(), copied.finish(job).tensors().values(), strict=True
    ):
        torch.testing.assert_close(there, here, rtol=1e-5, atol=1e-6)
    assert shared == before


@every_method
def test_constant_images_score_the_same_everywhere(name):
    trained = name == "reverse-distillation"
    options = {"epochs": 40} if trained else {}
    scores = make(name, **options).fit_score(np.ones((5, 3, 3, 4), np.float32))
    assert np.isfinite(scores).all()
    # A decoder gives edges back a little otherwise than the middle, by how far its training came on
    # this processor; all others are exact.
    assert np.ptp(scores) <= (0.1 if trained else 0)


@every_method
def test_copies_of_an_image_score_the_same(name):
    patches = random_patches(9)
    patches[4] = patches[7] = patches[2]
    scores = make(name).fit_score(patches)
    assert np.isfinite(scores).all()
    np.testing.assert_allclose(scores[4], scores[2], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(scores[7], scores[2], rtol=1e-4, atol=1e-6)


# Reverse distillation is made for training sets without anomalies: it learns to give back those of
# such a small set. MuSc compares directions, which noise about zero has none of: see test_musc.py.
@pytest.mark.parametrize("name", sorted(set(METHODS) - {"reverse-distillation", "musc"}))
def test_an_odd_patch_of_a_set_scores_highest(name):
    patches = random_patches(12, 5, 5) * 0.1
    patches[3, 2, 4] += 5
    scores = make(name).fit_score(patches)
    assert np.unravel_index(scores.argmax(), scores.shape) == (3, 2, 4)


@every_method
def test_an_odd_patch_of_new_images_scores_highest(name):
    common = 3 * np.random.default_rng(1).normal(size=7)
    normal, new = ((common + 0.1 * random_patches(12, 5, 5, seed=s)) for s in (0, 1))
    new[3, 2, 4] -= 5
    trained = name == "reverse-distillation"
    scores = make(name, **({"epochs": 5} if trained else {})).fit(normal).score(new)
    image, row, column = np.unravel_index(scores.argmax(), scores.shape)
    assert image == 3
    if not trained:  # on so small a grid its student spoils the whole image
        assert (row, column) == (2, 4)


@every_method
def test_state_restores_the_method(name):
    patches, new = random_patches(), random_patches(2, seed=8)
    method = make(name)
    method.fit_score(patches)
    restored = type(method).from_state(method.state(), **method.parameters())
    np.testing.assert_array_equal(restored.score(new), method.score(new))


@every_method
@pytest.mark.parametrize("shape", [(0, 3, 3, 4), (2, 3, 4), (2, 0, 3, 4)])
def test_wrong_shapes_are_errors(name, shape):
    with pytest.raises(SettingError, match=r"\[n?,? ?h, w, c\]"):
        make(name).fit(np.zeros(shape, np.float32))


@every_method
def test_one_image_has_nothing_to_be_compared_with(name):
    with pytest.raises(SettingError, match="at least 2 images"):
        make(name).fit_score(random_patches(1))


@pytest.mark.parametrize("blind", [True, False])
def test_methods_of_one_bank_are_compared_by_one_search(blind):
    patches = torch.from_numpy(random_patches())
    asked = [PatchCluster(7, 1.0), PatchCore(1.0), PatchCoreLOF(9), PatchCluster(2, 1.0)]
    first = asked[0].fit(patches)
    fitted = [first, *(method.reuse(first, 120) for method in asked[1:])]
    grids, own = list(patches[1:3]), [1, 2] if blind else None
    for method, found in zip(fitted, first.compare_for(fitted, grids, own), strict=True):
        expected = type(method)(**method.parameters()).fit(patches).compare(grids, own)
        for mine, theirs in zip(found.tensors().values(), expected.tensors().values(), strict=True):
            torch.testing.assert_close(mine, theirs)


@every_method
def test_a_bank_is_shared_by_methods_of_one_key_alone(name):
    patches = random_patches()
    fitted = make(name).fit(patches)
    again = make(name).reuse(fitted, 120)
    assert (again is None) == (fitted.bank_key() is None)
    if again is not None:
        np.testing.assert_array_equal(again.score(patches), fitted.score(patches))
    assert make(name).reuse(make("padim").fit(patches), 120) is None


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["patchcluster", "patchcluster-plus", "spade"])
def test_patches_that_are_not_finite_are_refused(name, value):
    patches = random_patches(4)
    patches[2, 1, 1, 0] = value
    with pytest.raises(SettingError, match="patches of image 2 are not all finite"):
        METHODS[name]().fit_score(patches)
    fitted = METHODS[name]().fit(random_patches(4))
    with pytest.raises(SettingError, match="patches of image 2 are not all finite"):
        fitted.score(patches)
