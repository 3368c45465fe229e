"""What `debzero doctor --job` tries between two hosts: the caller's side, and that of the first host, which answers."""
from __future__ import annotations

import importlib.metadata
import os
import socket
import sys
import time
from contextlib import suppress
from typing import Any, NamedTuple, Optional

import psutil

from debzero import __version__
from debzero.hosts import network
from debzero.hosts.channel import Channel, ChannelError, listen

LIBRARIES = ("torch", "deepspeed", "transformers")
PATIENCE = 5.0      # seconds for one connection
MOST = 2**27        # bytes that are sent to measure a link
SECONDS = 2.0       # or as much as goes in that time
BLOCK = 2**18
TOKEN = 16          # bytes, so that no stranger is measured
ROUNDS = 20         # round trips


class Speed(NamedTuple):
    """What came through one connection: bytes, and seconds."""

    size: int
    seconds: float

    @property
    def gigabits(self) -> float:
        """Gbit/s"""
        return self.size * 8 / 1e9 / max(self.seconds, 1e-9)


def versions() -> dict[str, str]:
    """What must be the same on all hosts of a job."""
    found = {"debzero": __version__, "python": ".".join(map(str, sys.version_info[:2]))}
    for name in LIBRARIES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def mtu(address: str) -> Optional[int]:
    """Of the interface that has this address of this host."""
    statistics = psutil.net_if_stats().get(network.interface_of(address) or "")
    return statistics.mtu if statistics else None


# The side that answers

def serve(channel: Channel, address: str) -> None:
    """Answer a caller's hello, and do what else he asks for, until he goes. `address`: this host's. Raises a
    ChannelError then."""
    facts = {"peer": channel.peer, "versions": versions(), "mtu": mtu(address)}
    channel.send({**facts, "time": time.time()})
    while (message := channel.receive(30)) is not None:
        asked = message.get("probe")
        if asked == "send":
            _send(channel, address)
        elif asked == "call" and type(message.get("port")) is int:
            why = ""
            try:
                socket.create_connection((channel.peer, message["port"]), PATIENCE).close()
            except OSError as error:
                why = str(error.strerror or error)
            channel.send({"why": why})
        else:
            channel.send({**facts, "time": time.time()})


def _send(channel: Channel, address: str) -> None:
    """Listen at a port of the kernel's choice, and send to who comes with the token."""
    token, zeros = os.urandom(TOKEN), bytes(BLOCK)
    with listen(address, 0) as server:
        server.settimeout(PATIENCE)
        channel.send({"port": server.getsockname()[1], "token": token.hex()})
        with suppress(OSError):
            connection, _ = server.accept()
            with connection:
                connection.settimeout(PATIENCE)
                if connection.recv(TOKEN, socket.MSG_WAITALL) != token:
                    return
                until, sent = time.monotonic() + SECONDS, 0
                while time.monotonic() < until and sent < MOST:
                    connection.sendall(zeros)
                    sent += BLOCK


# The caller's

def hello(channel: Channel, host: str) -> dict[str, Any]:
    """Who the other side is: its versions, its clock (`skew`: seconds that it is ahead of this one's), the address that
    it sees of this one, its MTU; and `latency`, the shortest round trip in seconds."""
    best, answer = float("inf"), dict[str, Any]()
    for _ in range(ROUNDS):
        began, clock = time.monotonic(), time.time()
        channel.send({"probe": "hello", "host": host})
        received = channel.receive(PATIENCE)
        if received is None:
            raise ChannelError("does not answer")
        if time.monotonic() - began < best:
            best = time.monotonic() - began
            answer = {**received, "skew": float(received["time"]) - clock - best / 2, "latency": best}
    return answer


def receive(channel: Channel, address: str) -> Speed:
    """What comes from the first host, at `address`, through a port of its choice. Raises an OSError where that is not
    reached, or where nothing comes."""
    channel.send({"probe": "send"})
    answer = channel.receive(PATIENCE)
    if answer is None:
        raise ChannelError("does not answer")
    with socket.create_connection((address, int(answer["port"])), PATIENCE) as connection:
        connection.settimeout(PATIENCE)
        connection.sendall(bytes.fromhex(str(answer["token"])))
        began, size = time.monotonic(), 0
        while more := connection.recv(BLOCK):
            size += len(more)
        return Speed(size, time.monotonic() - began)


def is_reached(channel: Channel, address: str) -> str:
    """Why the first host does not reach a port of this one's; empty where it does. `address`: this host's."""
    with listen(address, 0) as server:
        channel.send({"probe": "call", "port": server.getsockname()[1]})
        answer = channel.receive(2 * PATIENCE)
    if answer is None:
        raise ChannelError("does not answer")
    return str(answer.get("why") or "")
