"""Verbs that make the run of a set of images, or change the set."""

import dataclasses
import time
from functools import partial
from pathlib import Path
from typing import Any

import typer

from ..settings import Settings, resolve
from . import options
from .terminal import (
    describe_figures,
    print_forecast,
    print_run,
    shown_errors,
    shown_progress,
    teller,
)

_STARTED = time.monotonic()  # before the networks' libraries are loaded


def scan(
    inputs: options.Inputs,
    output: options.RunOutput = None,
    preset: options.Preset = None,
    method: options.MethodName = None,
    backbone: options.Backbone = None,
    weights: options.Weights = None,
    size: options.Size = None,
    tile: options.Tile = False,
    max_pixels: options.MaxPixels = None,
    window: options.Window = None,
    roi: options.Roi = None,
    k: options.K = None,
    ratio: options.Ratio = None,
    bank_images: options.BankImages = None,
    local_weight: options.LocalWeight = None,
    image_score: options.ImageScoreName = None,
    device: options.Device = None,
    ray: options.Ray = None,
    no_cache: options.NoCache = False,
    max_memory: options.MaxMemory = None,
    expect: options.Expect = None,
    flag_top: options.FlagTop = None,
    labels: options.Labels = None,
    seed: options.Seed = None,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Score a set of images blindly and write a run.

    After a kill the same command resumes. With other --labels a finished scan is compared again,
    with another --expect or --flag-top only flagged again.
    """
    asked = _pick_settings(locals())
    with shown_errors(debug, resumes=True), shown_progress(quiet) as progress:
        resolve(**asked)  # a mistake is told before the networks' libraries are loaded
        from ..pipeline import scanning

        asked |= {"max_memory": max_memory, "since": _STARTED, "ray": ray, "progress": progress}
        if dry_run:
            forecast = scanning.predict(inputs, **asked)
        else:
            run = scanning.scan(
                inputs,
                name_run(inputs[0]) if output is None else output,
                overwrite=overwrite,
                labels=labels or {},
                expect=expect,
                flag_top=flag_top,
                cache=not no_cache,
                tell=teller(quiet),
                **asked,
            )
    if dry_run:
        print_forecast(forecast, as_json)
    else:
        print_run(run, as_json)


def _pick_settings(given: dict[str, Any]) -> dict[str, Any]:
    """Pick of a verb's options those that are settings of a scan."""
    names = {field.name for field in dataclasses.fields(Settings)}
    asked = {name: value for name, value in given.items() if name in names}
    return asked | {
        "size": options.parse_sizes(asked["size"]),
        "window": options.parse_window(asked["window"]),
        "tile": asked["tile"] or None,  # not given: the preset's
    }


def name_run(first_input: str) -> Path:
    """Name a run after its first input, in the current folder."""
    name = Path(first_input).resolve().name if "://" not in first_input else ""
    plain = name and not any(c in name for c in "*?[")
    return Path(f"{name}-run" if plain else "patchcluster-run")


def update(
    run_folder: options.RunFolder,
    add: options.Add = None,
    remove: options.Remove = None,
    max_memory: options.MaxMemory = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Add images to a run, or remove some: scores equal a fresh scan of the same set.

    Only the added images go through the network. After a kill the same command resumes.
    """
    if not add and not remove:
        raise typer.BadParameter("nothing to do: give --add INPUT or --remove NAME")
    with shown_errors(debug, resumes=True), shown_progress(quiet) as progress:
        from ..pipeline.updating import update as update_run

        run = update_run(
            run_folder,
            add=add or (),
            remove=remove or (),
            max_memory=max_memory,
            progress=progress,
            tell=teller(quiet),
        )
    print_run(run, as_json)


def demo(
    output: options.DemoOutput = "demo",
    preset: options.Preset = None,
    seed: options.DrawingSeed = 0,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Draw 60 machined parts, 12 of them with a known defect, and scan them."""
    with shown_errors(debug, resumes=True), shown_progress(quiet) as progress:
        from ..demo import write_parts
        from ..images.inputs import local_path
        from ..pipeline.evaluation import evaluate
        from ..pipeline.scanning import scan as scan_set

        folder = local_path(output)
        parts = folder / "parts"
        write_parts(parts, seed=seed, progress=partial(progress, "draw"))
        run = scan_set(
            parts / "test", folder / "run", overwrite=True, progress=progress, preset=preset
        )
        result = evaluate(run, parts)
    print_run(run, as_json=False)
    print("Against the defects that were drawn:", describe_figures(result.figures))
