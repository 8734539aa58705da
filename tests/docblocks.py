"""Blocks of code in Markdown, what each of them holds, and what the text names in between."""

import ast
import json
import re
import shlex
from dataclasses import dataclass

from markdown_it import MarkdownIt

PROGRAMS = ("patchcluster", "pip", "make", "python", "curl", "ray", "mkdir", "cp")
_LANGUAGES = {
    "sh": "commands",
    "python": "python",
    "json": "json",
    "csv": "csv",
    "text": "text",  # shown as it is: no command may hide there
}


@dataclass(frozen=True)
class Block:
    """language: what stands behind the fence; line: its first, from 1."""

    text: str
    line: int
    language: str = ""


def read_blocks(text: str) -> list[Block]:
    """The fenced and the indented blocks of a page, in order."""
    return [
        Block(one.content, one.map[0] + 1 + (one.type == "fence"), one.info.partition(" ")[0])
        for one in MarkdownIt().parse(text)
        if one.type in ("fence", "code_block") and one.map
    ]


def read_spans(text: str) -> list[str]:
    """What stands in backticks outside of the blocks."""
    inline = (part for one in MarkdownIt().parse(text) for part in one.children or ())
    return [part.content for part in inline if part.type == "code_inline"]


def kind_of(block: Block) -> str:
    """commands, python, json, csv, tree or text. Raises ValueError for what is none of these."""
    kind = _LANGUAGES.get(block.language) if block.language else _guess(block.text)
    if kind is None:
        raise ValueError(
            "a block that is neither commands, nor Python, nor JSON, nor a tree of files: fence it "
            f"with one of {', '.join(_LANGUAGES)}"
        )
    if kind == "text" and _guess(block.text) == "tree":
        return "tree"
    if kind == "text" and any(_program(line) for line in block.text.splitlines()):
        raise ValueError("a command in a block of text would not be tested: fence it with sh")
    return kind


def _guess(text: str) -> str | None:
    lines = [line for line in text.splitlines() if line.strip()]
    if all(_program(line) for line in commands_of(text)):
        return "commands"
    if text[0] in "{[" and _is_json(text):
        return "json"
    if lines[1:] and lines[0].endswith("/") and all(line.startswith("  ") for line in lines[1:]):
        return "tree"
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return None
    does = (ast.Import, ast.ImportFrom, ast.Assign, ast.Call)
    return "python" if any(isinstance(node, does) for node in ast.walk(tree)) else None


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _program(line: str) -> bool:
    return line.split(maxsplit=1)[:1] != [] and line.split()[0] in PROGRAMS


def commands_of(text: str) -> list[str]:
    """The commands of a block, one a line or behind &&, without their comments."""
    commands = []
    for line in text.replace("\\\n", " ").splitlines():
        bare = re.sub(r"""^((?:[^#'"]|'[^']*'|"[^"]*")*?)(?<!\S)#.*$""", r"\1", line).strip()
        commands += [part.strip() for part in bare.split("&&") if part.strip()]
    return commands


def words_of(command: str) -> list[str]:
    return shlex.split(command)


def entries_of(tree: str) -> tuple[str, list[str]]:
    """The folder of a tree of files, and the names in it: what stands first in its lines.

    Lines that are indented further go on with what the line before says.
    """
    root, *lines = tree.splitlines()
    margin = min(len(line) - len(line.lstrip()) for line in lines)
    return root, [line.split()[0] for line in lines if not line[margin:].startswith(" ")]
