"""Containers take most of the time that the tests take, and much of it they wait: their jobs run in the background, side by side.

A job is a command that tests name with the mark `job`: a Molecule scenario, or `make deb`. The jobs of the selected tests start as
soon as it is known which these are; the tests without one run meanwhile, and the others then ask the fixture `jobs` for the result.
"""
from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Optional

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOGS = ROOT / ".cache" / "logs"

# What the jobs need of the image, the key and the caches is made first, then the longest scenario starts.
IMAGE = "image"
COMMANDS = {
    IMAGE: ["ansible-playbook", "-i", "inventory/demo",
            *(f"molecule/shared/{play}.yml" for play in ("destroy", "create", "destroy"))],
    "deb": ["make", "deb"],
    **{name: ["molecule", "-c", "molecule/base.yml", "test", "-s", name] for name in (
        "site", "deepspeed_wheel", "nvidia_driver", "local_connection", "cuda", "trainer", "preflight", "debzero_deb",
        "torch_venv", "base")},
}
# A package or a wheel must not be made twice at once: these wait for the jobs that make them. Those stand before them in COMMANDS.
AFTER = {"site": ["deb"], "trainer": ["deb", "deepspeed_wheel"]}


class Jobs:
    """The commands of these names, started in the order of `commands`, and what became of them."""

    def __init__(self, names: set[str], commands: dict[str, list[str]] = COMMANDS, after: dict[str, list[str]] = AFTER,
                 at_once: int = 3, limit: float = 4800) -> None:
        """`limit`: seconds for each job."""
        self.commands, self.limit = commands, limit
        self.environment = {**os.environ, "NO_COLOR": "1", "ANSIBLE_NOCOLOR": "1"}  # as it is now: tests change theirs while jobs start
        self.waiting = [name for name in commands if name in names or names and name == IMAGE]
        self.needs = {name: [before for before in [IMAGE, *after.get(name, [])] if before in self.waiting and before != name]
                      for name in self.waiting}
        self.results: dict[str, Future[str]] = {name: Future() for name in self.waiting}
        self.seconds: dict[str, float] = {}
        self.running: set[subprocess.Popen] = set()
        self.changed = threading.Condition()
        self.workers = [threading.Thread(target=self.work) for _ in range(at_once) if names]
        for worker in self.workers:
            worker.start()

    def work(self) -> None:
        while name := self.take():
            try:
                self.results[name].set_result(self.run(name))
            except Exception as error:
                self.results[name].set_exception(error)
            with self.changed:
                self.changed.notify_all()

    def take(self) -> Optional[str]:
        """The next job, as soon as all that it needs has ended, well or not; None when no job is left."""
        with self.changed:
            while self.waiting:
                for name in self.waiting:
                    if all(self.results[before].done() for before in self.needs[name]):
                        self.waiting.remove(name)
                        return name
                self.changed.wait()
            return None

    def run(self, name: str) -> str:
        """Run the job to its end: why it failed and what it said last; empty where it succeeded."""
        log = LOGS / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = {**self.environment, "DEBZERO_CONTAINER": f"debzero-{name}"}
        started = time.monotonic()
        with log.open("w") as stream, subprocess.Popen(self.commands[name], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=stream,
                                                       stderr=subprocess.STDOUT, env=environment, start_new_session=True) as process:
            self.running.add(process)
            try:
                code, end = process.wait(self.limit), "failed"
            except subprocess.TimeoutExpired:
                kill(process)
                code, end = 1, f"was stopped after {self.limit} s"
            finally:
                self.running.discard(process)
                self.seconds[name] = time.monotonic() - started
        if code < 0 or end != "failed":  # nobody was left to remove it, and what runs in it would go on
            subprocess.run(["podman", "rm", "--force", "--volumes", environment["DEBZERO_CONTAINER"]], capture_output=True, env=environment)
        return "" if code == 0 else f"{name} {end}; {log} ends with\n" + "".join(log.read_text().splitlines(keepends=True)[-150:])

    def succeed(self, name: str) -> None:
        """Wait for the job's end, and fail with the end of its log where it failed."""
        failure = self.results[name].result()
        if failure:
            pytest.fail(failure, pytrace=False)

    def stop(self) -> None:
        """Leave nothing running behind: tests were interrupted, or one failed and no more are wanted."""
        with self.changed:
            for name in self.waiting:
                self.results[name].cancel()
            self.waiting.clear()
            self.changed.notify_all()
        while any(worker.is_alive() for worker in self.workers):
            for process in list(self.running):
                kill(process)
            time.sleep(0.1)


def kill(process: subprocess.Popen) -> None:
    """End the job's processes, which are a session of their own."""
    try:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)
    except ProcessLookupError:  # it ended by itself
        pass
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
