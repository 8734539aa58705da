"""Output of commands: results on standard output, everything else on standard error."""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from ..errors import PatchclusterError

if TYPE_CHECKING:
    from ..pipeline.forecast import Forecast
    from ..pipeline.scoring import Scores
    from ..runs.info import Skipped
    from ..runs.run import Run

LISTED = 10  # images in the closing table
_SKIPPED_LISTED = 20
_STEPS = {
    "survey": "reading headers",
    "features": "features",
    "bank": "bank",
    "compare": "comparing",
    "maps": "maps",
    "report": "report",
    "draw": "drawing",
    "evaluate": "evaluating",
    "score": "scoring",
    "cells": "benchmark",
    "export": "exporting",
}


def teller(quiet: bool) -> Callable[[str], None]:
    """Make a function that prints a line on standard error, above the progress bars."""
    if quiet:
        return lambda _: None
    return lambda line: print(printable(line), file=sys.stderr, flush=True)


@contextmanager
def shown_errors(debug: bool, resumes: bool = False) -> Iterator[None]:
    """Print one line and exit: with code 1 for an error, 130 for an interruption.

    debug: raise errors as they are. resumes: the same command resumes after an interruption.
    """
    try:
        yield
    except KeyboardInterrupt:
        more = "; the same command resumes" if resumes else ""
        print(f"patchcluster: interrupted{more}", file=sys.stderr)
        raise typer.Exit(130) from None
    except (typer.Exit, BrokenPipeError):  # nobody reads on: typer ends it
        raise
    except Exception as error:
        if debug:
            raise
        text = printable(str(error))
        if not isinstance(error, PatchclusterError):
            text = (
                f"unexpected {type(error).__name__}: {text}. This is a bug: please report it with "
                "what --debug prints"
            )
        print(f"patchcluster: {text}", file=sys.stderr)
        raise typer.Exit(1) from None


@contextmanager
def shown_progress(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Progress bars with an ETA on standard error; without a terminal, a line a step."""
    if quiet:
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _plain_progress
        return
    columns: list[Any] = [
        "{task.description:17}",
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, Any] = {}

        def show(step: str, done: int, total: int) -> None:
            if step not in tasks:
                tasks[step] = bars.add_task(_STEPS[step], total=total)
            bars.update(tasks[step], completed=done, total=total)

        yield show


def _plain_progress(step: str, done: int, total: int) -> None:
    if done == total:
        print(f"{_STEPS[step]}: {done} done", file=sys.stderr, flush=True)


def print_run(run: "Run", as_json: bool) -> None:
    top = [int(i) for i in run.ranking[:LISTED]]
    if as_json:
        rows = [
            {
                "path": run.paths[i],
                "score": run.scores[i],
                "probability": run.probabilities[i],
                "flagged": bool(run.flagged[i]),
                "remarks": run.remarks[i],
            }
            for i in top
        ]
        totals = {
            "run": str(run.folder),
            "report": str(run.folder / "report.html"),
            "images": len(run),
            "flagged": int(run.flagged.sum()),
            "threshold": dataclasses.asdict(run.threshold),
            "skipped": [dataclasses.asdict(skip) for skip in run.skipped],
            "duplicates": run.info.duplicates,
            "near_duplicates": run.info.near_duplicates,
            "top": rows,
            "seconds": run.info.seconds,
            "predicted_seconds": run.info.predicted_seconds,
            "memory": run.info.memory,
        }
        print(json.dumps(totals))
        return
    print("rank     score  probability  flagged  image")
    for place, i in enumerate(top, start=1):
        flag = "yes" if run.flagged[i] else "no"
        probable = describe_probability(run.probabilities[i])
        print(
            f"{place:4}  {run.scores[i]:8.4f}  {probable:>11}  {flag:7}  {printable(run.paths[i])}"
        )
    _print_skipped(run.skipped, "see run.json")
    _print_groups("copies", run.info.duplicates, "scored once")
    apart = "not compared with each other where there are enough others"
    _print_groups("near-duplicates", run.info.near_duplicates, apart)
    print(
        f"{len(run)} images scored, {run.flagged.sum()} flagged, {len(run.skipped)} skipped; "
        f"report: {run.folder / 'report.html'}"
    )
    print(printable(f"flagged: {run.threshold.meaning}"), file=sys.stderr)


def print_forecast(forecast: "Forecast", as_json: bool) -> None:
    if as_json:
        print(json.dumps(dataclasses.asdict(forecast)))
        return
    print(forecast.describe())
    if forecast.skipped:
        print(f"{forecast.skipped} files cannot be read")


def _print_skipped(skipped: Sequence["Skipped"], where: str) -> None:
    for skip in skipped[:_SKIPPED_LISTED]:
        print(f"skipped  {printable(skip.path)}: {skip.reason}")
    if len(skipped) > _SKIPPED_LISTED:
        print(f"skipped  {len(skipped) - _SKIPPED_LISTED} more: {where}")


def _print_groups(kind: str, groups: Sequence[Sequence[str]], treated: str) -> None:
    """One line on images that are similar: how many, and where they are listed."""
    if groups:
        number = f"{len(groups)} group{'s' if len(groups) > 1 else ''}"
        print(f"{kind}  {sum(map(len, groups))} images in {number}, {treated}: see run.json")


def print_scores(scores: "Scores", as_json: bool) -> None:
    known = [one for one in scores.images if one.same_as]
    if known:
        print(
            f"patchcluster: {len(known)} of the images are in the set, the first "
            f"{printable(known[0].path)!r}: a method other than patchcluster-plus compares them "
            "with themselves, so that they look ordinary",
            file=sys.stderr,
        )
    if as_json:
        from ..runs.tables import IMAGE_HEADER

        names = (*IMAGE_HEADER, "same_as")
        rows = [{name: getattr(one, name) for name in names} for one in scores.images]
        print(json.dumps({"images": rows, "skipped": scores.skipped}, default=dataclasses.asdict))
        return
    print("   score  probability  flagged  regions  image")
    for one in scores.images:
        flag = "yes" if one.flagged else "no"
        probable = describe_probability(one.probability)
        print(
            f"{one.score:8.4f}  {probable:>11}  {flag:7}  {len(one.regions):7}  "
            f"{printable(one.path)}"
        )
    _print_skipped(scores.skipped, "--json lists them all")
    flagged = sum(one.flagged for one in scores.images)
    print(f"{len(scores.images)} scored, {flagged} flagged, {len(scores.skipped)} skipped")


def describe_probability(probability: float | None) -> str:
    return "-" if probability is None else f"{probability:.2f}"


def describe_figures(figures: dict[str, float | None]) -> str:
    """Fractions by name -> one line in percent."""
    parts = []
    for name, value in figures.items():
        level, _, metric = name.partition("_") if "_" in name else ("", "", name)
        label = f"{level} {metric.upper()}".strip().replace("F1MAX", "F1max")
        parts.append(f"{label} {'-' if value is None else f'{100 * value:.1f}'}")
    return ", ".join(parts)


def printable(text: str) -> str:
    """File names can hold control characters and bytes that are not UTF-8: show them escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
