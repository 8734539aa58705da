import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

import patchcluster
from conftest import read_files, save_image, textured_image
from patchcluster.errors import InputError, RunError, SettingError
from patchcluster.pipeline import saved_inputs
from patchcluster.pipeline.saved_inputs import index_of
from patchcluster.runs import runfolder
from patchcluster.runs.run import load_run

SIZE = (64,)
MASK = np.zeros((64, 64), np.uint8)  # of the blot on the last image
MASK[20:40, 20:40] = 255


def draw(count=6, seed=0):
    """Images with a blot on the last one."""
    return [textured_image(seed + i, 64, 64, i == count - 1) for i in range(count)]


class Drawn(Dataset):
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return {"image": self.images[i], "label": i % 2}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of a torch data set. Do not change it."""
    return patchcluster.scan(Drawn(draw()), tmp_path_factory.mktemp("drawn") / "run", size=SIZE)


@pytest.fixture
def copy(finished, tmp_path):
    """The same, to be changed; the paths in it are those of the copy."""
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    for name in ("run.json", "scores.csv", "regions.csv"):
        text = (folder / name).read_text().replace(str(finished.folder), str(folder))
        (folder / name).write_text(text)
    return load_run(folder)


def rescan(images, run, **given):
    return patchcluster.scan(images, run.folder, size=SIZE, **given)


def test_images_become_files_of_the_run(finished):
    inputs = finished.folder / "inputs"
    assert finished.paths == [str(inputs / f"00000{i}.png") for i in range(6)]
    assert [index_of(path) for path in finished.paths] == list(range(6))
    for path, image in zip(finished.paths, draw(), strict=True):
        assert np.array_equal(np.array(Image.open(path)), image)
    assert finished.info.inputs == [str(inputs)]
    assert finished.ranking[0] == 5
    assert finished.map("000005.png").shape == (64, 64)
    assert not (finished.folder / ".work").exists()


def test_scores_are_those_of_the_files(finished, tmp_path):
    folder = tmp_path / "photos"
    for i, image in enumerate(draw()):
        save_image(folder / f"{i}.png", image, compress_level=1)
    run = patchcluster.scan(folder, tmp_path / "run", size=SIZE)
    assert np.array_equal(run.scores, finished.scores)


@pytest.mark.parametrize("same", ["the images", "the folder"])
def test_the_same_scan_is_returned_as_it_is(copy, same):
    before = read_files(copy.folder)
    given = iter(draw()) if same == "the images" else copy.folder / "inputs"
    assert np.array_equal(rescan(given, copy).scores, copy.scores)
    assert read_files(copy.folder) == before


@pytest.mark.parametrize("change", ["other", "more", "fewer", "settings"])
def test_another_scan_is_refused_and_leaves_the_run(copy, change):
    before = read_files(copy.folder)
    images = draw(7) if change == "more" else draw()[:5] if change == "fewer" else draw()
    if change == "other":
        images[3] = draw(seed=50)[0]
    message = "other inputs or settings" if change == "settings" else "holds a scan of other images"
    with pytest.raises(RunError, match=message):
        rescan(images, copy, **({"k": 2} if change == "settings" else {}))
    assert before.items() <= read_files(copy.folder).items()


def test_overwriting_the_same_keeps_the_files(copy):
    before = read_files(copy.folder / "inputs")
    run = rescan(draw(), copy, overwrite=True)
    assert read_files(copy.folder / "inputs") == before
    assert run.info.finished >= copy.info.finished
    assert np.array_equal(run.scores, copy.scores)
    assert not (copy.folder / ".work").exists()
    # The same by its folder, as on the command line.
    patchcluster.scan(copy.folder / "inputs", copy.folder, size=SIZE, overwrite=True)
    assert read_files(copy.folder / "inputs") == before


def test_overwriting_with_others_replaces_the_files(copy):
    images = [*draw()[:2], *draw(3, seed=50)]
    run = rescan(images, copy, overwrite=True)
    assert len(run) == 5
    assert sorted(path.name for path in (copy.folder / "inputs").iterdir()) == [
        f"00000{i}.png" for i in range(5)
    ]
    assert np.array_equal(np.array(Image.open(run.paths[4])), images[4])
    assert not (copy.folder / ".work").exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"max_memory": "1MB"}, "over --max-memory"),
        ({"method": "patchcore", "labels": {"000000.png": "normal"}}, "does not learn from labels"),
    ],
)
def test_what_cannot_start_leaves_the_old_run(copy, given, words):
    before = read_files(copy.folder)
    with pytest.raises(SettingError, match=words):
        rescan(draw(5, seed=50), copy, overwrite=True, **given)
    assert before.items() <= read_files(copy.folder).items()
    assert np.array_equal(load_run(copy.folder).scores, copy.scores)
    rescan(draw(), copy)  # the old one, which removes what was left
    assert read_files(copy.folder) == before


class Killed(BaseException):
    pass


def killing(images, at):
    yield from images[:at]
    raise Killed


def test_a_start_that_was_killed_goes_on(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(Killed):
        patchcluster.scan(killing(draw(), 4), folder, size=SIZE)
    before = read_files(folder / "inputs")
    assert len(before) == 4
    run = patchcluster.scan(draw(), folder, size=SIZE)
    assert before.items() <= read_files(folder / "inputs").items()
    assert len(run) == 6
    assert not (folder / ".work").exists()


def test_a_killed_start_does_not_stand_in_the_way_of_another(tmp_path):
    """Images that it left are in none of the next scans."""
    folder = tmp_path / "run"
    with pytest.raises(Killed):
        patchcluster.scan(killing(draw(seed=50), 5), folder, size=SIZE)
    assert len(patchcluster.scan(iter(draw(3)), folder, size=SIZE)) == 3
    (tmp_path / "next").mkdir()
    with pytest.raises(Killed):
        patchcluster.scan(killing(draw(), 3), tmp_path / "next" / "run", size=SIZE)
    photos = folder / "inputs"
    run = patchcluster.scan(photos, tmp_path / "next" / "run", size=SIZE)
    assert run.paths == [str(photos / f"00000{i}.png") for i in range(3)]
    assert not (tmp_path / "next" / "run" / "inputs").exists()


@pytest.mark.parametrize("at", ["saving", "begin", "remove", "features"])
def test_a_kill_while_a_run_is_replaced(copy, monkeypatch, at):
    """At each instant there is the old run, or one that the same call finishes."""
    images = [*draw()[:2], *draw(3, seed=50)]
    with monkeypatch.context() as patch:
        if at == "begin":
            patch.setattr(runfolder, "begin", kill)
        if at == "remove":
            patch.setattr(saved_inputs.Path, "rename", kill)
        given = killing(images, 3) if at == "saving" else images
        with pytest.raises(Killed):
            rescan(given, copy, overwrite=True, progress=lambda step, *_: step != at or kill())
    if at in ("saving", "begin"):
        assert np.array_equal(load_run(copy.folder).scores, copy.scores)
        assert len(read_files(copy.folder / "inputs")) == 6
    else:
        with pytest.raises(RunError, match="run the same scan again"):
            load_run(copy.folder)
    run = rescan(images, copy, overwrite=True)
    assert len(run) == len(read_files(copy.folder / "inputs")) == 5


def kill(*_, **__):
    raise Killed


def test_lost_images_of_a_run_are_put_back(copy):
    shutil.rmtree(copy.folder / "inputs")
    run = rescan(draw(), copy)
    assert run.info.finished == copy.info.finished
    assert len(read_files(copy.folder / "inputs")) == 6


def test_a_scan_of_other_inputs_removes_the_files(copy, tmp_path):
    photos = tmp_path / "photos"
    shutil.move(copy.folder / "inputs", photos)
    shutil.copytree(photos, copy.folder / "inputs")
    run = rescan(photos, copy, overwrite=True)
    assert run.paths[0] == str(photos / "000000.png")
    assert not (copy.folder / "inputs").exists()


def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    mine = tmp_path / "run" / "inputs" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(RunError, match=r"holds other files \(inputs\)"):
            patchcluster.scan(draw(), tmp_path / "run", size=SIZE, overwrite=overwrite)
    assert mine.read_text() == "mine"


def test_a_temporary_run_has_its_images(finished):
    run = patchcluster.scan(iter(draw()), size=SIZE)
    folder = run.folder
    assert np.array_equal(run.scores, finished.scores)
    assert sorted(p.name for p in (folder / "inputs").iterdir()) == [
        f"00000{i}.png" for i in range(6)
    ]
    del run
    assert not folder.exists()


def test_images_that_are_missing_are_listed(tmp_path):
    """The others keep their numbers."""
    images = draw()
    images[2] = None
    run = patchcluster.scan(images, tmp_path / "run", size=SIZE)
    assert [index_of(path) for path in run.paths] == [0, 1, 3, 4, 5]
    assert [(index_of(s.path), s.reason) for s in run.skipped] == [(2, "empty file (0 bytes)")]


def test_a_run_of_a_data_set_is_updated(copy, tmp_path):
    new = save_image(tmp_path / "new.png", draw(seed=50)[0])
    run = patchcluster.update(copy.folder, add=new, remove="000001.png")
    names = [path.rpartition("/")[2] for path in run.paths]
    assert names == ["new.png", *(f"00000{i}.png" for i in (0, 2, 3, 4, 5))]
    assert run.map("000000.png").shape == (64, 64)


def test_progress_is_shown(tmp_path):
    shown = []
    patchcluster.scan(
        Drawn(draw(3)), tmp_path / "run", size=SIZE, progress=lambda *step: shown.append(step)
    )
    assert shown[:3] == [("inputs", 1, 3), ("inputs", 2, 3), ("inputs", 3, 3)]


def test_a_category_is_scanned_where_it_lies(tmp_path):
    root = tmp_path / "nut"
    for i, image in enumerate(draw()):
        kind = "good" if i < 5 else "dent"
        save_image(root / "test" / kind / f"{i}.png", image)
    save_image(root / "ground_truth" / "dent" / "5_mask.png", MASK)
    categories = patchcluster.read_dataset(root)
    run = patchcluster.scan(categories, tmp_path / "run", size=SIZE)
    assert run.paths == sorted(sample.path for sample in categories[0].samples)
    assert not (run.folder / "inputs").exists()
    found = patchcluster.evaluate(run, categories)
    assert found == patchcluster.evaluate(run, categories[0]) == patchcluster.evaluate(run, root)
    assert found.image_auroc == 1
    lost = categories[0].samples.pop().path
    left_out = patchcluster.evaluate(run, categories).left_out
    assert left_out == {lost: "the data set does not name it"}


def test_the_truth_of_a_data_set(finished):
    """As masks of any kind, or as labels."""
    none = [None] * 5
    found = patchcluster.evaluate(finished, [*none, MASK])
    assert found.image_auroc == 1
    assert 0.5 < found.pixel_auroc < 1
    for other in (Image.fromarray(MASK), torch.from_numpy(MASK)[None] / 255, MASK == 255):
        assert patchcluster.evaluate(finished, [*none, other]) == found
    assert patchcluster.evaluate(finished, [*[np.zeros_like(MASK)] * 5, MASK]) == found
    labels = patchcluster.evaluate(finished, torch.tensor([0, 0, 0, 0, 0, 1]))
    assert (labels.image_auroc, labels.pixel_auroc) == (1, None)


def test_a_truth_that_does_not_fit_is_one_line(finished, small_run):
    with pytest.raises(InputError, match="the truth of 3 images for a run of 6"):
        patchcluster.evaluate(finished, [0, 0, 1])
    with pytest.raises(InputError, match=r"shape \[4, 4, 3\], not \[height, width\]"):
        patchcluster.evaluate(finished, [np.zeros((4, 4, 3))] * 6)
    with pytest.raises(InputError, match="not the path of an image from a data set: name"):
        patchcluster.evaluate(small_run, [0] * 8)
