"""Entries of a folder that are odd or cannot be read, each made here, with what becomes of it."""

import os
import socket
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from conftest import textured_image

DENIED = "permission denied"
NOT_REGULAR = "not a regular file"
NO_FILE = "no such file"
LOOP = "too many levels of symbolic links"
UNLISTED = "a folder that cannot be listed"


@dataclass(frozen=True)
class Case:
    """An entry, and what a scan makes of it: it is scored, skipped for a reason, or left out."""

    name: str  # below the folder
    make: Callable[[Path], None]  # gets its path
    reason: str | None = ""  # "": it is scored; None: it is left out


def make_cases() -> list[Case]:
    """All cases, in the order in which they are to be made; each name once."""
    cases = [*links(), *specials(), *folders(), *names(), *denied()]
    assert len({case.name for case in cases}) == len(cases)
    return cases


def draw(path: Path) -> None:
    """Write an image of its own there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(textured_image(int.from_bytes(os.fsencode(path.name)[-12:], "big")))
    with open(path, "wb") as file:
        image.save(file, "PNG")


def links() -> list[Case]:
    def link(target: str) -> Callable[[Path], None]:
        return lambda path: path.symlink_to(target)

    def hard_link(path: Path) -> None:
        os.link(path.parent / "part0.png", path)

    return [
        Case("to-file.png", link("part0.png")),  # a copy, as far as a scan knows
        Case("to-file-outside.png", link("../outside/one.png")),
        Case("to-link.png", link("to-file-outside.png")),
        Case("hard-link.png", hard_link),
        Case("dangling.png", link("nowhere.png"), NO_FILE),
        Case("through-file.png", link("part0.png/x.png"), "not a directory"),
        Case("itself.png", link("itself.png"), LOOP),
        Case("ring1.png", link("ring2.png"), LOOP),
        Case("ring2.png", link("ring1.png"), LOOP),
        Case("null.png", link("/dev/null"), NOT_REGULAR),
        Case("zero.png", link("/dev/zero"), NOT_REGULAR),  # would never end
        Case("above", link("."), None),  # a loop of folders
        Case("parent", link(".."), None),  # has this folder in it, and another
        Case("to-folder", link("../outside"), None),
        Case("to-folder/one.png", lambda _: None),
    ]


def specials() -> list[Case]:
    def listen(path: Path) -> None:
        here = os.getcwd()
        os.chdir(path.parent)  # addresses are short
        with socket.socket(socket.AF_UNIX) as unix:
            unix.bind(path.name)
        os.chdir(here)

    return [
        Case("pipe.png", os.mkfifo, NOT_REGULAR),
        Case("socket.png", listen, NOT_REGULAR),
        Case(".hidden.png", draw, None),
        Case(".hidden/inside.png", draw, None),
    ]


def folders() -> list[Case]:
    def bury(path: Path) -> None:
        """An image so deep that no path names it: 20 folders of 250 bytes."""
        descriptor = os.open(path.parent, os.O_RDONLY)
        for _ in range(20):
            os.mkdir("d" * 250, dir_fd=descriptor)
            below = os.open("d" * 250, os.O_RDONLY, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
        os.close(os.open("image.png", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor))
        os.close(descriptor)

    return [
        Case("folder.png", Path.mkdir, None),  # empty
        Case("album.png/inside.png", draw),
        Case("a/b/c/d/e/f/g/h/deep.png", draw),
        Case("too-deep", bury, None),  # what is skipped has a longer name: see the test
    ]


def names() -> list[Case]:
    composed = unicodedata.normalize("NFC", "é.png")
    odd = [
        "new\nline.png",
        "return\rtab\t.png",
        "\x1b[31mred\x07.png",
        " spaces .png",
        "-rf.png",
        "--json",
        "'quotes\".png",
        "<b>&amp;.png",
        "=cmd|'x'!A1.png",  # a formula in a spreadsheet
        "comma,semicolon;.png",
        "per%scent%n{0}.png",
        "back\\slash.png",
        "star*[1]?.png",
        "~",
        "CON.png",
        "dots...",
        "\u202egnp.exe.png",
        "\U0001f600.png",
        "\ufeffmark.png",
        composed,
        unicodedata.normalize("NFD", composed),
        os.fsdecode(b"latin\xe9.png"),
        os.fsdecode(b"\xff\xfe.png"),
        "n" * 246 + ".png",
        "é" * 123 + ".png",  # 250 bytes too
        "m" * 251 + ".png",  # 255 bytes, the most that there is
        "x" * 255,
        "1" * 240 + ".png",  # a number to sort by
        "²³.png",
    ]
    return [Case(name, draw) for name in odd]


def denied() -> list[Case]:
    """Entries that permissions keep from who may not override them."""

    def forbid(mode: int) -> Callable[[Path], None]:
        def make(path: Path) -> None:
            draw(path)
            path.chmod(mode)

        return make

    def forbid_folder(mode: int) -> Callable[[Path], None]:
        def make(path: Path) -> None:
            draw(path / "inside.png")
            path.chmod(mode)

        return make

    def forbid_around(mode: int) -> Callable[[Path], None]:
        def make(path: Path) -> None:
            draw(path)
            path.parent.chmod(mode)

        return make

    return [
        Case("secret.png", forbid(0), DENIED),
        Case("only-written.png", forbid(0o222), DENIED),
        Case("closed", forbid_folder(0), UNLISTED),
        Case("only-entered", forbid_folder(0o111), UNLISTED),
        Case("only-listed/inside.png", forbid_around(0o444), DENIED),
        Case("to-closed.png", lambda path: path.symlink_to("closed/inside.png"), DENIED),
        Case("only-read.png", forbid(0o444)),
        Case("read-and-entered/inside.png", forbid_around(0o555)),
    ]
