"""Texts of options -> values."""

from pathlib import Path

import typer


def default_output(first_input: str) -> Path:
    """Name a run after its first input, in the current folder."""
    name = Path(first_input).resolve().name if "://" not in first_input else ""
    plain = name and not any(c in name for c in "*?[")
    return Path(f"{name}-run" if plain else "patchcluster-run")


def parse_names(text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(",")]


def parse_numbers(text: str | None) -> list[int] | None:
    try:
        return None if text is None else [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{text!r} are not numbers of tables: write 2,5,7") from None


def parse_count(text: str) -> int:
    """A number of images."""
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is not a number of images: write 20, or a share as --expect 5%"
        ) from None


def parse_share(text: str) -> float:
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a share: write 5% or 0.05") from None


def parse_sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a size: write 448, or 256,448") from None
