"""The lock of an output folder: who holds it, who may, and what a hostile one comes to."""
import fcntl
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from threading import Thread

import pytest
from others import OTHER, as_other, give, in_child, public_folder
from running import killed_after
from support import SOURCE

from debzero.base.errors import InputError, UserError
from debzero.measure.run import kill_leftovers
from debzero.run import lock, stop
from debzero.run.folder import RunFolder

HOLD = """
import fcntl, os, sys, time
uid = int(sys.argv[2])
os.setgroups([]), os.setgid(uid), os.setuid(uid)
handle = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600)
fcntl.flock(handle, fcntl.LOCK_EX)
os.ftruncate(handle, 0)
os.write(handle, sys.argv[3].encode())
print("held", flush=True)
time.sleep(60)
"""


@contextmanager
def held(path, user=0, text=""):
    """A process of `user`'s that holds the lock, and has written `text` into it."""
    process = subprocess.Popen([sys.executable, "-I", "-c", HOLD, str(path), str(user), text], stdout=subprocess.PIPE)
    with killed_after(process):
        assert process.stdout.readline() == b"held\n"
        yield process


@pytest.fixture
def others_run():
    """An output folder of another user's."""
    with public_folder() as folder:
        (folder / "out").mkdir()
        give(folder / "out")
        yield RunFolder(str(folder / "out"))


def test_the_kernel_says_who_holds_it(tmp_path):
    run = RunFolder(str(tmp_path))
    assert not run.held() and run.holder() is None
    with held(run.lock_file, text="1") as process:
        assert run.held() and run.holder() == process.pid
        with pytest.raises(InputError, match=f"process {process.pid}\\) is writing"):
            run.lock()
    assert not run.held() and run.holder() is None
    run.lock()
    assert run.holder() == os.getpid() and run.lock_file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("text", ["-1", "1", "0", "99999999", "no number"])
@pytest.mark.parametrize("user", [0, OTHER.pw_uid])
def test_stop_signals_the_holder_and_never_whom_the_file_names(others_run, monkeypatch, user, text):
    """With -1 in the file, root would have signalled every process."""
    if user == 0:
        os.chown(others_run.folder, 0, 0)
    with held(others_run.lock_file, user, text) as process:
        assert in_child(lambda: stop.stop(str(others_run.folder))) == "0"
        assert process.wait(5) == -signal.SIGTERM


def test_stop_signals_nobody_but_the_owner_s_processes(others_run):
    """Whoever can open the file can hold it; so can a process of root's that the owner led there."""
    with held(others_run.lock_file, 0) as process:
        give(others_run.folder)
        answer = in_child(lambda: stop.stop(str(others_run.folder)))
        assert "not of its owner" in answer and process.poll() is None, answer


def test_bench_kills_the_holders_of_its_own_runs_alone(others_run):
    output = others_run.folder / "runs" / "one" / "out"
    output.mkdir(parents=True)
    give(others_run.folder)
    with killed_after(subprocess.Popen(["sleep", "60"])) as bystander:
        with held(output / ".lock", OTHER.pw_uid, str(bystander.pid)) as process:
            Thread(target=process.wait).start()  # no zombie for which the killer waits
            assert as_other(lambda: kill_leftovers(others_run.folder)) == "None"
            assert process.wait(5) == -signal.SIGKILL and bystander.poll() is None
        (output / ".lock").unlink()
        with held(output / ".lock", 0, str(bystander.pid)) as process:
            os.lchown(output / ".lock", OTHER.pw_uid, OTHER.pw_gid)
            as_other(lambda: kill_leftovers(others_run.folder))
            assert process.poll() is None and bystander.poll() is None


@pytest.mark.parametrize("kind", ["link", "dangling", "hard link", "fifo", "folder", "another user's"])
def test_what_lies_in_the_locks_place_is_neither_followed_nor_truncated(tmp_path, kind):
    out, precious = RunFolder(str(tmp_path / "out")), tmp_path / "precious"
    out.folder.mkdir()
    precious.write_text("root's")
    {"link": lambda: out.lock_file.symlink_to(precious),
     "dangling": lambda: out.lock_file.symlink_to(tmp_path / "made"),
     "hard link": lambda: out.lock_file.hardlink_to(precious) if sys.version_info >= (3, 10)
     else os.link(precious, out.lock_file),
     "fifo": lambda: os.mkfifo(out.lock_file), "folder": out.lock_file.mkdir,
     "another user's": lambda: give(out.lock_file) if out.lock_file.touch() is None else None}[kind]()
    with pytest.raises(InputError, match="no lock that this user made"):
        out.lock()
    assert precious.read_text() == "root's" and not (tmp_path / "made").exists()
    if kind != "another user's":
        assert not out.held() and out.holder() is None and stop.stop(str(out.folder)) == 0


def test_root_does_not_lock_anothers_folder(others_run):
    with pytest.raises(UserError, match="is the user nobody's"):
        others_run.lock()
    assert not others_run.lock_file.exists()


def test_nobody_else_can_read_the_lock_and_so_block_a_job(others_run):
    os.chown(others_run.folder, 0, 0)
    others_run.lock_file.touch(mode=0o644)  # as older releases made it
    others_run.lock()
    assert as_other(lambda: os.open(others_run.lock_file, os.O_RDONLY)).startswith("PermissionError")
    fcntl.flock(others_run._lock, fcntl.LOCK_UN)


def test_a_process_that_has_got_the_holders_number_is_not_signalled(tmp_path, monkeypatch):
    """It held the folder when it was looked up, and then it was gone."""
    with killed_after(subprocess.Popen(["sleep", "60"])) as bystander:
        answers = [bystander.pid, None, None]
        monkeypatch.setattr(lock, "holder", lambda path: answers.pop(0))
        monkeypatch.setattr(lock, "is_held", lambda path: True)
        assert stop.stop(str(tmp_path)) == 0
        time.sleep(0.1)
        assert bystander.poll() is None


@pytest.mark.parametrize(("groups", "main", "expected"), [
    ("0::/system.slice/system-debzero.slice/debzero@mrpc.service\n", "77", "debzero@mrpc.service"),
    ("1:name=systemd:/system.slice/debzero@mrpc.service\n", "77", "debzero@mrpc.service"),
    ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/debzero@mrpc.service\n", "55", ""),
    ("0::/user.slice/user-1000.slice/session-1.scope\n", "77", "")])
def test_a_unit_is_what_systemd_says_it_is(monkeypatch, groups, main, expected):
    """Any user's own systemd has a debzero@mrpc.service, if the user likes."""
    def run(words, **_):
        assert words[:2] == ["systemctl", "show"]
        return subprocess.CompletedProcess(words, 0, f"{main}\n")

    monkeypatch.setattr(stop.Path, "read_text", lambda self: groups)
    monkeypatch.setattr(stop.subprocess, "run", run)
    assert stop._unit(77) == expected


def test_root_reads_a_status_as_its_owner(others_run, tmp_path):
    """A link would show root's files, and a device would be opened."""
    secret = tmp_path / "status.json"
    secret.write_text('{"state": "finished", "job": "secret"}')
    others_run.status_file.symlink_to(secret)
    give(others_run.folder)
    done = subprocess.run([sys.executable, str(SOURCE / "command.py"), "status", str(others_run.folder)], text=True,
                          capture_output=True)
    assert done.returncode == 2 and "may not enter" in done.stderr and "finished" not in done.stdout, done
