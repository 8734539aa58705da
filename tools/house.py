"""The numbers that say how large the house is, and how far one image goes in it.

    python tools/house.py [FOLDER_OF_IMAGES]

Without a folder a few drawn parts are scanned.
"""

import ast
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "patchcluster"


def functions(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the number of lines and the name of each function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield node.end_lineno - node.lineno + 1, node.name


def count_lines(folder: Path) -> tuple[int, int]:
    """Count the Python files below a folder, and their lines."""
    files = list(folder.rglob("*.py"))
    return len(files), sum(len(file.read_text().splitlines()) for file in files)


def imported(module: str) -> set[Path]:
    """List the files of the package that a fresh import of a module loads."""
    code = (
        f"import sys, {module}\n"
        "print(*(m.__file__ for n, m in sys.modules.items()"
        " if n.split('.')[0] == 'patchcluster' and m.__file__))"
    )
    listed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return {Path(name) for name in listed.stdout.split()}


def passed(folder: Path) -> tuple[int, int]:
    """Count the files and the functions of the package that a scan of a folder passes."""
    import patchcluster

    seen: set[tuple[str, str, int]] = set()

    def watch(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        ours = code.co_filename.startswith(str(PACKAGE)) and not code.co_name.startswith("<")
        if event == "call" and ours:
            seen.add((code.co_filename, code.co_name, code.co_firstlineno))

    with tempfile.TemporaryDirectory() as output:
        threading.setprofile(watch)
        sys.setprofile(watch)
        patchcluster.scan(folder, Path(output) / "run", size=(128,))
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    return len({file for file, _, _ in seen}), len(seen)


def main() -> None:
    files, lines = count_lines(PACKAGE)
    print(f"Python files, lines in src: {files}, {lines}")
    print(f"modules at the top level: {len(list(PACKAGE.glob('*.py')))}")
    print(f"C: {len([*PACKAGE.rglob('*.c'), *PACKAGE.rglob('*.h')])} files")
    sizes = {file: len(file.read_text().splitlines()) for file in PACKAGE.rglob("*.py")}
    for file, size in sorted(sizes.items(), key=lambda item: -item[1]):
        if size > 400:
            print(f"file over 400 lines: {file.relative_to(PACKAGE)} {size}")
    for file in sorted(PACKAGE.rglob("*.py")):
        for size, name in functions(ast.parse(file.read_text())):
            if size > 60:
                print(f"function over 60 lines: {file.relative_to(PACKAGE)} {name} {size}")
    loaded = imported("patchcluster.methods.patchcluster_plus")
    total = sum(len(file.read_text().splitlines()) for file in loaded)
    print(
        f"what methods.patchcluster_plus loads of the package: {len(loaded)} files, {total} lines"
    )
    files, lines = count_lines(ROOT / "tests")
    print(f"tests: {files} files, {lines} lines")
    with tempfile.TemporaryDirectory() as drawn:
        if len(sys.argv) > 1:
            folder = Path(sys.argv[1])
        else:
            from patchcluster.demo import write_parts

            write_parts(Path(drawn) / "parts")
            folder = Path(drawn) / "parts" / "test"
        print("files, functions a small scan passes: {}, {}".format(*passed(folder)))


if __name__ == "__main__":
    main()
