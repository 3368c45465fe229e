"""Jobs and other processes that run in the background, and their ranks."""
from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import contextmanager

import psutil
from support import SOURCE
from warm import server

from debzero.base import files


def start(bench, job, *options):
    """A training in a child of the warm server, as a subprocess.Popen."""
    return server().start(["train", str(job), *options], bench.folder)


def launch(bench, job, *options):
    """As `start`, launched as users do."""
    return subprocess.Popen([sys.executable, "-m", "debzero", "train", str(job), *options], cwd=bench.folder,
                            start_new_session=True, env={**os.environ, "PYTHONPATH": str(SOURCE),
                                                         "HF_HUB_OFFLINE": "1"}, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True)


@contextmanager
def killed_after(process):
    """A process that does not outlive the block."""
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for(process, condition, seconds=400):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it took too long"
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)


def step_of(bench, name):
    return files.read_json(bench.output(name) / "status.json").get("step", 0)


def ranks_of(process):
    return psutil.Process(process.pid).children()


def end(process):
    """What it printed, when the last of its processes has gone (they share the pipe)."""
    return process.communicate(timeout=300)[0]
