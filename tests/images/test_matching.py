"""Names as annotation tools write them, and the images that they mean."""

import os

import pytest

from patchcluster.exporting.names import mirror
from patchcluster.images.matching import match_masks, match_names

HASH = "0123456789abcdef" * 2


def pairs(names, paths, match=match_names, **options):
    """Path -> name, or the reason."""
    matches = match(names, paths, **options)
    assert not matches.found.keys() & matches.unclear.keys()
    assert len(set(matches.found.values())) == len(matches.found)
    return {paths[i]: names[name] for i, name in matches.found.items()} | {
        paths[i]: (why,) for i, why in matches.unclear.items()
    }


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("a.jpg", "photos/a.jpg"),
        ("./photos/a.jpg", "photos/a.jpg"),
        ("images\\a.jpg", "photos/a.jpg"),
        ("C:\\work\\sub\\a.jpg", "photos/sub/a.jpg"),
        ("A.JPG", "photos/a.jpg"),
        ("e\u0301.jpg", "photos/\u00e9.jpg"),  # NFD, as macOS has it
        ("cb0618f6-a.jpg", "photos/a.jpg"),
        ("/data/upload/1/cb0618f6-a.jpg", "photos/a.jpg"),
        ("images\\1\\cb0618f6-a.jpg", "photos/a.jpg"),
        ("cb0618f6-my_part_2.jpg", "photos/my part (2).jpg"),
        ("data/local-files/?d=a.jpg", "photos/a.jpg"),
        ("/data/local-files/?d=photos%2Fmy%20part.jpg", "photos/my part.jpg"),
        ("http://localhost:8080/data/local-files/?d=sub/a.jpg", "photos/sub/a.jpg"),
        (f"a_jpg.rf.{HASH}.jpg", "photos/a.jpg"),
        (f"A_PNG.rf.{HASH}.jpg", "photos/a.png"),
        (f"my-part-1_jpg.rf.{HASH}.jpg", "photos/my part.1.jpg"),
        ("a.jpg", f"photos/a_jpg.rf.{HASH}.jpg"),  # the other way round
        ("sub/a.jpg", "s3://bucket/sub/a.jpg"),
        ("s3://bucket/sub/a.jpg", "s3://bucket/sub/a.jpg"),
    ],
)
def test_names_that_tools_change(name, path):
    other = os.path.dirname(path) + "/other.jpg"
    assert pairs([name, "another.jpg"], [other, path]) == {path: name}


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("a.jpg", "photos/a.png"),
        ("ba.jpg", "photos/a.jpg"),
        ("cb0618f-a.jpg", "photos/a.jpg"),  # 7 digits
        ("a_jpg.rf.0123.jpg", "photos/a.jpg"),
        ("", "photos/a.jpg"),
        ("/", "photos/a.jpg"),
    ],
)
def test_other_names_are_of_no_image(name, path):
    assert pairs([name], [path]) == {}


def test_a_stricter_rule_goes_first():
    paths = ["p/a.jpg", "p/A.jpg", "p/cb0618f6-a.jpg", f"p/a_jpg.rf.{HASH}.jpg"]
    assert pairs([os.path.basename(path) for path in paths], paths) == {
        path: os.path.basename(path) for path in paths
    }
    assert pairs(["A.jpg"], ["p/A.jpg", "p/a.jpg"]) == {"p/A.jpg": "A.jpg"}
    assert pairs(["x/a.jpg", "y/a.jpg"], ["q/x/a.jpg"]) == {"q/x/a.jpg": "x/a.jpg"}


def test_two_images_of_one_base_name():
    paths = ["photos/a.jpg", "photos/sub/a.jpg"]
    assert pairs(mirror(paths), paths) == {paths[0]: "a.jpg", paths[1]: "sub/a.jpg"}
    assert pairs(["sub\\A.jpg", "A.jpg"], paths) == {paths[0]: "A.jpg", paths[1]: "sub\\A.jpg"}
    assert pairs(mirror(paths), paths[1:]) == {paths[1]: "sub/a.jpg"}  # of a part of the images
    paths = ["photos/x/a.jpg", "photos/y/a.jpg"]
    assert pairs(["x/a.jpg", "y/a.jpg"], paths) == {p: p[7:] for p in paths}
    for name in ("a.jpg", "A.jpg", "z/a.jpg", "cb0618f6-a.jpg"):
        assert pairs([name], paths) == dict.fromkeys(paths, (f"{name!r} fits 2 images",))
    assert pairs(["x/a.jpg", "a.jpg"], paths) == {
        paths[0]: "x/a.jpg",
        paths[1]: ("'a.jpg' fits 2 images",),  # which may be of photos/a.jpg
    }


def test_an_image_with_two_names_has_none():
    names = [f"a_jpg.rf.{HASH}.jpg", f"a_jpg.rf.{HASH[::-1]}.jpg", "b.jpg", "b.jpg"]
    assert pairs(names, ["p/a.jpg", "p/b.jpg"]) == {
        "p/a.jpg": (f"2 names fit it, the first {names[0]!r}",),
        "p/b.jpg": ("2 names fit it, the first 'b.jpg'",),
    }


def test_links_are_followed_to_the_files_of_names(tmp_path):
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).touch()
    (tmp_path / "flat").mkdir()
    links = [str(tmp_path / "flat" / name) for name in ("a.jpg", "b.jpg")]
    os.symlink(tmp_path / "b.jpg", links[0])  # names are exchanged
    os.symlink(tmp_path / "a.jpg", links[1])
    files = [str(tmp_path / "a.jpg"), str(tmp_path / "b.jpg")]
    assert pairs(["a.jpg", "b.jpg"], links, files=files) == {links[0]: "b.jpg", links[1]: "a.jpg"}
    both = match_names(["a.jpg"], [files[0], links[1]], files[:1])
    assert both.found == {0: 0, 1: 0}  # one file


def test_where_folders_count_base_names_do_not():
    assert pairs(["good/1.jpg"], ["p/crack/1.jpg"], by_base_name=False) == {}
    assert pairs(["good/1"], ["p/crack/1.jpg"], match_masks) == {}


def test_names_of_masks_have_the_ending_of_their_image_or_none():
    paths = ["p/a.jpg", "p/a.png", "p/b.jpg", "p/sub/b.jpg", "p/c.d.jpg"]
    names = ["a.jpg", "a.png", "B", "sub/b", "c.d"]
    assert pairs(names, paths, match_masks) == dict(zip(paths, names, strict=True))
    assert pairs(["a"], paths, match_masks) == dict.fromkeys(paths[:2], ("'a' fits 2 images",))
