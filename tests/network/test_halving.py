"""A GPU that runs out of memory, played by a network and a search that take few images at once."""

import numpy as np
import pytest
import torch

import patchcluster
from patchcluster.errors import SettingError
from patchcluster.methods import PatchClusterPlus
from patchcluster.network.backbones import Backbone
from patchcluster.network.devices import in_halves
from patchcluster.pipeline.extraction import Features

FULL = "CUDA out of memory. Tried to allocate 2.00 GiB"


def limited(most, seen):
    """Work that takes so many items at a time, and keeps how many it was given."""

    def work(items):
        seen.append(len(items))
        if len(items) > most:
            raise torch.cuda.OutOfMemoryError(FULL)
        return [item * 10 for item in items]

    return work


@pytest.mark.parametrize(
    ("most", "tried"), [(9, [7]), (4, [7, 3, 4]), (2, [7, 3, 1, 2, 4, 2, 2]), (1, None)]
)
def test_batches_are_halved_until_they_fit_and_stay_in_order(most, tried):
    seen = []
    parts = in_halves(limited(most, seen), range(7), "work")
    assert [one for part in parts for one in part] == [0, 10, 20, 30, 40, 50, 60]
    assert tried is None or seen == tried


def test_one_item_that_does_not_fit_is_an_error_that_says_what_to_do():
    with pytest.raises(SettingError, match=r"too small for the search of one image .*--device cpu"):
        in_halves(limited(0, []), range(3), "search")


def test_other_errors_are_not_touched():
    def work(items):
        raise RuntimeError(f"{len(items)} are wrong")

    with pytest.raises(RuntimeError, match="5 are wrong"):
        in_halves(work, range(5), "work")


def test_a_scan_goes_on_when_network_and_search_run_out_of_memory(small_run, tmp_path, monkeypatch):
    """The threads leave the network to one call a batch, as they do for a GPU."""
    network, search = Backbone.features, PatchClusterPlus.compare
    batches = {"network": [], "search": []}

    def features(self, images):
        batches["network"].append(len(images))
        if len(images) > 3:
            raise torch.cuda.OutOfMemoryError(FULL)
        return network(self, images)

    def compare(self, grids, own=None, blocks=None):
        batches["search"].append(len(grids))
        if len(grids) > 3:
            raise torch.cuda.OutOfMemoryError(FULL)
        return search(self, grids, own, blocks)

    monkeypatch.setattr(Features, "_threads_have_networks", False)
    monkeypatch.setattr(Backbone, "features", features)
    monkeypatch.setattr(PatchClusterPlus, "compare", compare)
    run = patchcluster.scan(small_run.info.inputs, tmp_path / "run", size=(128,))
    for sizes in batches.values():
        assert 8 in sizes
        assert [size for size in sizes if size <= 3]
    np.testing.assert_allclose(run.scores, small_run.scores, rtol=1e-3)
