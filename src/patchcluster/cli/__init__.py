"""The command line: parse, call the library, print, set the exit code.

Results go to standard output, everything else to standard error. torch is imported by the verbs
that need it, so that help appears at once.

options.py     every option and its help
terminal.py    what verbs print
sets.py        scan, update, demo
new_images.py  score, serve, watch
results.py     report, review, evaluate, export
choices.py     methods, backbones, benchmark
"""

import gc
import os
import sys
import warnings
from typing import Annotated, NoReturn

import typer

from .. import __version__
from . import choices, new_images, results, sets

_NOT_FLUSHED = 120  # exit code, as Python's own

app = typer.Typer(
    help="Find the anomalous images in a folder nobody has labelled, and where the anomaly is.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for _verb, _example in (  # in the order of help
    (sets.scan, "scan photos/ -o photos-run"),
    (new_images.score, "score photos-run new/ -o new-scores.csv"),
    (sets.update, "update photos-run --add new/ --remove IMG_0042.png"),
    (results.report, "report photos-run"),
    (results.review, "review photos-run"),
    (results.export, "export photos-run --format coco -o photos-coco.json"),
    (results.evaluate, "evaluate photos-run --truth dataset/ --json"),
    (choices.benchmark, "benchmark mvtec/ -o bench --setting mix,test,ano --tables 2,5,7"),
    (new_images.serve, "serve photos-run --port 8000"),
    (new_images.watch, "watch photos-run incoming/ -o line3.csv"),
    (choices.methods, "methods"),
    (choices.backbones, "backbones"),
    (sets.demo, "demo -o demo"),
):
    app.command(epilog=f"Example: patchcluster {_example}")(_verb)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"patchcluster {__version__}")
        raise typer.Exit


@app.callback()
def _global(
    version: Annotated[  # noqa: ARG001 (its callback prints)
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    return


def main() -> None:
    """Entry point of the `patchcluster` command."""
    warnings.filterwarnings("ignore", module="PIL")  # broken EXIF and the like: not the user's work
    # The networks' libraries make millions of objects that stay. To look through them again and
    # again while they load takes a second.
    gc.set_threshold(100_000)
    try:
        app()
    except SystemExit as end:
        _leave(end.code)


def _leave(code: str | int | None) -> NoReturn:
    """End the process at once.

    To take the networks' libraries apart at the usual end touches 130 MB of them that no scan uses:
    more memory than was foreseen for many, and most of a second.
    """
    if isinstance(code, str):
        print(code, file=sys.stderr)
    status = code if isinstance(code, int) else int(code is not None)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # a full disk, or nobody reads it any more
            status = status or _NOT_FLUSHED
    os._exit(status)
