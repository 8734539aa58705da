"""Verbs that need the truth."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import (
    AsJson,
    Backbone,
    Debug,
    Device,
    MaxMemory,
    Preset,
    Quiet,
    RunFolder,
    Seed,
    Weights,
)
from .parsing import parse_names, parse_numbers
from .root import app
from .terminal import describe_figures, print_run, shown_errors, shown_progress, tell


@app.command(epilog="Example: patchcluster demo -o demo")
def demo(
    output: Annotated[
        str,
        typer.Option("--output", "-o", metavar="DIR", help="Where to put images and run."),
    ] = "demo",
    preset: Preset = None,
    seed: Annotated[int, typer.Option(help="Seed of the drawing.")] = 0,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Draw 60 machined parts, 12 of them with a known defect, and scan them."""
    with shown_errors(debug, resumes=True), shown_progress(quiet) as progress:
        from ..demo import write_parts
        from ..images.inputs import local_path
        from ..pipeline.evaluation import evaluate as run_evaluate
        from ..pipeline.scanning import scan as run_scan

        folder = local_path(output)
        parts = folder / "parts"
        write_parts(parts, seed=seed, progress=lambda done, total: progress("draw", done, total))
        run = run_scan(
            parts / "test", folder / "run", overwrite=True, progress=progress, preset=preset
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
            metavar="DIR", help="Data set (docs/datasets.md has the layouts), or its ground_truth."
        ),
    ],
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure a run against masks: image and pixel AUROC, average precision, F1max, PRO."""
    with shown_errors(debug), shown_progress(quiet) as progress:
        from ..pipeline.evaluation import evaluate as run_evaluate
        from ..runs.run import load_run

        run = load_run(run_folder)
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
        Path, typer.Argument(metavar="ROOT", help="Data set, in a layout of docs/datasets.md.")
    ],
    output: Annotated[
        str,
        typer.Option("--output", "-o", metavar="OUT", help="Where to write the tables."),
    ] = "benchmark",
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
    """Run the paper's methods in its settings and write its tables, measured and published.

    The same command after a kill goes on where it stopped; with more names it adds to OUT.
    """
    with shown_errors(debug, resumes=True), shown_progress(quiet) as progress:
        from ..benchmark import benchmark as run_benchmark

        given: dict[str, Any] = {
            "settings": parse_names(setting),
            "methods": parse_names(methods),
            "tables": parse_numbers(tables),
            "categories": parse_names(categories),
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
