import os
from pathlib import Path

import pytest

from patchcluster.errors import InputError, UnreadableImage
from patchcluster.images.finding import find_images
from patchcluster.images.inputs import natural_key, open_input


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def names(found: list[str], root: Path) -> list[str]:
    return [os.path.relpath(path, root) for path in found]


def test_folders_are_searched_in_natural_order(tmp_path):
    touch(*(tmp_path / n for n in ("p10.png", "p2.png", "P1.png", "b/p1.png", "a.txt")))
    expected = ["P1.png", "a.txt", "b/p1.png", "p2.png", "p10.png"]
    assert names(find_images([tmp_path]), tmp_path) == expected


def test_natural_key_compares_numbers_as_numbers_and_never_fails():
    texts = ["a10", "a9", "9", "10b", "a", "", "²", "a²", "01", "1"]
    ordered = sorted(texts, key=natural_key)
    assert ordered.index("a9") < ordered.index("a10")
    assert ordered.index("9") < ordered.index("10b")


JUNK = [
    ".b.png", "._a.png", ".DS_Store", ".git/c.png", ".thumbnails/a.png", "@eaDir/a.png/THUMB.jpg",
    "__MACOSX/._a.png", "Thumbs.db", "sub/thumbs.db", "desktop.ini", "$RECYCLE.BIN/$R1.png",
    "System Volume Information/x", "lost+found/x.png", "#recycle/a.png", "Icon\r",
]  # fmt: skip


def test_hidden_and_system_files_and_folders_are_left_out_and_counted(tmp_path, monkeypatch):
    touch(*(tmp_path / name for name in ("a.png", "sub/d.png", "x/lost+found.png", *JUNK)))
    monkeypatch.chdir(tmp_path)
    lines = []
    found = find_images(["."], tell=lines.append)
    assert found == ["a.png", "sub/d.png", "x/lost+found.png"]
    assert lines == [
        "files and folders of the system left out: 13 "
        "(#recycle, $RECYCLE.BIN, .DS_Store, ._*, .thumbnails, ...)"
    ]
    assert find_images(["*", "*/*", "**/*", "?*"]) == found
    assert find_images([str(tmp_path)], tell=lines.append) == [str(tmp_path / f) for f in found]
    assert lines[1] == lines[0]


@pytest.mark.parametrize(
    "item",
    [
        ".b.png", ".b*", "Thumbs.db", "@eaDir", "@ea*/**", "*/@eaDir/*", "lost+found/*.png",
        ".thumbnails", "s?b/thumbs.db", "@eaDir/a.png/THUMB.jpg",
    ],
)  # fmt: skip
def test_a_hidden_or_system_file_or_folder_that_is_named_is_found(tmp_path, monkeypatch, item):
    touch(*(tmp_path / name for name in JUNK), tmp_path / "x" / "@eaDir" / "1.jpg")
    monkeypatch.chdir(tmp_path)
    lines = []
    assert len(find_images([item], tell=lines.append)) == 1
    assert lines == []


def test_what_leave_out_names_is_left_out(tmp_path):
    touch(tmp_path / "a.png", tmp_path / "run" / "thumbnails" / "1.jpg")
    found = find_images([tmp_path], lambda folder: folder.name == "run")
    assert names(found, tmp_path) == ["a.png"]


def test_links_are_followed_and_loops_are_not(tmp_path):
    touch(tmp_path / "set" / "a.png", tmp_path / "other" / "b.png")
    (tmp_path / "set" / "link").symlink_to(tmp_path / "other")
    (tmp_path / "set" / "c.png").symlink_to(tmp_path / "other" / "b.png")
    (tmp_path / "other" / "loop").symlink_to(tmp_path / "set")
    found = names(find_images([tmp_path / "set"]), tmp_path / "set")
    assert found == ["a.png", "c.png", "link/b.png"]


def test_a_file_named_twice_is_listed_once(tmp_path, monkeypatch):
    touch(tmp_path / "a.png", tmp_path / "b.png")
    monkeypatch.chdir(tmp_path)
    assert find_images(["a.png", ".", "*.png"]) == ["a.png", "b.png"]


def test_globs(tmp_path):
    touch(tmp_path / "x" / "a.png", tmp_path / "x" / "b.jpg", tmp_path / "y" / "c.png")
    assert names(find_images([f"{tmp_path}/*/*.png"]), tmp_path) == ["x/a.png", "y/c.png"]
    assert len(find_images([f"{tmp_path}/**"])) == 3


def test_a_file_whose_name_looks_like_a_glob(tmp_path):
    touch(tmp_path / "a[1].png")
    assert find_images([tmp_path / "a[1].png"]) == [str(tmp_path / "a[1].png")]


@pytest.mark.parametrize("pattern", ["missing", "missing/*.png"])
def test_inputs_that_are_not_there_are_errors_that_name_them(tmp_path, pattern):
    with pytest.raises(InputError, match=r"missing"):
        find_images([tmp_path / pattern])


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no files"):
        find_images([tmp_path])


def test_what_is_no_regular_file_is_never_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "dangling.png").symlink_to(tmp_path / "gone.png")
    assert len(find_images([tmp_path])) == 2
    with pytest.raises(UnreadableImage, match="not a regular file"):
        open_input(str(tmp_path / "pipe.png"))
    with pytest.raises(UnreadableImage, match="no such file"):
        open_input(str(tmp_path / "dangling.png"))
    with pytest.raises(UnreadableImage, match="folder"):
        open_input(str(tmp_path))
