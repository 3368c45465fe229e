"""How many inputs each fuzzer tries, and the figures at the end."""

from __future__ import annotations

from typing import Callable

import pytest
from fuzzing import Figures

FIGURES = pytest.StashKey[list[Figures]]()


@pytest.fixture
def cases(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--cases"))


@pytest.fixture
def fuzzed(request: pytest.FixtureRequest) -> Callable[[str], Figures]:
    """Figures of one kind of input, which the summary shows."""

    def new(kind: str) -> Figures:
        figures = Figures(kind)
        request.config.stash.setdefault(FIGURES, []).append(figures)
        return figures

    return new


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if FIGURES in config.stash:
        terminalreporter.section("fuzzed")
        for figures in config.stash[FIGURES]:
            terminalreporter.write_line(str(figures))
