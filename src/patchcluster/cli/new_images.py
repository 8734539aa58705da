"""Verbs that score new images against a run."""

import signal
from contextlib import suppress
from typing import Annotated, Any

import typer

from .options import AsJson, Debug, Device, Quiet, RunFolder, Weights
from .root import app
from .terminal import print_row, print_scores, shown_errors, shown_progress


@app.command(epilog="Example: patchcluster score photos-run new/ -o new-scores.csv")
def score(
    run_folder: RunFolder,
    inputs: Annotated[
        list[str], typer.Argument(metavar="IMAGES...", help="Folders, files, globs, fsspec URLs.")
    ],
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="CSV", help="Write the table of scores there too."),
    ] = None,
    weights: Weights = None,
    device: Device = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Score new images against a run's bank, without changing it.

    Exit code 1 if none of them can be scored.
    """
    with shown_errors(debug), shown_progress(quiet) as progress:
        from ..inputs import local_path
        from ..scoring import score as score_images

        table = None if output is None else local_path(output)  # before the work
        scores = score_images(
            run_folder,
            inputs,
            device=device,
            weights=weights,
            progress=lambda done, total: progress("score", done, total),
        )
        if table is not None and scores.images:
            scores.write(table)
    print_scores(scores, as_json)
    if not scores.images:
        raise typer.Exit(1)


@app.command(epilog="Example: patchcluster serve photos-run --port 8000")
def serve(
    run_folder: RunFolder,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    token: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", envvar="PATCHCLUSTER_TOKEN", help="Ask for it as a bearer token."
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Images at a time; else one a core.")
    ] = None,
    queue: Annotated[
        int, typer.Option(metavar="N", min=0, help="Images that may wait; others get a 503.")
    ] = 16,
    max_upload: Annotated[
        str, typer.Option(metavar="SIZE", help="Largest file that is taken.")
    ] = "64MiB",
    max_pixels: Annotated[
        int, typer.Option(metavar="N", min=1, help="Most pixels of an image that is taken.")
    ] = 64_000_000,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.1, help="Then a request gets a 504.")
    ] = 30,
    weights: Weights = None,
    device: Device = None,
    debug: Debug = False,
) -> None:
    """Score images over HTTP, on this machine only, against a run's bank.

    POST the bytes of an image to /score. /openapi.json describes it all. Ctrl-C ends it.
    """
    with shown_errors(debug):
        from ..costs import parse_bytes
        from ..serving import Limits
        from ..serving import serve as run_server

        run_server(
            run_folder,
            port,
            Limits(workers, queue, parse_bytes(max_upload), max_pixels, timeout),
            token=token,
            device=device,
            weights=weights,
            ready=lambda address: print(f"listening on {address}", flush=True),
        )


@app.command(
    epilog="Example: patchcluster watch photos-run incoming/ --on-flagged 'mv {path} bad/'"
)
def watch(
    run_folder: RunFolder,
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Where images arrive.")],
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="CSV", help="The table; else RUN-watch.csv."),
    ] = None,
    settle: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", min=0, help="How long a file must not have changed; else 2."
        ),
    ] = None,
    interval: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", min=0.01, help="Between two looks at the folder; else 1."),
    ] = None,
    existing: Annotated[bool, typer.Option(help="Score files that are there at the start.")] = True,
    once: Annotated[
        bool, typer.Option("--once", help="Score what is there and has settled, and end.")
    ] = False,
    on_flagged: Annotated[
        str | None,
        typer.Option(
            metavar="COMMAND",
            help="Run for each flagged image, without a shell: {path}, {score}, {threshold}.",
        ),
    ] = None,
    webhook: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            envvar="PATCHCLUSTER_WEBHOOK",
            help="Post each flagged image there, as JSON.",
        ),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", min=0.1, help="That a command or a post may take; else 30."
        ),
    ] = None,
    weights: Weights = None,
    device: Device = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
    debug: Debug = False,
) -> None:
    """Score images as they arrive in a folder, against a run's bank.

    Each is a row of a table, by which the next start knows it. Ctrl-C ends it.
    """
    with shown_errors(debug), suppress(KeyboardInterrupt):  # the way to end it
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # and that of services
        from ..watching import watch as watch_folder

        seconds = {"settle": settle, "interval": interval, "timeout": timeout}
        given: dict[str, Any] = {n: value for n, value in seconds.items() if value is not None}
        rows = watch_folder(
            run_folder,
            folder,
            **given,
            output=output,
            existing=existing,
            once=once,
            on_flagged=on_flagged,
            webhook=webhook,
            device=device,
            weights=weights,
        )
        for row in rows:
            print_row(row, as_json)
