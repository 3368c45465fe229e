"""The processes that the launcher forks before its check."""
import argparse
import errno
import json
import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml
from support import SOURCE

from debzero.job.reader import parse
from debzero.train import command, rank, schedulers, standby


@pytest.fixture
def job(tmp_path, monkeypatch):
    monkeypatch.setattr(standby, "_import", lambda job: None)
    monkeypatch.setattr(standby, "_waiting", [])
    file = tmp_path / "job.yml"
    file.write_text(yaml.safe_dump({"model": {"type": "bert", "vocab_size": 99}, "ranks": 3,
                                    "data": {"dataset": str(tmp_path)}, "output": str(tmp_path / "run")}))
    found, problems = parse(file)
    assert found, problems
    return found


def opened():
    return sorted(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_closed_stream_is_not_flushed(job, monkeypatch, stream):
    """Python has None for it, as after `debzero train job.yml >&-`."""
    monkeypatch.setattr(standby, "_can_fork", lambda: False)
    monkeypatch.setattr(sys, stream, None)
    standby.start(job, None)
    assert not standby._waiting


def test_where_a_user_may_have_no_more_processes_the_check_goes_on(job, monkeypatch):
    def fork():
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(standby, "_can_fork", lambda: True)
    monkeypatch.setattr(os, "fork", fork)
    before = opened()
    standby.start(job, None)
    assert not standby._waiting and opened() == before


def test_where_a_process_may_open_no_more_files_the_check_goes_on(job, monkeypatch):
    def pipe():
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(standby, "_can_fork", lambda: True)
    monkeypatch.setattr(os, "pipe", pipe)
    standby.start(job, None)
    assert not standby._waiting


def test_a_rank_has_its_orders_and_no_open_file_of_who_started_the_launcher(job, monkeypatch, tmp_path):
    """Such as what root's shell had open, after which root has become another user."""
    def main():
        Path(tmp_path, "seen").write_text(json.dumps([sys.argv, dict(os.environ), os.getcwd(), opened()]))
        return 7

    monkeypatch.setattr(rank, "main", main)
    monkeypatch.setattr(standby, "_can_fork", lambda: True)
    left_open = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(left_open, True)
    try:
        standby.start(job, 1)
    finally:
        os.close(left_open)
    variables = {standby.THREADS: standby._waiting[0].threads, "ODD": "\udcff\n" + "x" * 2**17}
    process = standby._hand_over(["python", "-u", str(standby.SCRIPT), "--job", "a job.yml"], variables)
    assert process and process.wait(60) == 7
    arguments, environment, folder, files = json.loads(Path(tmp_path, "seen").read_text())
    assert arguments == [str(standby.SCRIPT), "--job", "a job.yml"] and environment.items() >= variables.items()
    assert folder == "/" and str(left_open) not in files


START = """
import os, sys, threading
from pathlib import Path
from debzero.job.reader import parse
from debzero.train import standby
job, before = parse(Path(sys.argv[1]))[0], {**os.environ}
{first}
standby.start(job, None)
print(len(standby._waiting), os.environ == before, "transformers" in sys.modules)
standby.close()
"""


@pytest.mark.parametrize(("first", "forked"), [
    ("", 3), ("threading.Thread(target=threading.Event().wait, daemon=True).start()", 0),
    ("import ctypes; ctypes.CDLL(None).prctl(4, 0)", 0)], ids=["as it is", "a thread", "root that became another user"])
def test_a_fresh_launcher_forks_all_ranks_and_no_other_does(job, tmp_path, first, forked):
    done = subprocess.run([sys.executable, "-c", START.replace("{first}", first), tmp_path / "job.yml"], text=True,
                          capture_output=True, env={**os.environ, "PYTHONPATH": str(SOURCE)})
    assert (done.stdout, done.stderr) == (f"{forked} True True\n", "")


def test_a_rank_with_other_threads_than_expected_is_started_as_usual(job, monkeypatch):
    monkeypatch.setattr(standby, "_can_fork", lambda: True)
    standby.start(job, 2)
    processes = [one.process for one in standby._waiting]
    assert standby._hand_over(["python", str(standby.SCRIPT)], {standby.THREADS: "77"}) is None
    assert not standby._waiting and [process.returncode for process in processes] == [-signal.SIGKILL] * 2


def test_the_launcher_learns_how_ranks_end_though_it_was_started_to_ignore_that(monkeypatch):
    """A program that ignores SIGCHLD passes this on to what it starts; the kernel then forgets how a child ended."""
    monkeypatch.setattr(schedulers, "launcher", lambda *_: nullcontext(0))
    handler, mask = signal.signal(signal.SIGCHLD, signal.SIG_IGN), signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        assert command.run(argparse.Namespace(job=Path("job.yml"), cluster=None)) == 0
        assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGCHLD, handler)
