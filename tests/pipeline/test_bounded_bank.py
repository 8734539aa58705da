"""Scans whose bank has some of the images: patches are read when they are needed."""

import gc
import shutil
import weakref

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import patchcluster
from conftest import cut_batches, write_set
from patchcluster.errors import RunError
from patchcluster.methods import PatchClusterPlus
from patchcluster.methods.grids import Grids
from patchcluster.pipeline import rescoring
from patchcluster.pipeline.flagging import Scored, _group, reflag
from patchcluster.pipeline.image_set import ImageSet
from patchcluster.pipeline.loading import load_patches
from patchcluster.runs import runfolder, storage
from patchcluster.runs.info import ImageRecord
from patchcluster.scores.maps import Region, round_as_stored
from patchcluster.scores.thresholds import Flagging
from patchcluster.settings import resolve

SIZE = (128,)
BANK = 5


@pytest.fixture(scope="module", autouse=True)
def several_batches():
    """Two images a batch, so that these sets are read and compared in several files."""
    with pytest.MonkeyPatch.context() as patch:
        cut_batches(patch)
        yield


@pytest.fixture(scope="module")
def bounded(tmp_path_factory):
    """A finished run of 12 images, each compared with 5. Do not change it."""
    root = tmp_path_factory.mktemp("bounded")
    write_set(root / "images", 12)
    return patchcluster.scan(root / "images", root / "run", size=SIZE, bank_images=BANK)


@pytest.fixture
def copied(bounded, tmp_path):
    shutil.copytree(bounded.folder, tmp_path / "run")
    return patchcluster.load_run(tmp_path / "run")


def patches_of(run):
    return list(load_patches(run, ImageSet.of(run.images), 128)[0])


def method_of(run):
    settings, backbone = resolve(**run.info.settings), run.info.backbone
    return settings.make_method(backbone["channels"], backbone["strides"])


# --- the method ---------------------------------------------------------------------------------


class Watched:
    """Grids that count how many of them are in memory."""

    def __init__(self, grids):
        self.grids, self.alive, self.most = grids, 0, 0

    def read(self, image):
        grid = self.grids[image].clone()
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(grid, self.forget)
        return grid

    def forget(self):
        self.alive -= 1


@pytest.mark.parametrize("bank", [None, 6, 40])
def test_patches_that_are_read_when_needed_give_the_same_bank_and_none_is_kept(bank, rng):
    grids = [torch.randn(4, 4 + 2 * (i % 2), 7, generator=rng).half() for i in range(24)]
    watched = Watched(grids)
    lazy = Grids([tuple(grid.shape) for grid in grids], watched.read)
    found = PatchClusterPlus(bank_images=bank).fit(lazy).state()
    expected = PatchClusterPlus(bank_images=bank).fit(grids).state()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert watched.most <= 2  # one, and the next while it is taken


def fit(grids):
    PatchClusterPlus(bank_images=4).fit(grids, keys=list(range(len(grids))))


def group(grids):
    image = ImageRecord(0, "a.png", "", 0, 64, 64)
    scored = [Scored([image], np.ones((4, 4), np.float32), 1.0, "")] * len(grids)
    regions = [[Region(8, 8, 40, 40, 900, 1.0)] for _ in range(len(grids))]
    found = _group(scored, regions, lambda i: grids[i].flatten(0, 1).float())
    assert all(region.group for of_image in found for region in of_image)


@pytest.mark.slow
@pytest.mark.parametrize("step", [fit, group])
def test_nothing_small_is_kept_between_patches_that_go(step, rng):
    # It would lie where the next patches could, and memory would grow by those of all images.
    alive = []

    def read(_):
        if len(alive) < 24:
            alive.append(sum(type(one) is torch.Tensor for one in gc.get_objects()))
        return torch.randn(4, 4, 7, generator=rng).half()

    step(Grids([(4, 4, 7)] * 24, read))
    assert len(alive) == 24
    assert alive[-1] <= alive[4]


