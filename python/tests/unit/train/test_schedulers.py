"""What `debzero train` makes of the environment of a task that srun or mpirun has started."""
from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Optional

import pytest

from debzero.base.environment import NAMES
from debzero.base.errors import InputError
from debzero.hosts import cluster
from debzero.train import schedulers

SLURM = {"SLURM_STEP_ID": "0", "SLURM_JOB_ID": "7", "SLURM_PROCID": "1", "SLURM_NODEID": "1", "SLURM_LOCALID": "0",
         "SLURM_NTASKS": "2", "SLURM_STEP_NODELIST": "gpu[1-2]", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}
MPI = {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "0",
       "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}


@pytest.fixture
def job(tmp_path, monkeypatch) -> Path:
    """A job file with its key, as the only task of the second of two nodes."""
    file = tmp_path / "bert.yml"
    file.write_text("output: out\n")
    key = file.with_suffix(".key")
    key.write_text("ab" * 32)
    key.chmod(0o600)
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.delenv(NAMES["cluster_file"], raising=False)
    resolves(monkeypatch, {"gpu1": "10.0.0.1", "gpu2": "10.0.0.2"})
    yield file
    os.environ.pop(NAMES["cluster_file"], None)


def resolves(monkeypatch, addresses: dict[str, str]) -> None:
    def getaddrinfo(name, port, **options):
        if name not in addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (addresses[name], 0))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def refused(work) -> str:
    with pytest.raises(InputError) as caught:
        work()
    return " ".join(caught.value.text().split())


def enter(file: Path, given: Optional[Path] = None) -> None:
    with schedulers.launcher(file, given):
        pass


@pytest.mark.parametrize(("names", "hosts"), [
    ("gpu1", ["gpu1"]), ("gpu[1-3,07],web", ["gpu1", "gpu2", "gpu3", "gpu07", "web"]),
    ("n[08-11]-ib", ["n08-ib", "n09-ib", "n10-ib", "n11-ib"]),
    ("r[1-2]n[1,3]", ["r1n1", "r1n3", "r2n1", "r2n3"]), ("a,b,c", ["a", "b", "c"])])
def test_slurm_s_lists_of_hosts(names, hosts):
    assert list(schedulers.expanded(names)) == hosts


