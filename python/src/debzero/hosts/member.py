"""A launcher's way to those of the other hosts, through the first one: it waits there for all, exchanges what they must
agree on, and learns when the run ends on any of them.
"""
from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import Any, Callable, Optional

from debzero.hosts.channel import Channel, ChannelError, connect
from debzero.hosts.cluster import Cluster
from debzero.hosts.leader import BEAT, LOST, NOT_HEARD

AGAIN = 1.0   # seconds between two attempts to reach the first host
PATIENCE = LOST + 30.0  # for the decision how the run ends, once this host's part has ended


class Stopped(Exception):  # noqa: N818 - no error: somebody asked for it
    """This host, or another, was asked to stop while the hosts met."""


class Ended(Exception):  # noqa: N818
    """The run ends, on all hosts: `end` has `code`, `host`, `error`, `passing` and `memory`."""

    def __init__(self, end: dict[str, Any]) -> None:
        super().__init__(str(end.get("error")))
        self.end = end


class Table:
    """What is known of the hosts. `missing`: those that have not come, with what is known about why."""

    def __init__(self, cluster: Cluster) -> None:
        self.hosts: dict[str, Optional[dict[str, Any]]] = dict.fromkeys(cluster.hosts)
        self.missing: dict[str, str] = {}


class Member:
    """One per launcher. `state` gives what the other hosts shall see of this one; `show` is called with the Table
    whenever something in it has changed; `ended` once, from another thread, when the run ends on all hosts."""

    def __init__(self, cluster: Cluster, key: bytes, address: str, state: Callable[[], dict[str, Any]],
                 show: Callable[[Table], None]) -> None:
        self.cluster, self.key, self.address = cluster, key, address
        self._state, self._show, self.table = state, show, Table(cluster)
        self.ended: Callable[[], object] = lambda: None
        self.end: Optional[dict[str, Any]] = None
        self.met = False  # all hosts are here
        self._round, self._mine = 0, dict[int, Any]()
        self._values: dict[int, dict[str, Any]] = {}
        self._changed = threading.Condition()
        self._channel: Optional[Channel] = None
        self._closing = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def gather(self, value: Any, stopped: Callable[[], object]) -> dict[str, Any]:
        """What every host has handed in, by its name. The first time this waits for all hosts, as long as it takes.
        Raises Stopped once `stopped` says so, and Ended where the run ends on another host."""
        with self._changed:
            number, self._round = self._round, self._round + 1
            self._mine[number] = value
            self._send({"round": number, "value": value})
            while number not in self._values:
                if self.end:
                    raise Ended(self.end)
                if stopped():
                    raise Stopped
                self._changed.wait(0.2)
            return self._values.pop(number)

    def report(self, report: dict[str, Any]) -> dict[str, Any]:
        """Say how this host's part of the run ended; returns how the whole run did."""
        with self._changed:
            if not self.met and self._channel is None:
                return {**report, "host": self.cluster.host}
            self._send({"ended": report})
            until = time.monotonic() + PATIENCE
            # A part that is done waits for the others, whose loss would be noticed.
            while not self.end and (time.monotonic() < until or not report["code"]):
                self._changed.wait(0.2)
            return self.end or {**report, "host": self.cluster.host}

    def close(self) -> None:
        self._closing.set()
        if self._channel:
            self._channel.close()

    def _run(self) -> None:
        while not self._closing.is_set() and not self.end:
            try:
                self._follow(connect(self.address, self.cluster.port, self.key))
            except ChannelError as error:
                with self._changed:
                    self._channel = None
                    if self._closing.is_set():
                        return
                    if self.met:
                        self._over({"kind": "lost", "code": 1, "host": self.cluster.first, "error": str(error),
                                    "passing": True})
                        return
                    self.table.hosts = {name: self._state() if name == self.cluster.host else None
                                        for name in self.cluster.hosts}
                    self.table.missing = {self.cluster.first: str(error)}
                    self._show(self.table)
            time.sleep(AGAIN)

    def _follow(self, channel: Channel) -> None:
        """Receive until the run ends. Raises a ChannelError where the first host is lost."""
        channel.send({"join": self.cluster.host})
        with self._changed:
            self._channel = channel
            for number, value in self._mine.items():
                channel.send({"round": number, "value": value})
        began = heard = time.monotonic()
        said = 0.0
        while not self._closing.is_set() and not self.end:
            try:  # a first host that refuses this one has closed the connection before or after the first beat
                if time.monotonic() - said > BEAT:
                    channel.send({"beat": self._state()})
                    said = time.monotonic()
                message = channel.receive(BEAT / 2)
            except ChannelError as error:
                raise ChannelError(f"{error} (has it the same key, and {self.cluster.host} among its hosts?)"
                                   if heard == began else str(error)) from None
            if message is not None:
                heard = time.monotonic()
                with self._changed:
                    self._heard(message)
            elif time.monotonic() - heard > LOST:
                raise ChannelError(NOT_HEARD)

    def _heard(self, message: dict[str, Any]) -> None:
        if isinstance(message.get("hosts"), dict):
            self.table.hosts = {name: message["hosts"].get(name) for name in self.cluster.hosts}
            self.table.missing = {name: "" for name, state in self.table.hosts.items() if state is None}
            self._show(self.table)
        elif type(message.get("round")) is int and isinstance(message.get("values"), dict):
            self.met = True
            self._values[message["round"]] = message["values"]
            self._changed.notify_all()
        elif isinstance(message.get("end"), dict):
            self._over(message["end"])

    def _over(self, end: dict[str, Any]) -> None:
        self.end = end
        self._changed.notify_all()
        threading.Thread(target=self.ended, daemon=True).start()

    def _send(self, message: dict[str, Any]) -> None:
        if self._channel:
            with suppress(ChannelError):  # the thread that receives learns of it
                self._channel.send(message)
