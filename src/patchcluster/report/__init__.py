"""report.html of a run."""

from ..runs import Run


def write_report(run: Run) -> None:
    """Write RUN/report.html."""
