"""What other users of the host can reach of a run: nothing that lets them in."""
import encodings.idna  # noqa: F401 - the stranger of these tests may not read this Python's files
import json
import os
import socket
import stat
import sys
import textwrap
from pathlib import Path

import psutil
import pytest
from running import end, ranks_of, start, step_of, wait_for

from debzero.base.errors import InputError, PassingError, UserError
from debzero.train import peers, rank, rendezvous

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def as_nobody(work):
    """What `work` returns (an integer below 256) in a child of the user nobody."""
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            os._exit(work())
        finally:
            os._exit(255)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """A run of two ranks, stopped in the middle: where it listens, and the folder in which its ranks meet."""
    from support import Bench

    bench = Bench(tmp_path_factory.mktemp("seen"))
    process = start(bench, bench.job(train__epochs=2000))
    wait_for(process, lambda: step_of(bench, "job") > 2)
    rows = peers.sockets()
    listening = [row.local for one in [psutil.Process(process.pid), *ranks_of(process)] for row in rows
                 if row.inode in peers.own(one.pid) and row.state == peers.LISTENING]
    (folder,) = bench.output().glob(".ranks.*")

    def enter():
        try:
            os.listdir(folder)
        except PermissionError:
            return 13
        return 0

    found = {"listening": listening, "mode": stat.S_IMODE(folder.stat().st_mode), "names": os.listdir(folder),
             "entered": as_nobody(enter) if os.geteuid() == 0 else 13}
    process.terminate()
    return {**found, "text": end(process), "left": list(bench.output().glob(".ranks.*"))}


def test_no_rank_listens_where_another_host_reaches_it(seen):
    assert all(peers.is_loopback(address) for address in seen["listening"]), seen


def test_ranks_meet_where_only_their_user_can_enter(seen):
    assert (seen["mode"], seen["entered"]) == (0o700, 13) and rendezvous.STORE in seen["names"]
    assert not seen["left"], "a run takes it away"


@pytest.mark.parametrize(("local", "inside"), [
    ("0100007F:1F90", True), ("0200017F:1F90", True), ("00000000000000000000000001000000:1F90", True),
    ("00000000:1F90", False), ("0100000A:1F90", False), ("00000000000000000000000000000000:1F90", False)])
def test_the_loopback_is_told_from_other_addresses(local, inside):
    assert peers.is_loopback(local) is inside


@as_root
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_stranger_who_connects_is_noticed(family, monkeypatch):
    monkeypatch.setattr(peers, "PAUSE", 0)
    address = "127.0.0.1" if family == socket.AF_INET else "::"
    with socket.socket(family) as listener:
        listener.bind((address, 0))
        listener.listen()
        port = listener.getsockname()[1]
        with peers.checked(), socket.create_connection(("127.0.0.1", port)):
            accepted, _ = listener.accept()
        accepted.close()
        reading, writing = os.pipe()

        def connect():
            with socket.create_connection(("127.0.0.1", port)):
                os.read(reading, 1)
            return 0

        def leave_one_connected():
            return connect() if os.fork() == 0 else 0

        as_nobody(leave_one_connected)
        accepted, _ = listener.accept()
        with pytest.raises(PassingError, match=f"the user with the ID {NOBODY} is connected"), peers.checked():
            pass  # it was there before, but it came in where this process still listens
        listener.close()
        with peers.checked():
            pass  # no connection that is new
        new = {str(os.fstat(accepted.fileno()).st_ino)}
        assert peers.strangers(peers.own() - new) == f"the user with the ID {NOBODY}"
        accepted.close()
        os.write(writing, b"x")


def test_a_rank_that_has_not_accepted_yet_is_no_stranger():
    """NCCL accepts some connections only when it needs them."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with peers.checked():
            waiting = socket.create_connection(listener.getsockname())
        waiting.close()


OURS, THEIRS, LISTENER, FREE = "0100007F:1F90", "0100007F:C000", "00000000:1F90", "00000000:0000"
ME, OTHER = os.geteuid(), os.geteuid() + 1


def found(monkeypatch, *rows, before=(), proven=False):
    """Who is a stranger among sockets of which those with the inodes 1 and 2 are this process's."""
    monkeypatch.setattr(peers, "sockets", lambda: [peers.Socket(*row) for row in rows])
    monkeypatch.setattr(peers, "own", lambda: {"1", "2"})
    return peers.strangers(set(before), proven)


