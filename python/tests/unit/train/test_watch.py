"""The launcher notices ranks that are stopped or hang, where no systemd does."""
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from others import as_other, in_child
from running import end, killed_after, ranks_of, step_of, wait_for

from debzero.base import systemd
from debzero.base.stack import stack
from debzero.train.watch import Watch

LONG = {"train__epochs": 60, "train__log_every": 5, "zero__stage": 2}


def rank():
    """Some rank of a launcher's: this process's."""
    return killed_after(subprocess.Popen([sys.executable, "-I", "-c", "import time; time.sleep(60)"]))


@pytest.fixture
def watched(monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.setenv("DEBZERO_WATCHDOG", "1")


def test_a_rank_that_is_stopped_is_killed_and_named(bench, monkeypatch):
    process = start_watched(bench, 4)
    wait_for(process, lambda: step_of(bench, "job") >= 5)
    ranks = ranks_of(process)
    assert sorted(rank.name() for rank in ranks) == ["debzero rank 0", "debzero rank 1"], "as ps shows them"
    ranks[1].send_signal(signal.SIGSTOP)
    printed = end(process)
    assert process.returncode == 1 and "rank 1 was stopped, by SIGSTOP" in printed, printed
    assert "Traceback" not in printed and "host ran out of memory" not in printed
    done = bench.quick("status", bench.output())
    assert "failed" in done.stdout and "rank 1 was stopped" in done.stdout
    assert not (bench.output() / ".failures.json").exists(), "that was not the job's fault"


def start_watched(bench, seconds):
    from warm import server

    return server().start(["train", str(bench.job(**LONG))], bench.folder, {"DEBZERO_WATCHDOG": str(seconds)})


def test_no_progress_for_too_long_is_a_hang(watched):
    def hang():
        with rank() as child, Watch() as watch:
            time.sleep(0.3)
            systemd.notify("READY=1")
            for _ in range(8):
                assert child.poll() is None and not watch.reason
                time.sleep(0.25)
                systemd.notify("WATCHDOG=1", "STATUS=step 3")
            child.wait(5)
        assert "NOTIFY_SOCKET" not in os.environ
        return watch.reason

    reason = in_child(hang)  # this process has other children
    assert "made no progress for 1 seconds" in reason and "DEBZERO_WATCHDOG" in reason


def test_preparation_takes_as_long_as_it_takes_but_not_if_a_rank_is_stopped(watched):
    def stop():
        with rank() as child, Watch() as watch:
            systemd.notify("STATUS=preparing the data")
            time.sleep(1.5)
            assert child.poll() is None and not watch.reason
            child.send_signal(signal.SIGSTOP)
            child.wait(5)
        assert watch.stopped == {child.pid}
        return watch.reason

    assert "was stopped" in in_child(stop)


def test_other_users_are_not_heard(watched):
    def shout():
        until = time.monotonic() + 3
        while time.monotonic() < until:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
                channel.connect("\0" + os.environ["NOTIFY_SOCKET"][1:])
                channel.send(b"WATCHDOG=1")
            time.sleep(0.1)

    def listen():
        with Watch() as watch:
            systemd.notify("READY=1")
            as_other(shout)
            return watch.reason

    assert "made no progress" in in_child(listen)


@pytest.mark.parametrize("variables", [{"DEBZERO_WATCHDOG": "0"}, {"NOTIFY_SOCKET": "/run/systemd/notify"}])
def test_systemd_watches_alone_and_nobody_where_nobody_shall(watched, monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with Watch() as watch:
        assert not watch.active and os.environ.get("NOTIFY_SOCKET") == variables.get("NOTIFY_SOCKET")


def test_the_limit_is_the_units(monkeypatch):
    monkeypatch.delenv("DEBZERO_WATCHDOG", raising=False)
    assert Watch().limit == stack().watchdog_seconds
