"""Verbs that score new images against a run."""

import signal
from contextlib import suppress
from functools import partial

import typer

from . import options
from .terminal import print_scores, shown_errors, shown_progress


def score(
    run_folder: options.RunFolder,
    inputs: options.Images,
    output: options.ScoresOutput = None,
    weights: options.Weights = None,
    device: options.Device = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Score new images against a run's bank, without changing it.

    Exit code 1 if none of them can be scored.
    """
    with shown_errors(debug), shown_progress(quiet) as progress:
        from ..images.inputs import local_path
        from ..pipeline import scoring

        table = None if output is None else local_path(output)  # before the work
        scores = scoring.score(
            run_folder,
            inputs,
            device=device,
            weights=weights,
            progress=partial(progress, "score"),
        )
        if table is not None and scores.images:
            scores.write(table)
    print_scores(scores, as_json)
    if not scores.images:
        raise typer.Exit(1)


def serve(
    run_folder: options.RunFolder,
    port: options.Port = 8000,
    token: options.Token = None,
    workers: options.Parallel = None,
    queue: options.Queue = 16,
    max_upload: options.MaxUpload = "64MiB",
    max_pixels: options.RequestPixels = 64_000_000,
    timeout: options.Timeout = 30,
    weights: options.Weights = None,
    device: options.Device = None,
    debug: options.Debug = False,
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


def watch(
    run_folder: options.RunFolder,
    folder: options.Arrivals,
    output: options.WatchOutput = None,
    settle: options.Settle = 2,
    interval: options.Interval = 1,
    existing: options.Existing = True,
    once: options.Once = False,
    weights: options.Weights = None,
    device: options.Device = None,
    debug: options.Debug = False,
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