@pytest.mark.parametrize(("rows", "gloo", "nccl"), [
    ([(OURS, THEIRS, "01", ME, "1"), (THEIRS, OURS, "01", OTHER, "9")], "the user", "the user"),
    ([(OURS, THEIRS, "08", ME, "1"), (THEIRS, OURS, "05", OTHER, "9")], "the user", "the user"),
    ([(OURS, THEIRS, "08", ME, "1"), (THEIRS, OURS, "05", 0, "0")], None, None),
    ([(OURS, THEIRS, "08", ME, "1")], None, None),
    ([(OURS, THEIRS, "01", ME, "1")], "a process", None),
    ([(OURS, THEIRS, "01", ME, "1"), (THEIRS, OURS, "05", 0, "0")], "a process", None),
    ([(OURS, THEIRS, "01", ME, "1"), (THEIRS, OURS, "01", 0, "0"), ("0200007F:C000", FREE, "0A", OTHER, "9")],
     "a process", None),
    ([(OURS, THEIRS, "01", ME, "1"), (THEIRS, OURS, "01", 0, "0"), ("00000000:C000", FREE, "0A", ME, "8")], None, None),
    ([(OURS, THEIRS, "01", ME, "1"), (THEIRS, OURS, "01", ME, "8")], None, None)])
def test_only_what_is_proven_ends_a_run_of_nccl(rows, gloo, nccl, monkeypatch):
    for proven, answer in ((False, gloo), (True, nccl)):
        stranger = found(monkeypatch, *rows, proven=proven)
        assert stranger is None if answer is None else stranger.startswith(answer)


def test_a_connection_to_a_service_of_roots_is_no_stranger(monkeypatch):
    """As to a name server or a monitor of GPUs."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    rows = [(OURS, THEIRS, "01", 1000, "1"), (THEIRS, OURS, "01", 0, "9")]
    assert found(monkeypatch, *rows) is None
    came_in = [*rows, (LISTENER, FREE, "0A", 1000, "2")]
    assert found(monkeypatch, *came_in, before={"1", "2"}) and not found(monkeypatch, *came_in, proven=True)


def test_what_proc_hides_ends_no_run(tmp_path, monkeypatch):
    table = tmp_path / "tcp"
    table.write_text("  sl  local_address\n  0: short\n  1: 0100007F:1F90 00000000:0000 0A a a a who 0 12\n")
    monkeypatch.setattr(peers, "TABLES", (str(table), str(tmp_path), str(tmp_path / "none")))
    with peers.checked():
        assert not peers.sockets()
    assert not peers.own(0)
    for name, value in {"WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert rendezvous.local_launcher()
    monkeypatch.setattr(os, "getppid", lambda: 0)  # as in a container whose launcher is outside, or with hidepid
    assert rendezvous.local_launcher() is None


@pytest.mark.parametrize("mode", [0o755, 0o710, 0o701, 0o770])
def test_a_folder_that_others_can_enter_is_refused(tmp_path, mode):
    folder = tmp_path / "ranks"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(UserError, match="cannot meet"):
        rendezvous.require_private(folder)
    link = tmp_path / "link"
    link.symlink_to(folder)
    with pytest.raises(UserError, match="is no folder"):
        rendezvous.require_private(link)
    folder.chmod(0o700)
    rendezvous.require_private(folder)


def meeting(monkeypatch, **variables):
    for name in ("TORCHELASTIC_RUN_ID", "LOCAL_WORLD_SIZE", "CROSS_SIZE", "LOCAL_SIZE", "MASTER_ADDR",
                 "DEBZERO_MEETING", "DEBZERO_CLUSTER"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"RANK": "0", **variables}.items():
        monkeypatch.setenv(name, value)
    return rendezvous.Meeting(Path("/out"), rendezvous.local_launcher())


def test_the_ways_to_start_ranks(monkeypatch):
    by_debzero = meeting(monkeypatch, WORLD_SIZE="2", DEBZERO_MEETING="/private")
    assert by_debzero.folder == Path("/private") and by_debzero.on_one_host and not by_debzero.makes_folder
    torchs = meeting(monkeypatch, WORLD_SIZE="2", TORCHELASTIC_RUN_ID="none", LOCAL_WORLD_SIZE="2")
    deepspeeds = meeting(monkeypatch, WORLD_SIZE="2", CROSS_SIZE="1", LOCAL_SIZE="2", MASTER_ADDR="10.0.0.1")
    assert torchs.folder.parent == Path("/out") and torchs.makes_folder and torchs.on_one_host
    assert deepspeeds.folder and deepspeeds.on_one_host
    assert not meeting(monkeypatch, WORLD_SIZE="2", CROSS_SIZE="1", LOCAL_SIZE="2", RANK="1").makes_folder
    several = meeting(monkeypatch, WORLD_SIZE="4", TORCHELASTIC_RUN_ID="none", LOCAL_WORLD_SIZE="2",
                      MASTER_ADDR="10.0.0.1")
    assert several.folder is None and not several.on_one_host
    by_hand = meeting(monkeypatch, WORLD_SIZE="2", LOCAL_SIZE="2", MASTER_ADDR="127.0.0.1")
    assert by_hand.folder is None and by_hand.on_one_host
    assert meeting(monkeypatch, WORLD_SIZE="1").folder is None


def test_a_cluster_of_one_host_is_none(monkeypatch, tmp_path):
    """Its launcher keeps no store for the ranks."""
    file = tmp_path / "cluster.yml"
    file.write_text("hosts: {gpu1: 10.0.0.1}\nhost: gpu1\nport: 2000\n")
    found = meeting(monkeypatch, WORLD_SIZE="2", DEBZERO_MEETING="/private", DEBZERO_CLUSTER=str(file))
    assert found.cluster is None and found.folder == Path("/private") and found.on_one_host


def test_the_launcher_is_named_before_root_becomes_another_user(monkeypatch):
    """Which on a terminal puts a process of each rank's own between it and the launcher."""
    calls = []
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    for name in ("make_printable", "block_signals", "_die_with_launcher"):
        monkeypatch.setattr(rank, name, lambda: None)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setattr(rendezvous, "local_launcher", lambda: calls.append("named"))

    def resolved(_):
        calls.append("became the owner")
        raise InputError([])

    monkeypatch.setattr(rank, "_resolve", resolved)
    assert rank.main() == 2 and calls == ["named", "became the owner"]