def test_labels_that_leave_fewer_images_than_the_bank_may_have_leave_it_these(rng):
    grids = [torch.randn(3, 4, 7, generator=rng) for _ in range(9)]
    method = PatchClusterPlus(bank_images=8)
    method.fit(grids, labels=["anomalous"] * 3 + [None] * 6)
    assert method.chosen_.tolist() == [3, 4, 5, 6, 7, 8]
    assert all(torch.isfinite(score).all() for score in method.score(grids))


# --- what is on the disk ------------------------------------------------------------------------


def test_tensors_are_written_as_plain_safetensors(tmp_path, rng):
    values = {
        "halves": torch.randn(7, 3, generator=rng).half(),
        "columns": torch.randn(3, 7, generator=rng).t(),
        "bytes": torch.arange(5, dtype=torch.int8),
        "none": torch.empty(0, 3),
        "nothing": torch.empty(1, dtype=torch.float64).as_strided((0,), (0,)),  # as of no array
        "one": torch.tensor(2.5, dtype=torch.float64),
    }
    values["again"] = values["halves"]
    values["first"] = values["halves"][:2]
    file = tmp_path / "new" / "file"
    storage.write_tensors(file, values, "note")
    found = load_file(file)
    assert found.keys() == values.keys()
    assert all(torch.equal(found[name], value) for name, value in values.items())
    assert storage.read_note(file) == "note"
    assert storage.read_shapes(file)[0]["halves"] == (7, 3)
    assert torch.equal(storage.read_tensor(file, "halves", slice(2, 5)), values["halves"][2:5])
    (tmp_path / "plain").touch()
    assert file.stat().st_mode == (tmp_path / "plain").stat().st_mode  # who may read it


# --- whole scans --------------------------------------------------------------------------------


def test_scores_are_those_of_the_same_patches_in_memory(bounded):
    method, patches = method_of(bounded), patches_of(bounded)
    image_set = ImageSet.of(bounded.images)
    method.fit(patches, image_set.keys)
    compared = method.compare(patches, range(12))
    counts = [64] * 12
    method.calibrate(compared.select(method.bank_rows(counts)))
    expected = method.to_scores(compared).view(12, 8, 8)
    for copies, score in zip(image_set.records.values(), expected, strict=True):
        grid = bounded.grid(copies[0].path)
        np.testing.assert_allclose(grid, round_as_stored(score.numpy()), rtol=2e-3)


def test_a_run_keeps_all_patches_and_a_bank_of_few(bounded, tmp_path):
    whole = patchcluster.scan(bounded.info.inputs, tmp_path / "run", size=SIZE)
    every = load_file(whole.folder / runfolder.BANK_FILE)["128.bank"]
    assert torch.equal(torch.cat([p.flatten(0, 1) for p in patches_of(bounded)]), every)
    bank = load_file(bounded.folder / runfolder.BANK_FILE)
    assert len(bank["128.bank"]) == BANK * 64
    assert len(bank["128.bank_scores"]) == BANK * 64
    assert int(bank["128.image_count"]) == 12
    assert not runfolder.kept_paths(whole.folder)
    assert runfolder.kept_paths(bounded.folder)


def test_places_are_explained_by_images_of_the_bank(bounded):
    bank = load_file(bounded.folder / runfolder.BANK_FILE)
    contents = list(ImageSet.of(bounded.images).records.values())
    members = {contents[int(i)][0].path for i in bank["128.bank_image"].unique()}
    grids = dict(zip((c[0].path for c in contents), patches_of(bounded), strict=True))
    method = method_of(bounded)
    method = type(method).from_state(
        {name.removeprefix("128."): tensor for name, tensor in bank.items()}, **method.parameters()
    )
    path = bounded.paths[11]
    for x, y in ((6, 6), (50, 40), (90, 90)):
        at = int(y / 12) * 8 + int(x / 12)
        for place in bounded.neighbours(path, x, y):
            assert place.path in members - {path}
            there = int(place.y / 12) * 8 + int(place.x / 12)
            rows = [method._stages.rows(grids[p], 1) for p in (path, place.path)]
            distance = float((rows[0][at] - rows[1][there]).norm())
            assert place.distance == pytest.approx(distance, rel=2e-3)


