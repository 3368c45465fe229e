"""`debzero train` as the tasks of another scheduler: `srun debzero train JOB.yml`, `mpirun debzero train JOB.yml`.

The first task of each node starts the ranks there, as many as the node has tasks (a single task: as many as the job
says), and the other tasks wait until it ends. So one launcher a node watches its ranks and talks to those of the other
nodes, as under systemd. What it needs of a cluster file comes from the scheduler, but for the key: that is a file which
every node has. Slurm names the nodes of a step; Open MPI does not, so over several nodes it needs a cluster file.
"""
from __future__ import annotations

import itertools
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import psutil
import yaml

from debzero.base.environment import NAMES, environment
from debzero.base.errors import InputError, Problem
from debzero.base.stack import jobs_folder, stack
from debzero.base.text import count_text, short
from debzero.hosts.cluster import MAKE_KEY, MOST_HOSTS, read
from debzero.hosts.network import is_loopback, look_up

FIRST_PORT, PORTS = 20000, 10000  # below the kernel's own choice, from 32768 on; each job step has one of them
STARTS = 60.0                     # seconds in which all tasks of a node start
DIGITS = 20                       # of a number, at most
FIX = "start debzero by srun or mpirun, or unset what they have set"
_RANGE = r"\d{1,9}(?:-\d{1,9})?"
PART = rf"(?:[A-Za-z0-9._-]|\[{_RANGE}(?:,{_RANGE})*\])+"
HOST_LIST = re.compile(rf"{PART}(?:,{PART})*", re.ASCII)
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


class _Given:
    """The scheduler's variables, and all that is wrong with them."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self.values, self.problems = values, list[Problem]()

    def number(self, name: str, least: int = 0) -> int:
        found = _whole(self.values.get(name, ""))
        if found is not None and found >= least:
            return found
        self.wrong(name, f"must be a whole number{f' from {least}' if least else ''}, not "
                         f"{short(self.values.get(name, ''))}")
        return least

    def below(self, name: str, most: int, what: str) -> int:
        """The number of one of `most` things, from 0. `what`: says how many there are."""
        found = self.number(name)
        if found >= most and not self.problems:  # else `most` may be none
            self.wrong(name, f"is {found}, and there {what}: from 0 to {most - 1}")
        return found

    def nodes(self, name: str) -> tuple[str, ...]:
        try:
            return tuple(expanded(self.values[name]))
        except ValueError as error:
            self.wrong(name, str(error))
            return ()

    def tasks(self, name: str) -> int:
        """Of each node, in Slurm's form for all: 2(x3)."""
        text = self.values.get(name, "1")
        counts = [_whole(count.split("(")[0]) for count in text.split(",")]
        if not all(counts):
            self.wrong(name, f"must be a number of tasks for each node, not {short(text)}")
        elif len({*counts}) > 1:
            self.uneven(name, short(text), "--ntasks-per-node=1")
        return counts[0] or 1

    def uneven(self, name: str, found: str, option: str) -> None:
        self.problems.append(Problem("the environment", name, f"is {found}: the nodes have different numbers of tasks",
                                     f"give all the same, such as {option}"))

    def wrong(self, name: str, reason: str) -> None:
        self.problems.append(Problem("the environment", name, reason, FIX))

    def settle(self) -> None:
        """Raises an InputError where anything is wrong."""
        if self.problems:
            raise InputError(self.problems)


def _whole(text: str) -> Optional[int]:
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= DIGITS else None


def tasks(given: Mapping[str, str]) -> Optional[Tasks]:
    """What the environment `given` tells; None where no scheduler has started this. Raises an InputError where debzero
    cannot train so."""
    variables = _Given(given)
    if "OMPI_COMM_WORLD_RANK" in given:  # first: mpirun may run in an allocation of Slurm's
        found = _of_mpirun(variables)
    elif {"SLURM_STEP_ID", "SLURM_PROCID", "SLURM_STEP_NODELIST"} <= {*given}:
        found = _of_srun(variables)
    else:
        return None
    variables.settle()
    return found


