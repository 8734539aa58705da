"""Counts what the tests of faults found: one case a test; a test that fails is a case lost."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from faults import processes

if TYPE_CHECKING:
    from faults.commands import Workplace

pytest.register_assert_rewrite("faults.commands")  # which is imported when it is needed

_outcomes: dict[str, str] = {}  # of the tests in this folder that were tried, by id


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> "Workplace":
    from faults.commands import Workplace  # which imports much that fast tests do not need

    return Workplace(tmp_path_factory.mktemp("faults"))


@pytest.fixture(autouse=True)
def _nothing_left_running() -> Iterator[None]:
    yield
    processes.end_all()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if "faults/" in report.nodeid.partition("::")[0]:
        if report.failed:
            _outcomes[report.nodeid] = "lost"
        elif report.passed and report.when == "call":
            _outcomes.setdefault(report.nodeid, "survived")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _outcomes:
        return
    lost = sum(outcome == "lost" for outcome in _outcomes.values())
    terminalreporter.write_line(
        f"faults: {len(_outcomes)} cases tried, {len(_outcomes) - lost} survived, {lost} lost"
    )
