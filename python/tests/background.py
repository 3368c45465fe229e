"""Containers take most of the time of the tests, and often wait: their jobs run side by side in the background.

A job is a command that tests name with the mark `job`, mostly a Molecule scenario. The jobs of the selected tests start
as soon as it is known which these are; the tests without one run meanwhile, and the others then ask the fixture `jobs`
for the result.
"""
from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from concurrent.futures import Future
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Optional

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOGS = ROOT / ".cache" / "logs"

PLAY = ["ansible-playbook", "-i", "inventory/demo"]
DESTROY = [*PLAY, "-i", "inventory/cluster", "molecule/shared/destroy.yml"]  # of both containers, where there are two
IMAGE = "image"  # what all others need is built first: the image, the key and the folders of the caches


def scenario(name: str) -> list[str]:
    return ["molecule", "-c", "molecule/base.yml", "test", "-s", name]


# The slow linters. They need no container.
LINTERS = {
    "ansible-lint": ["ansible-lint", "--offline", "--strict", "--profile", "production", "-q"],
    "mypy": ["env", "-C", "python", "../.cache/test/bin/mypy", "--cache-dir", "../.cache/mypy"],
}
# They start in this order, as far as they need not wait for each other.
COMMANDS = {
    IMAGE: [*PLAY, *(f"molecule/shared/{name}.yml" for name in ("destroy", "create", "destroy"))],
    **LINTERS,
    **{name: scenario(name) for name in (
        "debzero_deb", "base", "site", "torch_venv", "deepspeed_wheel", "nvidia_driver", "local_connection", "trainer",
        "inference", "tensorrt", "cluster", "cuda", "preflight", "collection", "repository", "bundle")},
    "trainer_long": ["env", "DEBZERO_LONG=1", *scenario("trainer")],
}
# Scenarios that continue where the one before ended: each finds the roles installed that it needs, in one container.
CHAIN = ("base", "torch_venv", "deepspeed_wheel", "trainer", "inference")
HOSTS = dict.fromkeys(CHAIN, "roles")
# A package or a wheel must not be built twice at once: these wait for the jobs that build them. And what torch_venv
# downloads and unpacks, local_connection finds in the cache (site is busy with CUDA's packages meanwhile).
AFTER = {
    "site": ["debzero_deb"],
    "local_connection": ["torch_venv"],
    "trainer": ["debzero_deb"],
    "inference": ["debzero_deb"],
    "trainer_long": ["debzero_deb", "deepspeed_wheel"],
    "cluster": ["debzero_deb", "deepspeed_wheel"],
    "repository": ["debzero_deb", "deepspeed_wheel"],
    "bundle": ["debzero_deb", "repository"],  # which leaves the environment's packages
}


@cache
def container(name: str) -> str:
    """What a container of this checkout is called."""
    return subprocess.run([ROOT / "ansible/container", name], check=True, capture_output=True, text=True).stdout.strip()


class Jobs:
    """The commands of these names, started in the order of `commands`, and what became of them."""

    def __init__(self, names: set[str], commands: dict[str, list[str]] = COMMANDS, after: dict[str, list[str]] = AFTER,
                 hosts: dict[str, str] = HOSTS, destroy: list[str] = DESTROY, at_once: int = 3,
                 limit: float = 4800) -> None:
        """`hosts`: the containers of jobs that share one. `destroy`: removes a container. `limit`: seconds per job."""
        self.commands, self.destroy, self.limit = commands, destroy, limit
        # As it is now: tests change theirs while jobs start.
        self.environment = {**os.environ, "NO_COLOR": "1", "ANSIBLE_NOCOLOR": "1"}
        self.waiting = [name for name in commands if name in names or name == IMAGE and names - {*LINTERS}]
        # Jobs that share a container, in their order. What is alone has one of its own.
        self.sharing = {name: [other for other in self.waiting if hosts.get(other, other) == hosts.get(name, name)]
                        for name in self.waiting}
        self.containers = {name: container(hosts.get(name, name)) for name in self.waiting}
        self.needs = {name: {IMAGE, *after.get(name, []), *takewhile(name.__ne__, self.sharing[name])}
                      & {*self.waiting} - {name} for name in self.waiting}
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
        environment = {**self.environment, "DEBZERO_CONTAINER": self.containers[name]}
        shared = self.sharing[name] if len(self.sharing[name]) > 1 else []
        if shared[:1] == [name]:
            self.remove(self.containers[name])
        if shared:
            environment["DEBZERO_KEEP"] = "1"
        started = time.monotonic()
        with log.open("w") as stream, subprocess.Popen(
                self.commands[name], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT,
                env=environment, start_new_session=True) as process:
            self.running.add(process)
            try:
                code, end = process.wait(self.limit), "failed"
            except subprocess.TimeoutExpired:
                kill(process)
                code, end = 1, f"was stopped after {self.limit} s"
            finally:
                self.running.discard(process)
                self.seconds[name] = time.monotonic() - started
        # One that was killed could not remove its container, in which its programs still run.
        if shared[-1:] == [name] or code < 0 or end != "failed":
            self.remove(self.containers[name])
        lines = log.read_text().splitlines(keepends=True)
        return "" if code == 0 else f"{name} {end}; {log} ends with\n" + "".join(lines[-150:])

    def remove(self, container: str) -> None:
        subprocess.run(self.destroy, cwd=ROOT, capture_output=True,
                       env={**self.environment, "DEBZERO_CONTAINER": container})

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
