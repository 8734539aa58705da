"""The command itself, which the verbs are added to."""

import time
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .. import __version__

STARTED = time.monotonic()  # before the networks' libraries are loaded

# As help lists them.
VERBS = (
    "scan", "score", "update", "report", "review", "export", "evaluate", "benchmark", "serve",
    "watch", "methods", "backbones", "demo",
)  # fmt: skip


class _InOrder(TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 (it is given)
        return sorted(self.commands, key=VERBS.index)


app = typer.Typer(
    cls=_InOrder,
    help="Find the anomalous images in a folder nobody has labelled, and where the anomaly is.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"patchcluster {__version__}")
        raise typer.Exit


@app.callback()
def _global(
    version: Annotated[  # noqa: ARG001 (its callback prints)
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    return
