"""Processes for the ranks, forked before the launcher has checked the job.

The launcher imports torch and transformers to check the job, and each rank needs them as well: five seconds of a
processor, on some hosts more than ten. So the launcher imports first what a rank needs, forks as many processes as the
job will probably have ranks, and goes on with its check. They wait for their orders: the arguments and the variables
that torch's launcher would have started a rank with. Where the launcher cannot be forked, or the orders are for another
process than what waits, ranks are started as usual.
"""
from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Callable, NamedTuple, NoReturn, Optional

from debzero.base import interpreter, terminal
from debzero.deepspeed_json import releases
from debzero.job.schema import Job
from debzero.resolve import layout

SCRIPT = interpreter.SOURCE / "train.py"
THREADS = "OMP_NUM_THREADS"  # read when torch is imported
OWN_SESSION = (2, 2)         # torch's launcher gives each rank a session of its own since this release
MOST = 64                    # processes; ranks beyond them are started as usual
PR_GET_DUMPABLE = 3          # of prctl(2)
PAUSE = 0.01                 # seconds between two looks whether a process has ended


class Forked:
    """A forked process, as far as torch's launcher needs a subprocess.Popen."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: Optional[int] = None

    def poll(self) -> Optional[int]:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: Optional[float] = None) -> Optional[int]:
        """Raises subprocess.TimeoutExpired after so many seconds."""
        until = time.monotonic() + (float("inf") if timeout is None else timeout)
        while self.poll() is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
            time.sleep(PAUSE)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Waiting(NamedTuple):
    process: Forked
    orders: int   # the file descriptor of the pipe
    threads: str  # the value of OMP_NUM_THREADS that it was forked with


_waiting: list[Waiting] = []


def threads(gpus: int, ranks: int) -> str:
    """The default of OMP_NUM_THREADS for each of this host's ranks."""
    return "4" if gpus else str(max(1, len(os.sched_getaffinity(0)) // ranks))


def start(job: Job, given: Optional[int]) -> None:
    """Import what ranks need, and fork as many as the job will probably have here. To be called before this process
    has threads or looks at a GPU. `given`: the ranks that the command line asks for."""
    gpus = _visible_gpus()
    ranks = layout.count(job, gpus, given)
    before = os.environ.get(THREADS)
    expected = os.environ.setdefault(THREADS, threads(gpus, ranks))
    try:
        _import(job)
    finally:
        if before is None:  # what is known of the ranks decides
            del os.environ[THREADS]
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None: closed
        stream.flush()
    with suppress(OSError):  # no room for another process or file: ranks are started as usual, or that says so
        for _ in range(min(ranks, MOST) if _can_fork() else 0):
            _waiting.append(_fork(expected))


def _fork(expected: str) -> Waiting:
    reading, writing = os.pipe()
    launcher = os.getpid()
    try:
        pid = os.fork()
    except OSError:
        os.close(reading)
        os.close(writing)
        raise
    if pid == 0:
        os.close(writing)
        exit_as(lambda: _follow_orders(reading, launcher))
    os.close(reading)
    return Waiting(Forked(pid), writing, expected)


def _visible_gpus() -> int:
    """An estimate, without a look at them."""
    here, visible = len(list(Path("/dev").glob("nvidia[0-9]*"))), os.environ.get("CUDA_VISIBLE_DEVICES")
    return here if visible is None else min(here, len([each for each in visible.split(",") if each]))


def _can_fork() -> bool:
    """Neither other threads nor what this process has opened of a GPU would work in a child. And the children of a
    launcher that was root would hold root's memory, from which the kernel keeps the user's other ranks."""
    if not ctypes.CDLL(None).prctl(PR_GET_DUMPABLE):
        return False
    opened = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
    return threading.active_count() == 1 and not any(path.startswith("/dev/nvidia") for path in opened)


def _import(job: Job) -> None:
    """Without Python's search for garbage, which takes a twelfth of the time and finds little. What is here afterwards
    is left out of each later search, so that a forked process need not copy it."""
    gc.disable()
    try:
        import debzero.train.loop
        import debzero.train.rank  # noqa: F401
        from debzero.model import tasks
        from debzero.train.setup import import_models

        import_models(tasks.of(job))
    finally:
        gc.freeze()
        gc.enable()


def lend() -> None:
    """Let torch's launcher take the processes that wait."""
    from torch.distributed.elastic.multiprocessing.api import SubprocessHandler

    own: Any = SubprocessHandler._popen

    def popen(self: Any, arguments: Sequence[str], variables: Mapping[str, str]) -> Any:
        return _hand_over(arguments, variables) or own(self, arguments, variables)

    if _waiting:
        SubprocessHandler._popen = popen


def _hand_over(arguments: Sequence[str], variables: Mapping[str, str]) -> Optional[Forked]:
    """A process that has got these orders; None where there is none for them."""
    if any(one.threads != variables.get(THREADS) for one in _waiting):
        close()
    while _waiting:
        process, pipe, _ = _waiting.pop(0)
        try:
            with open(pipe, "w", encoding="ascii") as file:
                json.dump({"arguments": arguments[arguments.index(str(SCRIPT)):], "variables": dict(variables)}, file)
        except BrokenPipeError:  # something has killed it
            process.wait()
            continue
        return process
    return None


def close() -> None:
    """End the processes that nobody needs."""
    while _waiting:
        process, pipe, _ = _waiting.pop()
        os.close(pipe)
        process.kill()
        process.wait()


def _close_inherited() -> None:
    """Close what whoever started the launcher left open, as subprocess does for a rank that is started as usual. What
    this process has opened itself is not inheritable."""
    for number in map(int, os.listdir("/proc/self/fd")):
        with suppress(OSError):  # it was that of the list
            if number > 2 and os.get_inheritable(number):
                os.close(number)


def _follow_orders(pipe: int, launcher: int) -> int:
    """Wait in a child of the launcher, and be the rank that the orders say; the exit code."""
    terminal.end_with(launcher)
    for one in _waiting:  # its siblings': they end with the launcher's
        os.close(one.orders)
    _close_inherited()
    if releases.parsed(releases.here().torch) >= OWN_SESSION:
        os.setsid()
    os.chdir("/")
    import torch

    if _visible_gpus() and hasattr(torch, "compile"):
        import torch._inductor.compile_fx  # noqa: F401 - seconds, which a rank would take after its first batch
    with open(pipe, encoding="ascii") as file:
        text = file.read()
    if not text:
        return 1
    orders = json.loads(text)
    os.environ.clear()
    os.environ.update(orders["variables"])
    sys.argv = orders["arguments"]
    from debzero.train.rank import main

    return main()


def exit_as(work: Callable[[], int]) -> NoReturn:
    """End this forked process as a program would whose main function is `work`."""
    code = 1
    try:
        code = work()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            with suppress(OSError):
                stream.flush()
        os._exit(code)
