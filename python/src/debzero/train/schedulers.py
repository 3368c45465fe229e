"""`debzero train` as the tasks of another scheduler: `srun debzero train JOB.yml`, `mpirun debzero train JOB.yml`.

The first task of each node starts the ranks there, as many as the node has tasks (a single task: as many as the job
says), and the other tasks wait until it ends. So one launcher a node watches its ranks and talks to those of the other
nodes, as under systemd. What it needs of a cluster file comes from the scheduler, but for the key: that is a file which
every node has. Slurm names the nodes of a step; Open MPI does not, so over several nodes it needs a cluster file.
"""
from __future__ import annotations

import itertools
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import psutil
import yaml

from debzero.base.environment import NAMES, environment
from debzero.base.errors import InputError, Problem
from debzero.base.stack import jobs_folder, stack
from debzero.hosts.cluster import MAKE_KEY
from debzero.hosts.network import is_loopback

FIRST_PORT, PORTS = 20000, 10000  # below the kernel's own choice, from 32768 on; each job step has one of them
STARTS = 60.0                     # seconds in which all tasks of a node start
ONE_TASK = "start one task a node, which starts a rank for each GPU: srun --ntasks-per-node=1 --gpus-per-node=..."


@dataclass(frozen=True)
class Tasks:
    """Where this process is among those of its step. `nodes`: their names; none where the scheduler does not say."""

    scheduler: str
    local_variable: str  # which numbers the tasks of a node
    local: int           # this one's number there
    on_node: int         # tasks of each node
    node_count: int
    nodes: tuple[str, ...] = ()
    node: int = 0        # this one's number
    port: int = FIRST_PORT


