"""The launcher's part of a job that several hosts train: wait for all, compare what must be the same on them, and end
together, for the reason that any of them had."""
from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, Callable, NamedTuple, Optional

import psutil

from debzero.base import systemd
from debzero.base.environment import NAMES
from debzero.base.errors import InputError, PassingError, Problem
from debzero.base.files import write_json
from debzero.base.text import printable, printable_lines, short
from debzero.hosts import network, probe
from debzero.hosts.channel import ChannelError, connect
from debzero.hosts.cluster import Cluster
from debzero.hosts.leader import Leader
from debzero.hosts.member import Member, Stopped, Table
from debzero.resolve.micro_batch import is_fixed, with_micro
from debzero.resolve.resolve import ResolvedJob
from debzero.run.folder import RunFolder
from debzero.run.records import ErrorNote, HostsRecord
from debzero.run.status import waiting_text

PAUSE = 2.0    # seconds between two hosts.json, unless a host comes or goes
SHOWN = 10     # differences
TELLING = 3.0  # seconds
DONE_PATIENCE = 30.0  # seconds for the other hosts of a job that has finished here
# What a rank says that has merely lost another one.
PARTNER = re.compile(r"closed by peer|Connection re(set|fused)|gloo/|NCCL|timed out waiting|the first host ")


class Part(NamedTuple):
    """How the ranks of one host ended: the exit code, and whether a signal killed one of them."""

    code: int
    killed: bool = False


class Hosts:
    """One per launcher, closed at its end."""

    def __init__(self, cluster: Cluster, folder: RunFolder, stopped: Callable[[], object]) -> None:
        """`stopped`: whether this host was asked to stop."""
        self.cluster, self.folder, self.stopped = cluster, folder, stopped
        self.interface = ""
        self.leader: Optional[Leader] = None
        self.member: Optional[Member] = None
        self._shown, self._written = "", 0.0

    @property
    def end(self) -> Optional[dict[str, Any]]:
        """Why the run ends on all hosts, once it does."""
        return self.member.end if self.member else None

    def meet(self, resolved: ResolvedJob, file: str, done: bool) -> bool:
        """Wait for all hosts. Raises an InputError where what they have differs, which all of them raise. `done`: the
        job has finished here; returns whether it has everywhere, as far as the others come to say so: they may have no
        reason to start again."""
        found = network.addresses(self.cluster)
        self.interface, key = network.interface(self.cluster, found), self.cluster.key()
        first = found[self.cluster.first]
        if self.cluster.leads:
            try:
                self.leader = Leader(self.cluster, key, first)
            except OSError as error:
                raise PassingError(f"{self.cluster.host} cannot listen at {first}, port {self.cluster.port}: "
                                   f"{error.strerror or error}",
                                   f"see who does: ss -ltnp 'sport = {self.cluster.port}'; or choose another port in "
                                   f"{self.cluster.file} on all hosts") from None
        self.folder.hosts_file.unlink(missing_ok=True)
        self.member = Member(self.cluster, key, first, self._state, self._show)
        own = {**_facts(resolved), "cluster": [list(self.cluster.hosts.items()), self.cluster.port], "done": done}
        until = time.monotonic() + DONE_PATIENCE
        try:
            facts = self.member.gather(own, lambda: self.stopped() or done and time.monotonic() > until)
        except Stopped:
            if self.stopped():
                raise
            return True
        found_here = {name: {**values, "done": None} for name, values in facts.items()}
        problems = [Problem(file, *difference) for difference in _differences(found_here)]
        if problems:
            raise InputError(problems[:SHOWN])
        return all(values["done"] for values in facts.values())

    def agree_start(self, resolved: ResolvedJob) -> ResolvedJob:
        """The job with the smallest micro-batch that any host has arrived at, and DeepSpeed's buffers for speed where
        all have room for them."""
        found = self._gather({"micro_batch": resolved.batch.micro, "favour": resolved.job.zero.favour}).values()
        micro = min(host["micro_batch"] for host in found)
        if any(host["favour"] == "memory" for host in found):
            resolved = resolved.favouring("memory")
        return resolved if is_fixed(resolved) or micro == resolved.batch.micro else with_micro(resolved, micro)

    def variables(self) -> dict[str, str]:
        """For the ranks."""
        return {NAMES["cluster_file"]: str(self.cluster.file), "GLOO_SOCKET_IFNAME": self.interface,
                "NCCL_SOCKET_IFNAME": self.interface}

    def watch(self) -> None:
        """From now on, kill this host's ranks when the run ends on another. They may wait for lost ones for ever."""
        assert self.member
        self.member.ended = self._kill
        if self.end:
            self._kill()

    def settle(self, part: Part) -> int:
        """Tell the others how this host's ranks ended; the exit code of the whole run, whose cause is noted."""
        assert self.member
        note = self.folder.error_note()
        error = note.error if note else None
        kind = ("finished" if not part.code else "stopped" if part.code in (130, 143) else "killed" if part.killed else
                "input" if part.code == 2 else "partner" if PARTNER.search(error or "") else "failed")
        end = self.member.report({
            "kind": kind, "code": part.code, "error": error, "rank": note.rank if note else 0,
            "memory": bool(note and note.memory), "passing": bool(note and note.passing)})
        if end["code"] == 1:
            text = described(end)
            self.folder.replace_error(ErrorNote(rank=end.get("rank") or 0, error=text, memory=bool(end.get("memory")),
                                                passing=bool(end.get("passing"))))
            with suppress(OSError):  # a rank may have written first that it lost another
                self.folder.update(state="failed", error=text)
            if end["host"] != self.cluster.host:
                print(f"debzero: {printable_lines(text)}", file=sys.stderr, flush=True)
        elif end["code"] == 2 and part.code != 2:
            print(printable(f"debzero: {described(end)}"), file=sys.stderr, flush=True)
        return int(end["code"])

    def refuse(self, error: InputError) -> None:
        """Tell the others, who would wait for this host, why it does not come."""
        if not self._begun():
            tell(self.cluster, error)

    def stop(self) -> int:
        """Take the others along where this host is asked to stop while they meet."""
        assert self.member
        self.member.report({"kind": "stopped", "code": 143})
        return 143

    def close(self) -> None:
        if self.member:
            self.member.close()
        if self.leader:
            self.leader.close()

    def _gather(self, value: Any) -> dict[str, Any]:
        assert self.member
        return self.member.gather(value, self.stopped)

    def _kill(self) -> None:
        for child in psutil.Process().children():
            with suppress(psutil.NoSuchProcess):
                child.kill()

    def _state(self) -> dict[str, Any]:
        status = self.folder.written_status()
        return {"state": status.state, "step": status.step} if status and self._begun() else {"state": "waiting"}

    def _begun(self) -> bool:
        """Whether what status.json says is of this start."""
        return bool(self.member and self.member.met)

    def _show(self, table: Table) -> None:
        """Write down where the hosts are, and say for whom this one waits."""
        waiting = waiting_text(table.missing)
        if waiting != self._shown and not self._begun():
            text = f"waiting for {waiting}" if waiting else "all hosts are here"
            print(printable(text), flush=True)
            systemd.notify(f"STATUS={text}")
        elif waiting == self._shown and time.monotonic() - self._written < PAUSE:
            return
        self._shown, self._written = waiting, time.monotonic()
        with suppress(OSError):
            write_json(self.folder.hosts_file, HostsRecord(host=self.cluster.host, hosts=table.hosts,
                                                           missing=table.missing).as_json())


