"""What listens on the first host: the launchers of all hosts meet here, and torch's ranks find each other.

It compares nothing and knows nothing of a job. It hands every host what all have handed in, watches that each is heard
of, and says to all that it ends, and why: then every launcher kills its ranks.
"""
from __future__ import annotations

import base64
import socket
import sys
import threading
import time
from contextlib import suppress
from typing import Any, Optional

from debzero.base.text import printable
from debzero.hosts import probe
from debzero.hosts.channel import HANDSHAKE, Channel, ChannelError, KeyMismatchError, listen
from debzero.hosts.cluster import Cluster

BEAT = 2.0      # seconds between two signs of life
LOST = 15.0     # without one a host counts as lost
NOT_HEARD = f"has not been heard of for {LOST:g} seconds (powered off, frozen, or the link is down)"
GRACE = 3.0     # after the first report that ranks have failed, for the report of the cause
STOPPING = 10.0  # the same after a stop: the others may still be writing
STRANGERS = 64  # connections that have not yet proven anything, at most; also addresses whose refusal is said
PAUSE = 0.1     # seconds before the next connection is taken, where one could not be
# Which report is the cause, where several hosts have one: the others merely lost their partner.
KINDS = ("lost", "killed", "stopped", "input", "failed", "partner")


class Host:
    """A launcher's connection."""

    def __init__(self, channel: Channel) -> None:
        self.channel, self.heard = channel, time.monotonic()
        self.state: dict[str, Any] = {}
        self.report: Optional[dict[str, Any]] = None  # how its ranks ended


