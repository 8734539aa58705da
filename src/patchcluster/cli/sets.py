"""Verbs that write a run of a set of images, or change one."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

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
    Weights,
)
from .parsing import default_output, parse_share, parse_sizes
from .root import STARTED, app
from .terminal import print_forecast, print_run, shown_errors, shown_progress, tell


@app.command(epilog="Example: patchcluster scan photos/ -o photos-run")
def scan(
    inputs: Annotated[
        list[str], typer.Argument(metavar="INPUT...", help="Folders, files, globs, fsspec URLs.")
    ],
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="RUN", help="Run folder; else INPUT's name + -run."),
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
            "--no-cache", help="Keep no patches besides the bank: smaller, but no update after."
        ),
    ] = False,
    max_memory: MaxMemory = None,
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
        from ..pipeline import scanning

        asked: dict[str, Any] = {
            "max_memory": max_memory,
            "since": STARTED,
            "ray": ray,
            "progress": progress,
            "preset": preset,
            "method": method,
            "backbone": backbone,
            "weights": weights,
            "size": None if size is None else parse_sizes(size),
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
                expect=None if expect is None else parse_share(expect),
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
        from ..pipeline.updating import update as update_run

        run = update_run(
            run_folder,
            add=add or (),
            remove=remove or (),
            max_memory=max_memory,
            since=STARTED,
            progress=progress,
            tell=(lambda _: None) if quiet else tell,
        )
    print_run(run, as_json)


@app.command(epilog="Example: patchcluster report photos-run")
def report(
    run_folder: RunFolder,
    expect: Expect = None,
    flag_top: FlagTop = None,
    debug: Debug = False,
) -> None:
    """Flag the images of a run again, as asked now, and write RUN/report.html again."""
    with shown_errors(debug), shown_progress(quiet=False) as progress:
        from ..images.inputs import local_path
        from ..pipeline.rescoring import refresh
        from ..scores.thresholds import Flagging

        share = None if expect is None else parse_share(expect)
        run = refresh(local_path(run_folder), Flagging(share, flag_top), progress)
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
        from ..images.inputs import local_path
        from ..pipeline.rescoring import finish
        from ..review import review as run_review

        folder = local_path(run_folder)
        with shown_progress(quiet=False) as progress:
            finish(folder, progress)
        run_review(folder, port, browser, started)
