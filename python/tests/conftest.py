"""Tests name with the mark `job` what must run in the background for them; see background.py."""
from __future__ import annotations

import os
import signal

import pytest
from background import Jobs

JOBS = pytest.StashKey[Jobs]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cases", type=int, default=100, metavar="N",
                     help="inputs that each fuzzer tries")


def wanted(item: pytest.Item) -> set[str]:
    return {mark.args[0] for mark in item.iter_markers("job")}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: bool(wanted(item)))


def pytest_collection_finish(session: pytest.Session) -> None:
    names = set() if session.config.option.collectonly else set().union(*map(wanted, session.items))
    session.config.stash[JOBS] = Jobs(names)


def pytest_configure() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what it starts in the background ignore it


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    os.umask(0o022)  # a command of an earlier test may have tightened this process's


@pytest.fixture(scope="session")
def jobs(request: pytest.FixtureRequest) -> Jobs:
    return request.config.stash[JOBS]


def pytest_sessionfinish(session: pytest.Session) -> None:
    if JOBS in session.config.stash:
        session.config.stash[JOBS].stop()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    seconds = config.stash[JOBS].seconds if JOBS in config.stash else {}
    if seconds:
        terminalreporter.section("time of the jobs that ran side by side")
        terminalreporter.write_line("  ".join(f"{name} {took:.0f} s" for name, took in seconds.items()))
