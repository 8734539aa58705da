"""README and docs/ do what they say: each command and each block of code in them runs.

A page is read from top to bottom, in a folder of its own that holds what `workshop` puts there;
what one block makes, the next one has. `cheap` is all that is changed. What cannot run here is in
`NOT_RUN`, with the reason; its commands are still parsed, so that each option must exist.
"""

import dataclasses
import importlib
import importlib.util
import pkgutil
import re
import runpy
import shutil
import subprocess
import sys
from functools import partial
from itertools import product, zip_longest
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import test_methods
from PIL import Image
from safetensors.torch import save_file

from conftest import left_half, save_image, textured_image
from docblocks import Block, commands_of, entries_of, kind_of, read_blocks, read_spans, words_of
from page_reader import GROUP, NOT_RUN, ROOT, Page, Services, run_cli, why_not
from patchcluster import demo, methods
from patchcluster.benchmark import benchmark
from patchcluster.methods import FACTS, METHODS
from patchcluster.network import backbones
from patchcluster.settings import PRESETS
from references import distances64, random_patches

PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]
}
LONG = {"README.md", "docs/cli.md", "docs/paper.md", "docs/presets.md"}  # take seconds to follow
SIZE = 64
SIDE = 160  # of the drawn images
DEFECTIVE = (3, 8)  # of the photos, by number


def cheap(patch: pytest.MonkeyPatch) -> None:
    """Make defaults small: inputs of 64 pixels, a demo of 12 parts, trainings of one step.

    And one block a stage in WideResNet-50, an eighth as wide: a hundredth of its weights.
    """
    list(METHODS.values())  # loaded, with facts that stay
    for name, facts in FACTS.items():
        settings = {**facts.settings, "size": (SIZE,)}
        patch.setitem(FACTS, name, dataclasses.replace(facts, settings=settings))
    for name, values in PRESETS.items():
        if "size" in values:
            patch.setitem(PRESETS, name, {**values, "size": (SIZE,)})
    patch.setitem(benchmark.__kwdefaults__, "size", SIZE)
    patch.setattr(demo.write_parts, "__defaults__", (8, 4, 0, None))
    patch.setattr("patchcluster.methods.reverse_distillation._STEPS", 1)
    patch.setattr(backbones, "_build", partial(_build_thin, backbones._build))


def _build_thin(build, name, **options):
    if name.startswith("wide_resnet50_2"):
        options |= {"layers": (1, 1, 1, 1), "channels": (8, 16, 32, 64)}
    return build(name, **options)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """What the pages take for granted: a folder with photos and more, and the run of the photos.

    photos/       12 images, a.png and IMG_0042.png among them; two have a blot
    new/          3 more, and part.png beside it
    dataset/      the same in the layout of MVTec AD, with masks and training images
    mvtec/bottle  the same data set again
    KolektorSDD/  4 images in its layout
    incoming/     an image
    mask.png, labels.csv, weights.safetensors (of wide_resnet50_2.tv_in1k, random)
    """
    folder = tmp_path_factory.mktemp("workshop")
    names = ["a.png", "IMG_0042.png", *(f"IMG_{100 + i:04}.png" for i in range(10))]
    for i, name in enumerate(names):
        _write_sample(folder, f"photos/{name}", i, i in DEFECTIVE)
    for i in range(3):
        _write_sample(folder, f"new/part{i}.png", 20 + i, i == 0)
    for i in range(4):
        _write_image(folder / "dataset" / "train" / "good" / f"{i:03}.png", 30 + i, False)
    _write_image(folder / "part.png", 40, True)
    (folder / "mvtec").mkdir()
    (folder / "mvtec" / "bottle").symlink_to("../dataset", target_is_directory=True)
    save_image(folder / "mask.png", left_half(SIDE, SIDE))
    for i in range(4):
        part = folder / "KolektorSDD" / "kos01" / f"Part{i}.jpg"
        _write_image(part, 50 + i, i == 0)
        marked = np.zeros((SIDE, SIDE), bool)
        marked[60:90, 60:90] = i == 0
        save_image(part.with_name(f"Part{i}_label.bmp"), marked)
    _write_image(folder / "incoming" / "new.png", 41, True)
    (folder / "labels.csv").write_text(f"path,label\nphotos/a.png,normal\nphotos/{names[3]},unsure")
    (folder / "examples").symlink_to(ROOT / "examples", target_is_directory=True)
    with pytest.MonkeyPatch.context() as patch:
        cheap(patch)
        patch.chdir(folder)
        network = backbones.random_backbone("wide_resnet50_2")
        weights = {name: value.contiguous() for name, value in _plain_weights().items()}
        assert network.channels == [64, 128]  # an eighth
        save_file(weights, folder / "weights.safetensors")
        run_cli(["scan", "photos/", "-o", "photos-run"])
    return folder


