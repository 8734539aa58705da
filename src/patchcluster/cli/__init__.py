"""The command line: parse, call the library, print, set the exit code.

Results go to standard output, everything else to standard error. torch is imported by the commands
that need it, so that help appears at once.
"""

import gc
import os
import sys
import warnings
from typing import NoReturn

from . import exports, lists, measuring, new_images, sets  # noqa: F401 (they add their verbs)
from .root import app

_NOT_FLUSHED = 120  # exit code, as Python's own


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
