"""The command line: parse, call the library, print, set the exit code.

Results go to standard output, everything else to standard error. torch is imported by the commands
that need it, so that help appears at once.
"""

import dataclasses
import gc
import json
import os
import sys
import time
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from . import __version__
from .options import (
    AsJson,
    Backbone,
    BankImages,
    Debug,
    Device,
    Expect,
    FlagTop,
    ImageScoreName,
    K,
    LocalWeight,
    MaxMemory,
    MethodName,
    Preset,
    Quiet,
    Ratio,
    Ray,
    Roi,
    RunFolder,
    Seed,
    Size,
    Tile,
    TimeBudget,
    Weights,
)
from .terminal import (
    describe_figures,
    print_forecast,
    print_run,
    print_scores,
    shown_errors,
    shown_progress,
    tell,
)

_STARTED = time.monotonic()  # before the networks' libraries are loaded
_NOT_FLUSHED = 120  # exit code, as Python's own

app = typer.Typer(
    help="Find the anomalous images in a folder nobody has labelled, and where the anomaly is.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _parse_folder(text: str) -> Path:
    if "://" in text:
        raise typer.BadParameter(f"{text!r} is a URL: name a folder on this machine")
    return Path(text)


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


@app.command(epilog="Example: patchcluster scan photos/ -o photos-run")
def scan(
    inputs: Annotated[
        list[str], typer.Argument(metavar="INPUT...", help="Folders, files, globs, fsspec URLs.")
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="RUN",
            help="Run folder or its fsspec URL; else INPUT's name + -run.",
        ),
    ] = None,
    preset: Preset = None,
    method: MethodName = None,
    backbone: Backbone = None,
    weights: Weights = None,
    size: Size = None,
    tile: Tile = False,
    roi: Roi = None,
    k: K = None,
    ratio: Ratio = None,
    bank_images: BankImages = None,
    local_weight: LocalWeight = None,
    image_score: ImageScoreName = None,
    device: Device = None,
    ray: Ray = None,
    no_cache: Annotated[
        bool,
        typer.Option(
            "--no-cache", help="Keep no patches beside the bank: smaller, but no update after."
        ),
    ] = False,
    max_memory: MaxMemory = None,
    time_budget: TimeBudget = None,
    expect: Expect = None,
    flag_top: FlagTop = None,
    labels: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="CSV of path,label: normal, anomalous or unsure."),
    ] = None,
    seed: Seed = None,
    overwrite: Annotated[bool, typer.Option(help="Replace the scan in RUN.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it would need, and stop.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Score a set of images blindly and write a run.

    The same command after a kill goes on where it stopped. With other --labels a finished scan is
    compared again, with another --expect or --flag-top only flagged again.
    """
    with shown_errors(debug, resumes=True), shown_progress(quiet) as progress:
        from . import scanning

        asked: dict[str, Any] = {
            "max_memory": max_memory,
            "time_budget": time_budget,
            "since": _STARTED,
            "ray": ray,
            "progress": progress,
            "preset": preset,
            "method": method,
            "backbone": backbone,
            "weights": weights,
            "size": None if size is None else _parse_sizes(size),
            "tile": tile or None,
            "roi": roi,
            "k": k,
            "ratio": ratio,
            "bank_images": bank_images,
            "local_weight": local_weight,
            "image_score": image_score,
            "device": device,
            "seed": seed,
        }
        if dry_run:
            forecast = scanning.predict(inputs, **asked)
        else:
            run = scanning.scan(
                inputs,
                default_output(inputs[0]) if output is None else output,
                overwrite=overwrite,
                labels=labels or {},
                expect=None if expect is None else _parse_share(expect),
                flag_top=flag_top,
                cache=not no_cache,
                tell=(lambda _: None) if quiet else tell,
                **asked,
            )
    if dry_run:
        print_forecast(forecast, as_json)
    else:
        print_run(run, as_json)


@app.command(
    epilog="Example: patchcluster update photos-run --add new/ --remove IMG_0042.png",
)
def update(
    run_folder: RunFolder,
    add: Annotated[
        list[str] | None,
        typer.Option(metavar="INPUT", help="Folder, file, glob or URL; may be given again."),
    ] = None,
    remove: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Path, its end, or a pattern; may be given again."),
    ] = None,
    max_memory: MaxMemory = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Add images to a run, or remove some: scores equal a fresh scan of the same set.

    Only the added images go through the network. The same command after a kill goes on.
    """
    with shown_errors(debug, resumes=True), shown_progress(quiet) as progress:
        if not add and not remove:
            raise typer.BadParameter("nothing to do: give --add INPUT or --remove NAME")
        from .updating import update as update_run

        run = update_run(
            run_folder,
            add=add or (),
            remove=remove or (),
            max_memory=max_memory,
            since=_STARTED,
            progress=progress,
            tell=(lambda _: None) if quiet else tell,
        )
    print_run(run, as_json)


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
        from .remote import fetch
        from .scoring import score as score_images

        scores = score_images(
            fetch(run_folder, progress),
            inputs,
            device=device,
            weights=weights,
            progress=lambda done, total: progress("score", done, total),
        )
        if output is not None and scores.images:
            scores.write(output)
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
        from .costs import parse_bytes
        from .remote import fetch
        from .serving import Limits
        from .serving import serve as run_server

        with shown_progress(quiet=False) as progress:
            folder = fetch(run_folder, progress)
        run_server(
            folder,
            port,
            Limits(workers, queue, parse_bytes(max_upload), max_pixels, timeout),
            token=token,
            device=device,
            weights=weights,
            ready=lambda address: print(f"listening on {address}", flush=True),
        )


@app.command(epilog="Example: patchcluster demo -o demo")
def demo(
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            parser=_parse_folder,
            help="Where to put images and run.",
        ),
    ] = Path("demo"),
    preset: Preset = None,
    seed: Annotated[int, typer.Option(help="Seed of the drawing.")] = 0,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Draw 60 machined parts, 12 of them with a known defect, and scan them."""
    with shown_errors(debug, resumes=True), shown_progress(quiet) as progress:
        from .demo import write_parts
        from .evaluation import evaluate as run_evaluate
        from .scanning import scan as run_scan

        parts = output / "parts"
        write_parts(parts, seed=seed, progress=lambda done, total: progress("draw", done, total))
        run = run_scan(
            parts / "test", output / "run", overwrite=True, progress=progress, preset=preset
        )
        result = run_evaluate(run, parts)
    print_run(run, as_json=False)
    print("Against the defects that were drawn:", describe_figures(dataclasses.asdict(result)))


@app.command(epilog="Example: patchcluster evaluate photos-run --truth dataset/ --json")
def evaluate(
    run_folder: RunFolder,
    truth: Annotated[
        Path,
        typer.Option(
            metavar="DIR", help="Data set (MVTec AD, VisA, images + masks), or its ground_truth."
        ),
    ],
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure a run against masks: image and pixel AUROC, average precision, F1max, PRO."""
    with shown_errors(debug), shown_progress(quiet) as progress:
        from .evaluation import evaluate as run_evaluate
        from .remote import fetch
        from .runs import load_run

        run = load_run(fetch(run_folder, progress))
        result = run_evaluate(run, truth, lambda done, total: progress("evaluate", done, total))
    figures = dataclasses.asdict(result)
    if None in figures.values():
        print("'-' or null: a figure needs normal and anomalous images, and masks", file=sys.stderr)
    print(json.dumps(figures) if as_json else describe_figures(figures))


@app.command(
    epilog="Example: patchcluster benchmark mvtec/ -o bench --setting mix,test,ano --tables 2,5,7"
)
def benchmark(
    root: Annotated[
        Path, typer.Argument(metavar="ROOT", help="Data set: MVTec AD, VisA, or images + masks.")
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="OUT",
            parser=_parse_folder,
            help="Where to write the tables.",
        ),
    ] = Path("benchmark"),
    setting: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Of mix,test,ano,one-class; else all.")
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="Of those `methods` lists; else all but musc."),
    ] = None,
    tables: Annotated[
        str | None, typer.Option(metavar="NUMBERS", help="Of the paper's 1 to 7: 2,5,7; else all.")
    ] = None,
    categories: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Of the data set's; else all.")
    ] = None,
    figures: Annotated[
        bool, typer.Option("--figures", help="Draw what the paper's figures 1, 3, 4, 5 show.")
    ] = False,
    backbone: Backbone = None,
    weights: Weights = None,
    size: Annotated[
        int | None, typer.Option(metavar="PIXELS", help="Network input, a multiple of 32.")
    ] = None,
    crop: Annotated[
        bool, typer.Option(help="Resize to 8/7 of the input and cut out the centre, as the paper.")
    ] = True,
    device: Device = None,
    max_memory: MaxMemory = None,
    seed: Seed = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Run the paper's methods in its settings and write its tables, measured beside published.

    The same command after a kill goes on where it stopped; with more names it adds to OUT.
    """
    with shown_errors(debug, resumes=True), shown_progress(quiet) as progress:
        from .benchmark import benchmark as run_benchmark

        given: dict[str, Any] = {
            "settings": _names(setting),
            "methods": _names(methods),
            "tables": _numbers(tables),
            "categories": _names(categories),
            "backbone": backbone,
            "weights": weights,
            "size": size,
            "device": device,
            "seed": seed,
        }
        result = run_benchmark(
            root,
            output,
            figures=figures,
            crop=crop,
            max_memory=max_memory,
            progress=progress,
            tell=(lambda _: None) if quiet else tell,
            **{name: value for name, value in given.items() if value is not None},
        )
    if as_json:
        cells = [dataclasses.asdict(cell) for cell in result.cells]
        print(json.dumps({"report": str(result.report), "cells": cells}))
    else:
        print(result.report)


@app.command(epilog="Example: patchcluster report photos-run")
def report(
    run_folder: RunFolder,
    expect: Expect = None,
    flag_top: FlagTop = None,
    debug: Debug = False,
) -> None:
    """Flag the images of a run again, as asked now, and write RUN/report.html again."""
    with shown_errors(debug), shown_progress(quiet=False) as progress:
        from .scanning import refresh
        from .thresholds import Flagging

        share = None if expect is None else _parse_share(expect)
        run = refresh(run_folder, Flagging(share, flag_top), progress)
    print(
        f"{run.flagged.sum()} of {len(run)} images flagged: {run.threshold.meaning}",
        file=sys.stderr,
    )
    print(run.folder / "report.html")


@app.command(epilog="Example: patchcluster review photos-run")
def review(
    run_folder: RunFolder,
    port: Annotated[int, typer.Option(metavar="N", help="0: a free one.")] = 0,
    browser: Annotated[bool, typer.Option(help="Open the page in the browser.")] = True,
    debug: Debug = False,
) -> None:
    """Look at a run in the browser, label images, flag and score them again.

    The address it prints is for this machine and has the key to the page in it. Labels are kept in
    RUN/labels.sqlite. Ctrl-C ends it.
    """

    def started(address: str) -> None:
        print(address, flush=True)
        print("Ctrl-C ends the review; every label is saved as it is given", file=sys.stderr)

    with shown_errors(debug):
        from .remote import changing
        from .review import review as run_review
        from .scanning import finish

        with ExitStack() as stack:
            with shown_progress(quiet=False) as progress:
                folder = stack.enter_context(changing(run_folder, progress))
                finish(folder, progress)
            run_review(folder, port, browser, started)


@app.command(epilog="Example: patchcluster methods")
def methods(as_json: AsJson = False) -> None:
    """List the methods, what each does, and its parameters."""
    import inspect

    from .methods import METHODS

    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "does": inspect.cleandoc(method.__doc__ or "").splitlines()[0],
            "parameters": {
                parameter.name: parameter.default
                for parameter in inspect.signature(method).parameters.values()
                if parameter.name not in ("stages", "strides")  # come from the backbone
            },
        }
        for name, method in METHODS.items()
    ]
    if as_json:
        print(json.dumps(rows))
        return
    for row in rows:
        values = ", ".join(f"{name}={value}" for name, value in row["parameters"].items())
        print(f"{row['name']}\n    {row['does']}\n    {values}")


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


def default_output(first_input: str) -> Path:
    """Name a run after its first input, in the current folder."""
    name = Path(first_input).resolve().name if "://" not in first_input else ""
    plain = name and not any(c in name for c in "*?[")
    return Path(f"{name}-run" if plain else "patchcluster-run")


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(",")]


def _numbers(text: str | None) -> list[int] | None:
    try:
        return None if text is None else [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{text!r} are not numbers of tables: write 2,5,7") from None


def _parse_share(text: str) -> float:
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a share: write 5% or 0.05") from None


def _parse_sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a size: write 448, or 256,448") from None
