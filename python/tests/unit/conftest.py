"""Fixtures: a folder with data and job files that really train."""
from pathlib import Path

import hypothesis
import pytest
from support import Bench

hypothesis.settings.register_profile("correctness", deadline=None)  # not how fast this machine is today
hypothesis.settings.load_profile("correctness")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """One bench for the tests that only look at what a run left."""
    return Bench(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def warm_runs(bench, monkeypatch):
    """Lets the runs that bench and tune measure begin without their imports."""
    from debzero.base.environment import Environment
    from debzero.measure import run

    def train(file, log, limit, cap, watch):
        done = bench.quick("train", file, **Environment(measured=True).variables())
        log.write_text(done.stdout)
        watch.poll()
        return done.returncode

    monkeypatch.setattr(run, "_train", train)