def _plain_weights():
    """Before batch norms are folded, as a file has them."""
    return backbones._build("wide_resnet50_2").state_dict()


def _write_image(path, seed, blot):
    save_image(path, textured_image(seed, SIDE, SIDE, blot))


def _write_sample(folder, name, seed, blot):
    """An image that the data set has too, as a link; the mask of a blot is where it is dark."""
    _write_image(folder / name, seed, blot)
    kind, stem = "blot" if blot else "good", Path(name).stem
    link = folder / "dataset" / "test" / kind / f"{stem}.png"
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(Path("../../..") / name)
    if blot:
        mask = textured_image(seed, SIDE, SIDE, True).astype(int)
        mask = abs(mask - textured_image(seed, SIDE, SIDE)).max(-1) > 30
        save_image(folder / "dataset" / "ground_truth" / kind / f"{stem}_mask.png", mask)


@pytest.fixture(scope="module")
def services():
    started = Services()
    yield started
    started.stop()


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in LONG else ()) for name in PAGES],
)
def test_what_a_page_says_works(name, workshop, services, tmp_path, monkeypatch):
    shutil.copytree(workshop, tmp_path / "here", symlinks=True)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(sys, "path", [*sys.path])
    cheap(monkeypatch)
    page = Page(services)
    blocks = read_blocks(PAGES[name])
    for block, after in zip_longest(blocks, blocks[1:]):
        try:
            if after is not None and after.text.startswith("patchcluster: "):
                page.fail(block, after.text)
            else:
                page.follow(block)
        except BaseException as error:
            error.add_note(f"in the block at {name}:{block.line}\n{block.text}")
            raise


def shown_commands():
    """All commands of all pages."""
    blocks = [block for text in PAGES.values() for block in read_blocks(text)]
    return [
        command
        for block in blocks
        if kind_of(block) == "commands"
        for command in commands_of(block.text)
    ]


def test_what_does_not_run_is_in_the_pages():
    """No reason outlives its commands."""
    for what in NOT_RUN:
        assert any(re.search(what, command) for command in shown_commands()), what


def options_of(verb):
    """Every way to write an option of a verb, and of all commands."""
    names = {"--help", "--version"} if verb is None else {"--help"}
    for one in GROUP.commands if verb is None else [verb]:
        for parameter in GROUP.commands[one].params:
            if parameter.param_type_name == "option":
                names |= {*parameter.opts, *parameter.secondary_opts}
    return names


def named_in(span):
    """The verb that a piece of text in backticks names, or None, and the options."""
    words = [word.strip("[],;") for word in span.removeprefix("patchcluster ").split()]
    verb = words[0] if words and words[0] in GROUP.commands else None
    return verb, {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}


@pytest.mark.parametrize("name", PAGES)
def test_verbs_and_options_that_the_text_names_exist(name):
    for span in read_spans(PAGES[name]):
        if span.startswith("patchcluster "):
            word = span.split()[1]
            assert word.startswith("-") or word in GROUP.commands or word == "VERB", span
        elif not (span.startswith("--") or span.split()[0] in GROUP.commands):
            continue
        verb, options = named_in(span)
        assert options <= options_of(verb), span


def test_the_page_of_the_command_line_is_what_the_command_says():
    written = runpy.run_path(str(ROOT / "docs" / "write_cli.py"))["describe"](GROUP)
    assert PAGES["docs/cli.md"] == written, "write it anew: python docs/write_cli.py"


@pytest.mark.parametrize("verb", GROUP.commands)
def test_every_option_says_what_it_does(verb):
    command = GROUP.commands[verb]
    assert command.help
    for parameter in command.params:
        assert parameter.help, parameter.name


def test_every_example_is_run_by_a_page():
    typed = {
        words_of(command)[1]
        for command in shown_commands()
        if command.startswith("python ") and not why_not(command)
    }
    assert typed == {f"examples/{path.name}" for path in ROOT.glob("examples/*.py")}