@pytest.mark.slow
def test_ranks_of_another_launcher_meet_and_exchange(bench):
    """Two ranks as torch's launcher starts them, in children of one process."""
    bench.output().mkdir()
    done = bench.run(module=("-c", textwrap.dedent(f"""
        import json, os, time
        from pathlib import Path

        import numpy as np
        import torch.distributed as dist

        from debzero.train import exchange, peers, rendezvous

        os.environ.update(WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", TORCHELASTIC_RUN_ID="none")
        children = []
        for rank in (1, 0):
            children.append(os.fork())
            if children[-1] == 0:
                break
        else:
            assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
            os._exit(0)
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
        meeting = rendezvous.Meeting(Path({str(bench.output())!r}), rendezvous.local_launcher())
        meeting.join("gloo")
        group = dist.new_group(backend="gloo")
        answers = [exchange.broadcast([rank, "x" * 70000]) == [0, "x" * 70000],
                   exchange.gather("r" * 1000 * rank) == ["", "r" * 1000],
                   exchange.gather_rows(np.array([rank, rank + 2]), np.array([[rank, 0.5], [-1, np.inf]]), 4).tolist()
                   == [[0, 0.5], [1, 0.5], [-1, np.inf], [-1, np.inf]],
                   exchange.agree(lambda: {{"a": rank}}) == {{"a": 0}},
                   all(peers.is_loopback(row.local) for row in peers.sockets() if row.inode in peers.own())]
        try:
            exchange.gather_rows(np.array([0, 1]), np.zeros((2, 1)), 4)
        except AssertionError:
            answers.append(True)
        dist.barrier()
        meeting.leave()
        print(json.dumps(answers), flush=True)
        os._exit(0)
    """)))
    assert done.returncode == 0, done.stderr
    assert [json.loads(line) for line in done.stdout.splitlines()] == [[True] * 6] * 2, done.stdout
    assert not list(bench.output().iterdir())


OWN, OTHER_HOST, STRANGER = "0100000A:1000", "0200000A:9999", "0900000A:9999"  # 10.0.0.1, .2 and .9


@pytest.mark.parametrize(("rows", "found"), [
    ([(OWN, OTHER_HOST)], None), ([(OWN, STRANGER)], "a process at 10.0.0.9"),
    ([("0100000A:7777", STRANGER)], None),  # to the hub, say: it did not come in
    ([(OWN, "0100000A:9999"), ("0100000A:9999", OWN)], f"the user with the ID {NOBODY}")])
def test_between_hosts_only_the_hosts_of_the_job_may_come_in(monkeypatch, rows, found):
    listening = peers.Socket(OWN, "00000000:0000", peers.LISTENING, os.geteuid(), "1")
    table = [peers.Socket(local, remote, peers.ESTABLISHED, os.geteuid() if number == 0 else NOBODY, str(2 + number))
             for number, (local, remote) in enumerate(rows)]
    monkeypatch.setattr(peers, "own", lambda: {"1", "2"})
    monkeypatch.setattr(peers, "sockets", lambda: [listening, *table])
    assert peers.strangers({"1"}, hosts={"10.0.0.1", "10.0.0.2"}) == found
    assert peers.strangers({"1"}) is None, "on one host they are no connections of the ranks'"


@pytest.mark.parametrize(("address", "shown"), [
    ("0100007F:1F90", "127.0.0.1"), ("00000000000000000000000001000000:1F90", "::1"),
    ("000000FD000000000000000003000000:1", "fd00::3")])
def test_an_address_is_shown_as_people_write_it(address, shown):
    assert peers.plain(address) == shown
