"""Verbs that show a finished run, measure it, or bring it into other tools."""

import dataclasses
import json
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import typer

from . import options
from .terminal import describe_figures, printable, shown_errors, shown_progress

if TYPE_CHECKING:
    from ..exporting.flagged import Outcome

_LISTED = 20


def report(
    run_folder: options.RunFolder,
    expect: options.Expect = None,
    flag_top: options.FlagTop = None,
    debug: options.Debug = False,
) -> None:
    """Flag the images of a run again, as asked now, and write RUN/report.html again."""
    with shown_errors(debug), shown_progress(quiet=False) as progress:
        from ..images.inputs import local_path
        from ..pipeline.flagging import reflag
        from ..scores.thresholds import Flagging

        run = reflag(local_path(run_folder), Flagging(expect, flag_top), progress)
    print(
        f"{run.flagged.sum()} of {len(run)} images flagged: {run.threshold.meaning}",
        file=sys.stderr,
    )
    print(run.folder / "report.html")


def review(
    run_folder: options.RunFolder,
    port: options.Port = 0,
    browser: options.Browser = True,
    debug: options.Debug = False,
) -> None:
    """Look at a run in the browser, label images, flag and score them again.

    The address it prints is for this machine and has the key to the page in it. Labels are kept in
    RUN/labels.sqlite. Ctrl-C ends it.
    """

    def started(address: str) -> None:
        print(address, flush=True)
        print("Ctrl-C ends the review; labels are saved as you give them", file=sys.stderr)

    with shown_errors(debug):
        from ..images.inputs import local_path
        from ..pipeline.flagging import finish_interrupted
        from ..review import review as review_run

        folder = local_path(run_folder)
        with shown_progress(quiet=False) as progress:
            finish_interrupted(folder, progress)
        review_run(folder, port, browser, started)


def evaluate(
    run_folder: options.RunFolder,
    truth: options.Truth,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Measure a run against masks: image and pixel AUROC, average precision, F1max, PRO."""
    with shown_errors(debug), shown_progress(quiet) as progress:
        from ..pipeline.evaluation import evaluate as evaluate_run
        from ..runs.run import load_run

        result = evaluate_run(load_run(run_folder), truth, partial(progress, "evaluate"))
    figures = result.figures
    _list_left(result.left_out, "")
    if result.left_out:
        print(f"{len(result.left_out)} images without a truth are left out", file=sys.stderr)
    if None in figures.values():
        print("'-' or null: a figure needs normal and anomalous images, and masks", file=sys.stderr)
    print(json.dumps(figures) if as_json else describe_figures(figures))


def export(
    run_folder: options.RunFolder,
    format: options.Format = None,
    output: options.ExportOutput = None,
    flagged_only: options.FlaggedOnly = False,
    segmentation: options.Segmentation = None,
    images: options.ExportImages = None,
    image_prefix: options.ImagePrefix = None,
    overwrite: options.OverwriteExport = False,
    flagged_to: options.FlaggedTo = None,
    by: options.By = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Write a run for other tools, or copy or link its flagged files into a folder.

    Exit code 1 if there are flagged files and none can be copied or linked.
    """
    asked: dict[str, Any] = {
        "output": output,
        "flagged_only": flagged_only,
        "segmentation": segmentation,
        "images": images,
        "image_prefix": image_prefix,
        "overwrite": overwrite,
    }
    _check_usage(
        format,
        flagged_to,
        by,
        [name for name, value in asked.items() if value not in (None, False)],
    )
    with shown_errors(debug, resumes=True), shown_progress(quiet) as progress:
        from ..exporting import export as export_run
        from ..exporting.flagged import take_flagged
        from ..images.inputs import local_path
        from ..runs.run import load_run

        step = partial(progress, "export")
        if format is not None:
            written = export_run(run_folder, format, progress=step, **asked)
        else:
            assert flagged_to is not None
            run, folder = load_run(run_folder), local_path(flagged_to)
            outcome = take_flagged(run, folder, by or "copy", step)  # type: ignore[arg-type]
    if format is not None:
        print(json.dumps({"written": str(written)}) if as_json else printable(str(written)))
        return
    _print_outcome(outcome, as_json)
    if outcome.left and not outcome.done:
        raise typer.Exit(1)


def _check_usage(
    format: str | None, flagged_to: str | None, by: str | None, others: list[str]
) -> None:
    """Exactly one job, and only its options."""
    if (format is None) == (flagged_to is None):
        raise typer.BadParameter("give one of --format NAME, --flagged-to DIR")
    if by is not None and flagged_to is None:
        raise typer.BadParameter("--by belongs to --flagged-to DIR")
    if others and format is None:
        raise typer.BadParameter(f"--{others[0].replace('_', '-')} belongs to --format NAME")


def _list_left(left: dict[str, str], advice: str) -> None:
    """List the first files that are left out, and why, on standard error."""
    for path in list(left)[:_LISTED]:
        print(f"left  {printable(path)}: {printable(left[path])}", file=sys.stderr)
    if len(left) > _LISTED:
        print(f"left  {len(left) - _LISTED} more{advice}", file=sys.stderr)


def _print_outcome(outcome: "Outcome", as_json: bool) -> None:
    if as_json:
        print(json.dumps(dataclasses.asdict(outcome)))
        return
    _list_left(outcome.left, ": --json lists them all")
    print(f"{len(outcome.done)} flagged files taken, {len(outcome.left)} left")