def _of_mpirun(given: _Given) -> Tasks:
    size, on_node = given.number("OMPI_COMM_WORLD_SIZE", 1), given.number("OMPI_COMM_WORLD_LOCAL_SIZE", 1)
    if size % on_node and not given.problems:
        given.uneven("OMPI_COMM_WORLD_LOCAL_SIZE", f"{on_node} of {size}", "--map-by ppr:1:node")
    local = given.below("OMPI_COMM_WORLD_LOCAL_RANK", on_node, _on_a_node(on_node))
    return Tasks("mpirun", "OMPI_COMM_WORLD_LOCAL_RANK", local, on_node, size // on_node)


def _of_srun(given: _Given) -> Tasks:
    nodes, on_node = given.nodes("SLURM_STEP_NODELIST"), given.tasks("SLURM_STEP_TASKS_PER_NODE")
    if on_node > 1 and "SLURM_GPUS_PER_TASK" in given.values:
        given.problems.append(Problem("srun", "SLURM_GPUS_PER_TASK", "lets each task see its own GPUs alone, and the "
                                      "first one of a node starts the ranks of all", ONE_TASK))
    step = given.number("SLURM_JOB_ID") * 131 + given.number("SLURM_STEP_ID")
    local = given.below("SLURM_LOCALID", on_node, _on_a_node(on_node))
    node = given.below("SLURM_NODEID", len(nodes), f"{_are(len(nodes), 'node')}")
    return Tasks("srun", "SLURM_LOCALID", local, on_node, len(nodes), nodes, node, FIRST_PORT + step % PORTS)


def _on_a_node(count: int) -> str:
    return f"{_are(count, 'task')} on a node"


def _are(count: int, noun: str) -> str:
    return f"{'is' if count == 1 else 'are'} {count_text(count, noun)}"


def expanded(names: str) -> list[str]:
    """The names in a Slurm host list such as gpu[1-3,07],web. Raises a ValueError where it is none."""
    wrong = ValueError(f"is no list of hosts: {short(names)}")
    if not HOST_LIST.fullmatch(names):
        raise wrong
    found: list[str] = []
    for part in re.findall(PART, names, re.ASCII):
        pieces = [_choices(piece) for piece in re.split(r"(\[[^\]]*\])", part)]
        if not all(pieces):
            raise wrong
        # Counted first: a few characters can stand for more names than there is memory.
        if len(found) + math.prod(map(len, pieces)) > MOST_HOSTS:
            raise ValueError(f"names more than {MOST_HOSTS} hosts")
        found += ("".join(piece) for piece in itertools.product(*pieces))
    if len({*found}) < len(found):
        raise wrong
    return found


def _choices(piece: str) -> Sequence[str]:
    """What may stand for one piece of a name; nothing where a range runs backwards."""
    if not piece.startswith("["):
        return [piece]
    numbers: list[str] = []
    for one in piece[1:-1].split(","):
        first, _, last = one.partition("-")
        within = range(int(first), int(last or first) + 1)
        if not within:
            return []
        numbers += (str(number).zfill(len(first)) for number in within[:MOST_HOSTS + 1])
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
    file = given or environment().cluster_file
    if file and found.node_count > 1:
        hosts = len(read(file.absolute()).hosts)
        if hosts < found.node_count:  # each node would train alone, or for ever wait for a host that another one is
            raise InputError([Problem(str(file), "hosts", f"names {count_text(hosts, 'host')}, and {found.scheduler} "
                                      f"has started {found.node_count} nodes", "name all nodes there")])
    if file or found.node_count == 1:
        yield
        return
    if not found.nodes:
        raise InputError([Problem(found.scheduler, "--cluster", "is missing: it does not say on which nodes it runs",
                                  "name a cluster file that each node has (docs/hosts.md)")])
    problems = [problem for name in found.nodes for problem in _unreachable(name)]
    if problems:
        raise InputError(problems)
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


def _unreachable(name: str) -> list[Problem]:
    """Why the other nodes do not reach a node by its name."""
    try:
        address = look_up(name)
    except OSError as error:
        return [Problem("srun", name, f"has no address here: {error.strerror or error}",
                        "add it to the name server, or to /etc/hosts on all nodes")]
    if is_loopback(address):
        return [Problem("srun", name, f"is {address} here, where the other nodes do not reach it",
                        f"give {name} its own address in /etc/hosts")]
    return []
