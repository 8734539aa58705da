"""Verbs that score new images against a run."""

import signal
from contextlib import suppress
from typing import Annotated

import typer

from .options import AsJson, Debug, Device, Quiet, RunFolder, Weights
from .root import app
from .terminal import print_scores, shown_errors, shown_progress


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
        from ..images.inputs import local_path
        from ..pipeline.scoring import score as score_images

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
        from ..pipeline.costs import parse_bytes
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


@app.command(epilog="Example: patchcluster watch photos-run incoming/ -o line3.csv")
def watch(
    run_folder: RunFolder,
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Where images arrive.")],
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="CSV", help="The table; else RUN-watch.csv."),
    ] = None,
    settle: Annotated[
        float,
        typer.Option(metavar="SECONDS", min=0, help="How long a file must not have changed."),
    ] = 2,
    interval: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.01, help="Between two looks at the folder.")
    ] = 1,
    existing: Annotated[bool, typer.Option(help="Score files that are there at the start.")] = True,
    once: Annotated[
        bool, typer.Option("--once", help="Score what is there and has settled, and end.")
    ] = False,
    weights: Weights = None,
    device: Device = None,
    debug: Debug = False,
) -> None:
    """Score images as they arrive in a folder, against a run's bank.

    Each is a row of a table, by which the next start knows it, and a JSON object in a line on
    standard output. Ctrl-C ends it.
    """
    with shown_errors(debug), suppress(KeyboardInterrupt):  # the way to end it
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # and that of services
        from ..watching import watch as watch_folder

        rows = watch_folder(
            run_folder,
            folder,
            output=output,
            settle=settle,
            interval=interval,
            existing=existing,
            once=once,
            device=device,
            weights=weights,
        )
        for row in rows:
            print(row.as_json(), flush=True)