def test_labels_score_a_run_again_as_a_fresh_scan_does(copied, tmp_path):
    labels = {"part11.png": "anomalous", "part0.png": "normal"}
    given = {"size": SIZE, "bank_images": BANK, "labels": labels}
    again = patchcluster.scan(copied.info.inputs, copied.folder, **given)
    fresh = patchcluster.scan(copied.info.inputs, tmp_path / "fresh", **given)
    assert not np.array_equal(again.scores, copied.scores)
    np.testing.assert_array_equal(again.scores, fresh.scores)
    names = [
        sorted(p.relative_to(of) for p in of.rglob("*")) for of in (copied.folder, fresh.folder)
    ]
    assert names[0] == names[1]


def test_flagged_again_its_regions_are_in_groups(copied):
    flagged = reflag(copied.folder, Flagging(flag_top=12))
    found = [region for path in flagged.paths for region in flagged.regions(path)]
    assert len(found) > 8
    assert min(region.group for region in found) == 1


@pytest.mark.parametrize("damage", ["missing", "cut", "lacking", "shape"])
def test_without_its_patches_a_run_says_so_in_one_line(copied, damage):
    path = runfolder.kept_paths(copied.folder)[0]
    if damage == "missing":
        path.rename(path.with_name("999999.safetensors"))
        for one in runfolder.kept_paths(copied.folder)[:1]:
            one.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        tensors = load_file(path)
        name = next(iter(tensors))
        tensors[name] = tensors[name].flatten()
        if damage == "lacking":
            del tensors[name]
        storage.write_tensors(path, tensors)
    with pytest.raises(RunError, match=r"scan again"):
        rescoring.rescore(copied.folder, {copied.paths[0]: "normal"})


def test_a_scan_without_a_cache_keeps_no_patches_and_says_what_it_cannot_do(bounded, tmp_path):
    images = bounded.info.inputs
    run = patchcluster.scan(images, tmp_path / "run", size=SIZE, bank_images=BANK, cache=False)
    np.testing.assert_array_equal(run.scores, bounded.scores)
    assert not (run.folder / runfolder.PATCHES_FOLDER).exists()
    with pytest.raises(RunError, match="without --no-cache"):
        rescoring.rescore(run.folder, {run.paths[0]: "normal"})
    again = reflag(run.folder, Flagging(flag_top=3))
    assert again.flagged.sum() == 3
    assert {r.group for path in again.paths for r in again.regions(path)} == {0}


@pytest.mark.slow
@pytest.mark.usefixtures("bounded")  # whose scan has built the network, which is built once
def test_memory_does_not_grow_with_the_patches_of_the_set(tmp_path, monkeypatch):
    """Counted in tensors: what the process holds depends on the allocator and on threads too."""
    cut_batches(monkeypatch, 64 * 64, 16)

    def most_held(name, count):
        write_set(tmp_path / name, count, size=64)
        held = []

        def progress(step, done, total):
            # Before the last image the network is at work beside, on more or less of a batch.
            last = step == "features" and done == total
            if last or (step == "compare" and done % (total // 4) == 0):
                held.append(held_by_tensors())

        before = held_by_tensors()
        given = {"size": (64,), "bank_images": 4, "progress": progress}
        patchcluster.scan(tmp_path / name, tmp_path / f"{name}-run", **given)
        return max(held) - before

    patches = 4 * 4 * (40 + 112 + 320 // 4) * 2  # bytes of those of an image, as float16
    assert most_held("many", 80) - most_held("few", 20) < 60 * patches


def held_by_tensors():
    """Bytes of all that tensors of this process hold, those left out that nobody can reach."""
    gc.collect()
    storages = (one.untyped_storage() for one in gc.get_objects() if type(one) is torch.Tensor)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