def test_no_scheduler_and_a_shell_in_an_allocation_change_nothing():
    assert schedulers.tasks({}) is None
    assert schedulers.tasks({"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "2"}) is None


def test_a_task_of_srun():
    found = schedulers.tasks(SLURM)
    assert (found.nodes, found.node, found.local, found.on_node) == (("gpu1", "gpu2"), 1, 0, 1)
    assert schedulers.tasks({**SLURM, "SLURM_STEP_ID": "1"}).port != found.port
    assert schedulers.tasks({**SLURM, "SLURM_NODEID": "0", "SLURM_PROCID": "0"}).port == found.port
    assert schedulers.tasks({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "4(x2)"}).on_node == 4


def test_a_task_of_mpirun_also_in_an_allocation_of_slurm():
    found = schedulers.tasks({**SLURM, **MPI})
    assert (found.scheduler, found.nodes, found.node_count, found.on_node) == ("mpirun", (), 1, 2)


@pytest.mark.parametrize(("variables", "reason"), [
    ({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "2,1"}, "the nodes have different numbers of tasks"),
    ({**SLURM, "SLURM_LOCALID": "x"}, "SLURM_LOCALID must be a whole number, not 'x'"),
    ({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_GPUS_PER_TASK": "1"}, "--ntasks-per-node=1"),
    ({**SLURM, "SLURM_STEP_NODELIST": "gpu[1-x]"}, "SLURM_STEP_NODELIST is no list of hosts: 'gpu[1-x]'"),
    ({**SLURM, "SLURM_STEP_NODELIST": "gpu[1-2"}, "is no list of hosts: 'gpu[1-2'"),
    ({**SLURM, "SLURM_STEP_NODELIST": "gpu[2-1]"}, "is no list of hosts: 'gpu[2-1]'"),
    ({**SLURM, "SLURM_STEP_NODELIST": ""}, "is no list of hosts: ''"),
    ({**SLURM, "SLURM_STEP_NODELIST": "gpu1,gpu1"}, "is no list of hosts: 'gpu1,gpu1'"),
    ({**SLURM, "SLURM_STEP_NODELIST": "gpu\x1b[1-2]"}, "is no list of hosts: 'gpu\\x1b[1-2]'"),
    ({**SLURM, "SLURM_STEP_NODELIST": "gpu[1-99999999]"}, "names more than 1024 hosts"),
    ({**SLURM, "SLURM_STEP_NODELIST": "r[1-99]n[1-99]"}, "names more than 1024 hosts"),
    ({**SLURM, "SLURM_NODEID": "2"}, "SLURM_NODEID is 2, and there are 2 nodes: from 0 to 1"),
    ({**SLURM, "SLURM_LOCALID": "1"}, "SLURM_LOCALID is 1, and there is 1 task on a node"),
    ({**SLURM, "SLURM_JOB_ID": "9" * 5000}, "SLURM_JOB_ID must be a whole number, not '9999"),
    ({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "0(x2)"}, "must be a number of tasks for each node, not '0(x2)'"),
    ({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "many"}, "must be a number of tasks for each node, not 'many'"),
    ({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "9" * 5000}, "must be a number of tasks for each node, not '9999"),
    ({**MPI, "OMPI_COMM_WORLD_LOCAL_RANK": "2"}, "OMPI_COMM_WORLD_LOCAL_RANK is 2, and there are 2 tasks on a node"),
    ({**MPI, "OMPI_COMM_WORLD_SIZE": "0"}, "OMPI_COMM_WORLD_SIZE must be a whole number from 1, not '0'"),
    ({**MPI, "OMPI_COMM_WORLD_SIZE": "9" * 40}, "OMPI_COMM_WORLD_SIZE must be a whole number"),
    ({**MPI, "OMPI_COMM_WORLD_SIZE": "3"}, "the nodes have different numbers of tasks"),
    ({**MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "0"}, "must be a whole number from 1, not '0'")])
def test_what_debzero_cannot_train_with_is_refused(variables, reason):
    assert reason in refused(lambda: schedulers.tasks(variables))


def test_all_that_is_wrong_with_the_environment_is_named_at_once():
    wrong = {"SLURM_STEP_NODELIST": "gpu[", "SLURM_STEP_TASKS_PER_NODE": "x", "SLURM_JOB_ID": "-7",
             "SLURM_LOCALID": "1.5", "SLURM_NODEID": ""}
    text = refused(lambda: schedulers.tasks({**SLURM, **wrong}))
    assert "5 problems" in text and all(name in text for name in wrong)
    wrong = {name: "x" for name in MPI if not name.endswith("_RANK") or "LOCAL" in name}
    text = refused(lambda: schedulers.tasks({**MPI, **wrong}))
    assert "3 problems" in text and all(name in text for name in wrong)


def test_the_only_task_of_a_node_gets_a_cluster_file_for_its_step(job, tmp_path):
    with schedulers.launcher(job, None) as ranks:
        found = cluster.find(job)
        assert ranks is None and found.key() == b"\xab" * 32
        assert (dict(found.hosts), found.host) == ({"gpu1": "gpu1", "gpu2": "gpu2"}, "gpu2")
        assert found.file.parent.stat().st_mode & 0o077 == 0
    assert not list(tmp_path.glob("debzero-*"))


def test_a_cluster_file_that_is_given_is_left_alone(job, tmp_path):
    given = tmp_path / "cluster.yml"
    given.write_text("hosts: {gpu1: 10.0.0.1, gpu2: 10.0.0.2}\nhost: gpu1\nport: 2000\n")
    with schedulers.launcher(job, given):
        assert NAMES["cluster_file"] not in os.environ


def test_a_cluster_file_of_fewer_hosts_than_nodes_is_refused(job, tmp_path):
    """Each node would train the job alone."""
    given = tmp_path / "cluster.yml"
    given.write_text("hosts: {gpu1: 10.0.0.1}\nhost: gpu1\nport: 2000\n")
    assert "names 1 host, and srun has started 2 nodes" in refused(lambda: enter(job, given))


def test_a_node_without_a_key_is_refused(job):
    job.with_suffix(".key").unlink()
    text = refused(lambda: enter(job))
    assert "bert.key: 1 problem file is missing" in text and "openssl rand -hex 32" in text


@pytest.mark.parametrize(("addresses", "reason"), [
    ({"gpu1": "10.0.0.1", "gpu2": "127.0.1.1"}, "gpu2 is 127.0.1.1 here, where the other nodes do not reach it"),
    ({"gpu1": "10.0.0.1"}, "gpu2 has no address here"),
    ({}, "2 problems gpu1 has no address here")])
def test_a_node_that_the_others_do_not_reach_is_refused(job, monkeypatch, addresses, reason):
    resolves(monkeypatch, addresses)
    assert reason in refused(lambda: enter(job))


def test_mpirun_over_several_nodes_needs_a_cluster_file(job, monkeypatch):
    for name, value in {**MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    assert "--cluster is missing" in refused(lambda: enter(job))


TASK = """
import os, time
from pathlib import Path
from typing import Optional
from debzero.train import schedulers
with schedulers.launcher(Path("bert.yml"), None) as ranks:
    if ranks != 0:
        time.sleep(1)
        assert not [name for name in os.environ if name.startswith("OMPI_COMM_WORLD")]
    print(ranks, time.monotonic(), flush=True)
"""
SHELL = """
OMPI_COMM_WORLD_LOCAL_RANK=1 "$@" &
OMPI_COMM_WORLD_LOCAL_RANK=0 "$@" &
wait
"""


def test_the_first_task_of_a_node_starts_the_ranks_and_the_others_wait_for_it():
    started = time.monotonic()
    done = subprocess.run(["sh", "-c", SHELL, "sh", sys.executable, "-c", TASK], capture_output=True, text=True,
                          env={**os.environ, **MPI, "PYTHONPATH": os.pathsep.join(sys.path)}, timeout=60)
    lines = dict(line.split() for line in done.stdout.splitlines())
    assert {*lines} == {"2", "0"}, done.stderr
    assert started + 1 < float(lines["2"]) <= float(lines["0"])


def test_a_task_without_a_first_one_ends_with_a_reason(monkeypatch):
    monkeypatch.setattr(schedulers, "STARTS", 0.1)
    for name, value in {**MPI, "OMPI_COMM_WORLD_LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert "this node has none" in refused(lambda: enter(Path("bert.yml")))