class Leader:
    """Serves until it is closed. Raises an OSError where the port is taken."""

    def __init__(self, cluster: Cluster, key: bytes, address: str) -> None:
        self.cluster, self.key, self.address = cluster, key, address
        self.probed, self.probing = set[str](), 0  # the hosts whose doctor has come, and how many are here now
        self.hosts: dict[str, Host] = {}
        self.met = False                          # all have begun: losing one now ends the run
        self.end: Optional[dict[str, Any]] = None
        self._reports: list[tuple[int, float, dict[str, Any]]] = []
        self._rounds: dict[int, dict[str, Any]] = {}
        self._store: dict[str, bytes] = {}
        self._lock, self._strangers = threading.RLock(), list[socket.socket]()  # the oldest first
        self._refused = set[str]()                # addresses
        self._closed = False
        self._server = listen(address, cluster.port)
        for work in (self._accept, self._watch):
            threading.Thread(target=work, daemon=True).start()

    def close(self) -> None:
        """Let the launchers go first: what was sent to one that has not read it yet would be lost."""
        until = time.monotonic() + GRACE
        while time.monotonic() < until and self.hosts:
            time.sleep(0.05)
        self._closed = True
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        with self._lock:
            for host in self.hosts.values():
                host.channel.close()

    def _accept(self) -> None:
        while not self._closed:
            try:
                connection, _ = self._server.accept()
            except (OSError, RuntimeError):  # one that was broken off, or for a moment too many files are open
                time.sleep(PAUSE)
                continue
            with self._lock:
                self._strangers.append(connection)
                # Who has the key proves it at once: whoever waits longest is the least likely to have it.
                if len(self._strangers) > STRANGERS:
                    with suppress(OSError):
                        self._strangers.pop(0).shutdown(socket.SHUT_RDWR)  # its thread closes it
            try:
                threading.Thread(target=self._greet, args=[connection], daemon=True).start()
            except RuntimeError:  # too many threads
                self._is_known(connection)
                connection.close()

    def _is_known(self, connection: socket.socket) -> None:
        with self._lock, suppress(ValueError):  # it has been shut down to make room
            self._strangers.remove(connection)

    def _refuse(self, address: str) -> None:
        """Say once where another key comes from: its owner tries again every second."""
        if address not in self._refused and len(self._refused) < STRANGERS:
            self._refused.add(address)
            print(printable(f"debzero: a connection from {address} was refused: it has another key"), file=sys.stderr,
                  flush=True)

    def _greet(self, connection: socket.socket) -> None:
        """Find out who has connected, and serve him."""
        channel = None
        try:
            try:
                channel = Channel(connection, self.key, listens=True)
                first = channel.receive(HANDSHAKE)
            except KeyMismatchError:
                self._refuse(channel.peer if channel else "unknown")
                return
            finally:
                self._is_known(connection)
            if first is None or self._closed:
                return
            if first.get("join") in self.cluster.hosts:
                self._serve_host(str(first["join"]), channel)
            elif "store" in first:
                self._serve_rank(channel)
            elif first.get("probe") == "hello":
                self._serve_probe(channel, str(first.get("host")))
        except ChannelError:
            pass
        finally:
            if channel:
                channel.close()

    # The launchers

    def _serve_host(self, name: str, channel: Channel) -> None:
        host = Host(channel)
        with self._lock:
            before = self.hosts.get(name)
            if before and self.met and not before.report:
                self._lost(name, "was started again")
            if self.end and self.met:
                return  # it comes for the next run
            self.hosts[name] = host
            if before:
                before.channel.close()
            if self.end:  # while this one was on its way
                with suppress(ChannelError):
                    channel.send({"end": self.end})
        why = ""
        try:
            self._beat(host)
            while True:
                message = channel.receive(LOST)
                if message is None:
                    why = NOT_HEARD
                    return
                host.heard = time.monotonic()
                with self._lock:
                    self._heard(name, host, message)
        except ChannelError as error:
            why = str(error)
        finally:
            with self._lock:
                if self.hosts.get(name) is host:
                    del self.hosts[name]
                    if self.met and not host.report and not self.end:
                        self._lost(name, why)

    def _heard(self, name: str, host: Host, message: dict[str, Any]) -> None:
        if isinstance(message.get("beat"), dict):
            host.state = message["beat"]
        elif type(message.get("round")) is int:
            handed = self._rounds.setdefault(message["round"], {})
            handed[name] = message.get("value")
            if not self.end and set(handed) == set(self.cluster.hosts) == set(self.hosts):
                self.met = True
                self._tell({"round": message["round"], "values": {host: handed[host] for host in self.cluster.hosts}})
        elif isinstance(message.get("ended"), dict):
            host.report = message["ended"]
            kind = host.report.get("kind")
            self._cause({**host.report, "host": name}, KINDS.index(kind) if kind in KINDS else len(KINDS))

    def _lost(self, name: str, why: str) -> None:
        self._cause({"kind": "lost", "code": 1, "error": why, "passing": True, "host": name}, 0)

    def _cause(self, report: dict[str, Any], rank: int) -> None:
        self._reports.append((rank, time.monotonic(), report))
        self._decide()

    def _decide(self) -> None:
        """End the run once it is known why."""
        if self.end or not self._reports:
            return
        bad = [one for one in self._reports if one[2].get("code")]
        complete = len({report["host"] for _, _, report in self._reports}) == len(self.cluster.hosts)
        if bad:
            rank, _, report = min(bad, key=lambda one: one[:2])
            wait = STOPPING if KINDS[rank:rank + 1] == ("stopped",) else GRACE
            if complete or rank == 0 or not self.met or time.monotonic() - min(at for _, at, _ in bad) > wait:
                self.end = report
        elif complete:
            self.end = {"kind": "finished", "code": 0, "host": self.cluster.first}
        if self.end:
            self._tell({"end": self.end})

    def _tell(self, message: dict[str, Any]) -> None:
        for host in list(self.hosts.values()):
            with suppress(ChannelError):
                host.channel.send(message)

    def _beat(self, host: Host) -> None:
        table = {name: self.hosts[name].state if name in self.hosts else None for name in self.cluster.hosts}
        with suppress(ChannelError):
            host.channel.send({"hosts": table})

    def _watch(self) -> None:
        while not self._closed:
            time.sleep(BEAT / 2)
            with self._lock:
                hosts = list(self.hosts.values())
                self._decide()
            for host in hosts:
                self._beat(host)

    # The ranks' store, as torch.distributed.Store has it

    def _serve_rank(self, channel: Channel) -> None:
        while not self._closed:
            message = channel.receive(LOST)
            if message is not None:
                with self._lock:
                    answer = self._asked(message)
                channel.send(answer)

    def _asked(self, message: dict[str, Any]) -> dict[str, Any]:
        does, key = message.get("do"), str(message.get("key"))
        value = base64.b64decode(str(message.get("value") or ""))
        if does == "set":
            self._store[key] = value
        elif does == "add":
            self._store[key] = str(int(self._store.get(key, b"0")) + int(message["by"])).encode()
        elif does == "compare":
            expected = base64.b64decode(str(message["expected"]))
            if self._store.get(key, b"") == expected:
                self._store[key] = value
            return _value(self._store.get(key, expected))
        elif does == "check":
            return {"there": all(name in self._store for name in message["keys"])}
        elif does == "delete":
            return {"there": self._store.pop(key, None) is not None}
        elif does == "count":
            return {"count": len(self._store)}
        return _value(self._store.get(key))

    def _serve_probe(self, channel: Channel, name: str) -> None:
        """Of `debzero doctor`."""
        with self._lock:
            self.probed.add(name)
            self.probing += 1
        try:
            probe.serve(channel, self.address)
        finally:
            with self._lock:
                self.probing -= 1


def _value(value: Optional[bytes]) -> dict[str, Any]:
    return {"value": None if value is None else base64.b64encode(value).decode()}

