"""`debzero` without the imports: a process that has them forks the command, whose launcher forks the ranks.

A start imports torch, transformers and DeepSpeed in the launcher and in every rank: nine seconds of processor time
each, where the small jobs of the tests train for one. So tests for which a real launch is not the point run their
commands in children of one server that has imported everything. What a child runs is debzero's own code, from
`cli.main` to the ranks' `main`, in processes of its own and with torch's launcher between them; only the `exec` of the
command is left out. Variables that libraries read when they are imported are those of the server.
"""
from __future__ import annotations

import codecs
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any, Optional

# One thread in each process: with more, OpenMP's would not live through a fork. And no network.
VARIABLES = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
HOUR = 3600.0  # seconds; pytest's own limit ends a test that hangs, and the long tests have more than its usual one


class Process:
    """A command in a child of the server, as subprocess.Popen has it: its output, errors among it, is text."""

    def __init__(self, connection: Connection, pid: int, output: Any) -> None:
        self.connection, self.pid, self.stdout, self.returncode = connection, pid, output, None

    def poll(self) -> Optional[int]:
        if self.returncode is None and self.connection.poll():
            self.returncode = self.connection.recv()
        return self.returncode

    def wait(self, timeout: float) -> int:
        if self.returncode is None and not self.connection.poll(timeout):
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
        return self.poll()

    def communicate(self, timeout: float) -> tuple[str, None]:
        """What it and its ranks printed, when the last of them has gone (they share the pipe)."""
        timer = threading.Timer(timeout, os.killpg, (self.pid, signal.SIGKILL))
        timer.start()
        text = self.stdout.read()
        timer.cancel()
        self.wait(timeout)
        return text, None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Server:
    """The process that forks. It ends with the tests, which hold the other end of its stdin."""

    def __init__(self) -> None:
        self.address = tempfile.mkdtemp() + "/server"
        source = Path(__file__).resolve().parents[2] / "src"
        self.process = subprocess.Popen(
            [sys.executable, __file__, self.address], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, **VARIABLES, "PYTHONPATH": str(source)})
        ready = self.process.stdout.readline()
        assert ready == "ready\n", f"the server did not start: {ready}"

    def start(self, arguments: list[str], folder: Path, variables: Optional[Mapping[str, str]] = None,
              errors: Optional[int] = None) -> Process:
        """`errors`: the file descriptor of a file for stderr; by default it goes where stdout does."""
        reading, writing = os.pipe()
        connection = Client(self.address, "AF_UNIX")
        connection.send((arguments, str(folder), dict(variables or {})))
        with socket.socket(fileno=os.dup(connection.fileno())) as channel:
            socket.send_fds(channel, [b"x"], [writing, writing if errors is None else errors])
        os.close(writing)
        return Process(connection, connection.recv(), open(reading, encoding="utf-8", errors="replace"))

    def run(self, arguments: list[str], folder: Path, **variables: str) -> subprocess.CompletedProcess:
        """As subprocess.run; stdout and stderr are the same text."""
        process = self.start(arguments, folder, variables)
        text = process.communicate(HOUR)[0]
        return subprocess.CompletedProcess(arguments, process.returncode, text, text)

    def run_apart(self, arguments: list[str], folder: Path, **variables: str) -> subprocess.CompletedProcess:
        """As `run`, with stdout and stderr apart."""
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
            process = self.start(arguments, folder, variables, errors.fileno())
            text = process.communicate(HOUR)[0]
            errors.seek(0)
            return subprocess.CompletedProcess(arguments, process.returncode, text, errors.read())


@cache
def server() -> Server:
    """The one server, started when it is first needed."""
    return Server()


def serve(address: str) -> None:
    """Fork a child for each request, until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print when they are imported
    import_everything()
    from debzero.train.standby import exit_as

    listener = Listener(address, "AF_UNIX", backlog=16)
    running: set[int] = set()
    threading.Thread(target=end_with_tests, args=[running], daemon=True).start()
    print("ready", file=answers, flush=True)
    while True:
        connection = listener.accept()
        arguments, folder, variables = connection.recv()
        with socket.socket(fileno=os.dup(connection.fileno())) as channel:
            outputs = socket.recv_fds(channel, 1, 2)[1]
        pid = os.fork()
        if pid == 0:
            listener.close()
            connection.close()
            exit_as(lambda: child(arguments, folder, variables, outputs))  # noqa: B023 - called at once
        for output in outputs:
            os.close(output)
        connection.send(pid)
        running.add(pid)
        threading.Thread(target=report, args=(connection, pid, running), daemon=True).start()


def end_with_tests(running: set[int]) -> None:
    os.read(0, 1)  # not sys.stdin: a child that was forked meanwhile could never close it
    for pid in list(running):
        with suppress(OSError):
            os.killpg(pid, signal.SIGKILL)
    os._exit(0)


def report(connection: Connection, pid: int, running: set[int]) -> None:
    """Send the exit code when the child has ended."""
    status = os.waitpid(pid, 0)[1]
    running.discard(pid)
    with suppress(OSError):  # the test asks no more
        connection.send(os.waitstatus_to_exitcode(status))


def import_everything() -> None:
    os.environ["DS_ACCELERATOR"] = "cpu"
    from debzero.train.torch_imports import speed_up_imports

    speed_up_imports()
    import datasets  # noqa: F401
    import deepspeed  # noqa: F401
    import matplotlib.backends.backend_agg  # noqa: F401
    import matplotlib.backends.backend_svg  # noqa: F401
    import prometheus_client  # noqa: F401
    import sklearn.metrics  # noqa: F401
    import torch.distributed.launcher.api  # noqa: F401
    import transformers
    from huggingface_hub import ModelCardData  # noqa: F401
    from tensorboard.summary.writer.record_writer import RecordWriter  # noqa: F401

    for encoding in ("utf-8-sig", "latin-1", "ascii", "idna"):  # a child of another user may not reach this Python
        codecs.lookup(encoding)
    import debzero.check.checks  # noqa: F401
    import debzero.train.gloo  # noqa: F401
    import debzero.train.launch  # noqa: F401
    import debzero.train.loop  # noqa: F401
    import debzero.train.rank  # noqa: F401

    for name in ("AutoModelForSequenceClassification", "AutoTokenizer", "BertForSequenceClassification",
                 "BertTokenizerFast", "PreTrainedModel"):
        getattr(transformers, name)
    del os.environ["DS_ACCELERATOR"]


def child(arguments: list[str], folder: str, variables: dict[str, str], outputs: list[int]) -> int:
    """Run the command as a process of its own would; its exit code. `outputs`: for stdout and stderr."""
    os.setsid()
    os.chdir(folder)
    os.environ.update(variables)
    for number, output in enumerate(outputs, 1):
        os.dup2(output, number)
    # The server's own may be files, which have a position; a pipe has none.
    sys.stdout, sys.stderr = (
        open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115 - until the process ends
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.argv = ["debzero", *arguments]
    from debzero.train import standby

    standby._can_fork = lambda: True  # also for another user, who may not reach this Python
    if name := variables.get("PLANTED"):
        from planted import PLANTS

        PLANTS[name]()
    from debzero.cli import main

    return main()


if __name__ == "__main__":
    serve(sys.argv[1])