def tasks(given: Mapping[str, str]) -> Optional[Tasks]:
    """What the environment `given` tells; None where no scheduler has started this. Raises an InputError where debzero
    cannot train so."""
    if "OMPI_COMM_WORLD_RANK" in given:  # first: mpirun may run in an allocation of Slurm's
        size, on_node = _number(given, "OMPI_COMM_WORLD_SIZE"), _number(given, "OMPI_COMM_WORLD_LOCAL_SIZE")
        if not on_node or size % on_node:
            raise _uneven("OMPI_COMM_WORLD_LOCAL_SIZE", f"{on_node} of {size}", "--map-by ppr:1:node")
        return Tasks("mpirun", "OMPI_COMM_WORLD_LOCAL_RANK", _number(given, "OMPI_COMM_WORLD_LOCAL_RANK"), on_node,
                     size // on_node)
    if not {"SLURM_STEP_ID", "SLURM_PROCID", "SLURM_STEP_NODELIST"} <= {*given}:
        return None
    nodes = tuple(expanded(given["SLURM_STEP_NODELIST"]))
    counts = {count.split("(")[0] for count in given.get("SLURM_STEP_TASKS_PER_NODE", "1").split(",")}
    if len(counts) > 1 or not {*counts}.pop().isdecimal():
        raise _uneven("SLURM_STEP_TASKS_PER_NODE", given["SLURM_STEP_TASKS_PER_NODE"], "--ntasks-per-node=1")
    on_node = int(counts.pop())
    if on_node > 1 and "SLURM_GPUS_PER_TASK" in given:
        raise InputError([Problem("srun", "SLURM_GPUS_PER_TASK", "lets each task see its own GPUs alone, and the first "
                                  "one of a node starts the ranks of all", ONE_TASK)])
    step = _number(given, "SLURM_JOB_ID") * 131 + _number(given, "SLURM_STEP_ID")
    return Tasks("srun", "SLURM_LOCALID", _number(given, "SLURM_LOCALID"), on_node, len(nodes), nodes,
                 _number(given, "SLURM_NODEID"), FIRST_PORT + step % PORTS)


def _number(given: Mapping[str, str], name: str) -> int:
    text = given.get(name, "")
    if not text.isdecimal():
        raise InputError([Problem("the environment", name, f"must be a whole number, not {text[:20]!r}",
                                  "start debzero by srun or mpirun, or unset what they have set")])
    return int(text)


def _uneven(name: str, found: str, option: str) -> InputError:
    return InputError([Problem("the environment", name, f"is {found}: the nodes have different numbers of tasks",
                               f"give all the same, such as {option}")])


def expanded(names: str) -> Iterator[str]:
    """The names in a Slurm host list such as gpu[1-3,07],web."""
    for part in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", names):
        pieces = [_choices(piece) for piece in re.split(r"(\[[^\]]*\])", part)]
        yield from map("".join, itertools.product(*pieces))


def _choices(piece: str) -> list[str]:
    if not piece.startswith("["):
        return [piece]
    numbers = []
    for one in piece[1:-1].split(","):
        first, _, last = one.partition("-")
        numbers += [str(number).zfill(len(first)) for number in range(int(first), int(last or first) + 1)]
    return numbers


@contextmanager
def launcher(job: Path, cluster: Optional[Path]) -> Iterator[Optional[int]]:
    """Make this process the launcher of its node, if it is the node's first task: the ranks that it has to start there,
    or None to leave that to the job. Another task waits for the first one's end; then this yields 0. `cluster`: a
    cluster file that is given. Raises an InputError."""
    found = tasks(os.environ)
    if found is None:
        yield None
    elif found.local:
        _wait_for_first(found)
        yield 0
    else:
        if found.on_node > 1:
            _use_all_cores()
        for name in [name for name in os.environ if name.startswith("OMPI_COMM_WORLD_")]:
            del os.environ[name]  # DeepSpeed refuses a rank whose number is another than that of the task
        with _cluster(found, job, cluster):
            yield found.on_node if found.on_node > 1 else None


def _beside() -> list[psutil.Process]:
    """The tasks of this node, which one process has started."""
    return psutil.Process(os.getppid()).children()


def _use_all_cores() -> None:
    """Those of all tasks: a scheduler gives each its own, and the ranks of all inherit this one's."""
    cores = set(os.sched_getaffinity(0))
    for task in _beside():
        with suppress(OSError):
            cores |= os.sched_getaffinity(task.pid)
    os.sched_setaffinity(0, cores)


def _wait_for_first(found: Tasks) -> None:
    until = time.monotonic() + STARTS
    while time.monotonic() < until:
        for task in _beside():
            with suppress(psutil.Error):
                if task.environ().get(found.local_variable) == "0":
                    task.wait()
                    return
        time.sleep(0.2)
    raise InputError([Problem(found.scheduler, found.local_variable, "numbers a task 0, and this node has none",
                              f"let {found.scheduler} start debzero itself, not a script; or one task a node")])


@contextmanager
def _cluster(found: Tasks, job: Path, given: Optional[Path]) -> Iterator[None]:
    """A cluster file for this step, private to this process, where one is needed and none is given."""
    if found.node_count == 1 or given or environment().cluster_file:
        yield
        return
    if not found.nodes:
        raise InputError([Problem(found.scheduler, "--cluster", "is missing: it does not say on which nodes it runs",
                                  "name a cluster file that each node has (docs/hosts.md)")])
    for name in found.nodes:
        _require_reachable(name)
    key = _key_file(job)
    if not os.path.isfile(key):
        raise InputError([Problem(str(key), "file", "is missing: the nodes of a job know each other by it", MAKE_KEY)])
    folder = Path(tempfile.mkdtemp(prefix="debzero-"))
    try:
        file = folder / f"{job.stem}.yml"
        file.write_text(yaml.safe_dump({"hosts": {name: name for name in found.nodes}, "host": found.nodes[found.node],
                                        "port": found.port}, sort_keys=False))
        file.with_suffix(".key").symlink_to(key)
        os.environ[NAMES["cluster_file"]] = str(file)
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _key_file(job: Path) -> Path:
    """Beside the job file, or where the role `trainer` puts it."""
    own = job.absolute().parent == jobs_folder().absolute()
    return Path(stack().config, "cluster", f"{job.stem}.key") if own else job.absolute().with_suffix(".key")


def _require_reachable(name: str) -> None:
    try:
        address = str(socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise InputError([Problem("srun", name, f"has no address here: {error.strerror or error}",
                                  "add it to the name server, or to /etc/hosts on all nodes")]) from None
    if is_loopback(address):
        raise InputError([Problem("srun", name, f"is {address} here, where the other nodes do not reach it",
                                  f"give {name} its own address in /etc/hosts")])
