"""Names as annotation tools write them, and the images that they mean."""

import os
import re
import time

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
        (f"images-1-_jpg.rf.{HASH}.jpg", "photos/images (1).jpg"),
        (f"{'1' * 8}-a_jpg.rf.{HASH}.jpg", f"photos/{'1' * 8}-a.jpg"),
        ("https://host/photos/my%20dir/a.jpg", "photos/my dir/a.jpg"),
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
        ("20240101-0001.jpg", "photos/20240102-0001.jpg"),
        (f"a_jpg.rf.{HASH}.jpg", f"photos/a_jpg.rf.{HASH[::-1]}.jpg"),
        ("a.jpg", "photos/cb0618f6-a.jpg"),
        ("-5C.png", "photos/5C.png"),
        ("weld+1.png", "photos/weld-1.png"),
        ("bolt2.jpg", "photos/bolt(2).jpg"),  # nobody's prefix
        ("", "photos/a.jpg"),
        ("/", "photos/a.jpg"),
    ],
)
def test_other_names_match_no_image(name, path):
    assert pairs([name], [path]) == {}


def test_masks_of_another_day_match_no_image():
    assert pairs(["20240101-0001"], ["p/20240102-0001.jpg"], match_masks) == {}
    assert pairs(["-5C"], ["p/5C.png"], match_masks) == {}


@pytest.mark.parametrize(
    "name",
    ["my part (1).jpg", "bolt(2).jpg", "part#3.jpg", "a+b.jpg", "10% off.jpg", "w=1,h=2.jpg",
     "a  b.jpg", "a - b.jpg", "x@2x.png", "-5C.png"],
)  # fmt: skip
def test_names_of_uploads_are_found_by_the_formula_of_django(name):
    """The formula of `django.utils.text.get_valid_filename`, by which Label Studio names files."""
    upload = "cb0618f6-" + re.sub(r"(?u)[^-\w.]", "", name.strip().replace(" ", "_"))
    paths = [f"photos/{name}", "photos/z.jpg"]
    assert pairs([upload, "another.jpg"], paths) == {paths[0]: upload}


@pytest.mark.parametrize(
    "base", ["C:\\work\\photos\\", "c:/Work/PHOTOS/", "/data/photos/", "https://host/photos/"]
)
def test_the_longest_common_end_of_name_and_path_matches(base):
    paths = ["/home/me/photos/a.jpg", "/home/me/photos/x/a.jpg", "/home/me/photos/y/a.jpg"]
    names = [base + name for name in ("y/a.jpg", "x/a.jpg", "a.jpg")]
    assert pairs(names, paths) == dict(zip(paths, names[::-1], strict=True))
    assert pairs(names[:2], ["/p/z/a.jpg"]) == {
        "/p/z/a.jpg": (f"2 names match it, the first {names[0]!r}",)
    }


def test_folders_that_differ_in_letter_case_decide():
    paths = ["p/x/a.jpg", "p/y/a.jpg"]
    assert pairs(["X/a.jpg", "Y/a.jpg"], paths) == {paths[0]: "X/a.jpg", paths[1]: "Y/a.jpg"}


@pytest.mark.parametrize(
    ("names", "unclear"),
    [
        (["rgb.png"], 8000),
        ([f"q/{-i}/rgb.png" for i in range(1, 8001)], 8000),
        ([f"{i}/rgb.png" for i in range(4000)], 0),
    ],
    ids=["one name", "no folder in common", "half of the images"],
)
def test_the_time_of_matching_grows_with_the_images(names, unclear):
    """It grew with their square: 36 s for one name."""
    begin = time.perf_counter()
    found = match_names(names, [f"p/{i}/rgb.png" for i in range(8000)])
    assert len(found.unclear) == unclear
    assert time.perf_counter() - begin < 10


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
        assert pairs([name], paths) == dict.fromkeys(paths, (f"{name!r} matches 2 images",))
    assert pairs(["x/a.jpg", "a.jpg"], paths) == {
        paths[0]: "x/a.jpg",
        paths[1]: ("'a.jpg' matches 2 images",),  # which may be of photos/a.jpg
    }


def test_an_image_with_two_names_has_none():
    names = [f"a_jpg.rf.{HASH}.jpg", f"a_jpg.rf.{HASH[::-1]}.jpg", "b.jpg", "b.jpg"]
    assert pairs(names, ["p/a.jpg", "p/b.jpg"]) == {
        "p/a.jpg": (f"2 names match it, the first {names[0]!r}",),
        "p/b.jpg": ("2 names match it, the first 'b.jpg'",),
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
    assert pairs(["a"], paths, match_masks) == dict.fromkeys(paths[:2], ("'a' matches 2 images",))