def tell(cluster: Cluster, error: InputError) -> None:
    """Tell the hosts that wait already why this one will not come; where none does, nothing happens."""
    problem = error.problems[0]
    with suppress(ChannelError, InputError, PassingError):
        channel = connect(network.addresses(cluster)[cluster.first], cluster.port, cluster.key(), TELLING)
        channel.send({"join": cluster.host})
        channel.send({"ended": {"kind": "input", "code": 2, "error": f"{problem.key}: {problem.reason}"}})
        while channel.receive(TELLING):  # until the first host has told all, and ends
            pass
        channel.close()


def described(end: Mapping[str, Any]) -> str:
    """Why the run ended, with the host where it did."""
    if end.get("kind") == "stopped":
        return f"{end['host']} was asked to stop"
    if end.get("kind") == "lost":
        return f"{end['host']} {end['error']}"
    return f"{end['host']}: {end.get('error') or 'bad input, which it has named there'}"


def _facts(resolved: ResolvedJob) -> dict[str, Any]:
    """What must be the same on all hosts."""
    identity = resolved.identity
    settings = {**identity.weights, **identity.others, "ranks": resolved.local_ranks}
    for key in ("data.dataset", "model"):  # local files count by their contents, wherever they lie
        if os.path.isabs(str(settings.get(key, ""))):
            del settings[key]
    return {"versions": probe.versions(), "settings": settings,
            "contents": {f"{part}: {name}": digest[:16] for part, files in identity.contents.items()
                         for name, digest in files.items()}}


FIXES = {"versions": "install the same release on all hosts",
         "settings": "give all hosts the same job file; write down in it what depends on the GPUs, such as `ranks`",
         "contents": "copy the same files to all hosts",
         "cluster": "give all hosts the same `hosts` and `port`"}


def _differences(facts: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str, str]]:
    """Key, reason and fix for each thing that the hosts differ in."""
    for section, fix in FIXES.items():
        tables = {host: values[section] for host, values in facts.items()}
        if section == "cluster":
            tables = {host: {"the cluster file": table} for host, table in tables.items()}
        for key in dict.fromkeys(key for table in tables.values() for key in table):
            by_value: dict[str, list[str]] = {}
            for host, table in tables.items():
                by_value.setdefault(short(table[key]) if key in table else "nothing", []).append(host)
            if len({repr(table.get(key)) for table in tables.values()}) > 1:
                yield key, "differs between the hosts: " + ", ".join(
                    f"{value} on {' and '.join(hosts)}" for value, hosts in by_value.items()), fix
