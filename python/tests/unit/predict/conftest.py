"""One thread for torch: on a busy host, two of them wait for each other most of the time. And spool folders."""
import os

import pytest
import torch
from predicting import saved


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # which the engine leaves alone
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def spooled(trained):
    """A model for spools."""
    return saved(trained, "spooled", "bert", "classification")


@pytest.fixture
def spool(tmp_path, monkeypatch):
    """A new spool folder; the tests are back where they were when they end, and so is their umask."""
    monkeypatch.chdir(tmp_path)
    before = os.umask(0o022)
    folder = tmp_path / "spool"
    folder.mkdir()
    for name in ("in", "out", "failed"):
        (folder / name).mkdir()
    yield folder
    os.umask(before)