@pytest.fixture
def example(monkeypatch):
    """The method of examples/my_method.py."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    return importlib.import_module("my_method").KthNearest


def common_tests():
    """The tests that every method is held to, or nearly every one, with all their parameters."""
    for name, test in vars(test_methods).items():
        marks = {
            mark.args[0]: mark.args[1]
            for mark in getattr(test, "pytestmark", [])
            if mark.name == "parametrize"
        }
        if {"spade", "patchcore-lof"} <= set(marks.pop("name", ())):
            for values in product(*marks.values()):
                if not any(hasattr(value, "marks") for value in values):  # it needs a GPU
                    given = dict(zip(marks, values, strict=True))
                    yield pytest.param(test, given, id=f"{name}-{values}" if values else name)


@pytest.mark.parametrize(("test", "given"), list(common_tests()))
def test_the_example_of_a_method_is_held_to_what_all_are_held_to(test, given, example):
    with mock.patch.dict(methods.METHODS, {example.name: example}):
        test(example.name, **given)


def test_the_example_of_a_method_scores_by_its_formula(example):
    patches = random_patches()
    rows = patches.reshape(-1, 7)
    distances = np.sort(distances64(rows, rows), axis=1)
    scores = example(k=4).fit_score(patches)
    np.testing.assert_allclose(scores.ravel(), distances[:, 4], rtol=1e-4)


@pytest.mark.slow
def test_the_site_builds(tmp_path, monkeypatch):
    """With each page in the navigation, no link that leads nowhere, and nothing from elsewhere."""
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: make test installs it")
    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "not included in the" not in done.stderr  # pages without a place in the navigation
    for page in (tmp_path / "site").rglob("*.html"):
        for tag in re.findall(r"<(?:script|link|img|iframe)[^>]*>", page.read_text()):
            assert not re.search(r"(?:src|href)=\"?https?:", tag), tag


def test_the_house_has_all_its_rooms():
    """Each file and folder of the package is in the list of docs/architecture.md."""
    (tree,) = (b for b in read_blocks(PAGES["docs/architecture.md"]) if kind_of(b) == "tree")
    root, listed = entries_of(tree.text)
    package = [
        *(ROOT / root).glob("*.py"),
        *(ROOT / root).glob("*.[ch]"),
        *(ROOT / root).glob("[!_]*/"),
    ]
    rooms = {f"{path.name}/" if path.is_dir() else path.name for path in package}
    assert set(listed) == {room for room in rooms if not room.startswith("__")}


@pytest.mark.parametrize(
    "room", ["images", "methods", "network", "pipeline", "runs", "scores", "search"]
)
def test_a_room_says_what_each_of_its_files_does(room):
    says = importlib.import_module(f"patchcluster.{room}").__doc__
    files = {path.name for path in (ROOT / "src/patchcluster" / room).glob("[!_]*.py")}
    assert set(re.findall(r"\w+\.py", says)) == files


def test_the_way_of_one_image_is_as_it_is_written():
    page = (
        PAGES["docs/architecture.md"]
        .partition("## What happens to one image")[2]
        .partition("##")[0]
    )
    names = re.findall(r"`([a-z]+(?:\.\w+)+)`", page)
    assert len(names) > 12
    for name in names:
        assert pkgutil.resolve_name(f"patchcluster.{name}"), name


def test_the_pictures_can_be_drawn(tmp_path, monkeypatch):
    cheap(monkeypatch)
    monkeypatch.syspath_prepend(ROOT / "docs")
    pictures = importlib.import_module("pictures")
    monkeypatch.setattr(pictures, "HERE", tmp_path)
    monkeypatch.setattr(sys, "argv", ["pictures.py", str(tmp_path)])
    pictures.main()
    for name in ("patches.jpg", "neighbours.jpg", "map.jpg"):
        with Image.open(tmp_path / name) as drawn, Image.open(ROOT / "docs" / name) as kept:
            assert drawn.size == kept.size
        assert f"({name})" in PAGES["docs/how-it-works.md"]


# --- how pages are read -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("patchcluster scan photos/ --frobnicate\n", "No such option"),
        ("patchcluster scan s3://bucket/photos --frobnicate\n", "No such option"),
        ("patchcluster frobnicate\n", "no verb"),
        ("patchcluster score nowhere/ photos/\n", "exit code 1"),
        ("pip install 'patchcluster[frobnicate]'\n", "frobnicate"),
        ("make frobnicate\n", "frobnicate"),
        ("python examples/frobnicate.py\n", "no script"),
        ("cp nowhere.png there.png\n", "cp"),
        ("import patchcluster\npatchcluster.frobnicate()\n", "frobnicate"),
        ("frobnicate/\n  photos\n", ""),
    ],
)
def test_a_block_that_does_not_work_is_found(text, words, services, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Exception) as error:  # noqa: PT011 (of many kinds)
        Page(services).follow(Block(text, 1))
    assert words in str(error.value) or words in repr(error.value)
