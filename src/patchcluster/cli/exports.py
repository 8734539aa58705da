"""The verb that brings a run into other tools."""

import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import AsJson, Debug, Quiet, RunFolder
from .root import app
from .terminal import printable, shown_errors, shown_progress

if TYPE_CHECKING:
    from ..exporting.flagged import Outcome

_LISTED = 20


@app.command(epilog="Example: patchcluster export photos-run --format coco -o photos-coco.json")
def export(
    run_folder: RunFolder,
    format: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="csv, json, parquet, masks, heatmaps, coco, cvat, labelstudio, yolo, fiftyone, "
            "onnx.",
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="PATH", help="File or folder; else next to RUN."),
    ] = None,
    flagged_only: Annotated[
        bool, typer.Option("--flagged-only", help="Export only the flagged images.")
    ] = False,
    segmentation: Annotated[
        str | None,
        typer.Option(metavar="KIND", help="Regions as polygon, rle or box: coco, cvat, ..."),
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(metavar="HOW", help="link or copy the images: yolo, fiftyone."),
    ] = None,
    image_prefix: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Address of the images' folder: labelstudio."),
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an earlier export.")] = False,
    flagged_to: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Copy or link flagged files there."),
    ] = None,
    by: Annotated[
        str | None, typer.Option(metavar="HOW", help="copy (the default), hardlink or symlink.")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write a run for other tools, or copy or link its flagged files into a folder.

    Exit code 1 if there are flagged files and none can be copied or linked.
    """
    given: dict[str, Any] = {
        "--output": output,
        "--flagged-only": flagged_only or None,
        "--segmentation": segmentation,
        "--images": images,
        "--image-prefix": image_prefix,
        "--overwrite": overwrite or None,
    }
    _check_usage(format, flagged_to, by, [name for name, v in given.items() if v is not None])
    with shown_errors(debug, resumes=True), shown_progress(quiet) as progress:
        from ..exporting import export as write_export
        from ..exporting.flagged import take_flagged
        from ..images.inputs import local_path
        from ..runs.run import load_run

        def step(done: int, total: int) -> None:
            progress("export", done, total)

        outcome: Outcome | None = None
        if flagged_to is not None:
            run, taken_to = load_run(run_folder), local_path(flagged_to)
            outcome = take_flagged(run, taken_to, by or "copy", step)  # type: ignore[arg-type]
        else:
            assert format is not None
            written = write_export(
                run_folder,
                format,
                output,
                flagged_only=flagged_only,
                segmentation=segmentation,
                images=images,
                image_prefix=image_prefix,
                overwrite=overwrite,
                progress=step,
            )
    if outcome is None:
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
        raise typer.BadParameter(f"{others[0]} belongs to --format NAME")


def _print_outcome(outcome: "Outcome", as_json: bool) -> None:
    if as_json:
        print(json.dumps(dataclasses.asdict(outcome)))
        return
    for path in list(outcome.left)[:_LISTED]:
        print(f"left  {printable(path)}: {printable(outcome.left[path])}", file=sys.stderr)
    if len(outcome.left) > _LISTED:
        print(f"left  {len(outcome.left) - _LISTED} more: --json lists them all", file=sys.stderr)
    print(f"{len(outcome.done)} flagged files taken, {len(outcome.left)} left")
