"""Who is at the other end of this rank's connections on the loopback.

Neither gloo nor the NCCL of the pinned torch asks who connects: the first to reach a port that waits for a rank is
taken for it. The kernel knows whose each end of a local connection is. So whenever ranks have connected, and before
they send each other anything, all that is not this user's own ends the run.
"""
from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, Optional

from debzero.base.errors import PassingError

TABLES = ("/proc/self/net/tcp", "/proc/self/net/tcp6")
ESTABLISHED, LISTENING = "01", "0A"  # of the kernel's include/net/tcp_states.h
MAPPED = "0000000000000000FFFF0000"  # an IPv4 address in an IPv6 socket, as the tables write it
NOBODYS = "0"  # the inode of a socket that no process holds
LOOKS, PAUSE = 5, 0.05  # a table is not read at one moment: a socket that is missing is looked for again; seconds


class Socket(NamedTuple):
    """A row of the kernel's tables. Addresses are `ADDRESS:PORT` in hexadecimal."""

    local: str
    remote: str
    state: str
    user: int
    inode: str


def sockets() -> list[Socket]:
    """Every TCP socket of this network namespace."""
    rows = []
    for table in TABLES:
        with suppress(FileNotFoundError):  # a kernel without IPv6
            for line in Path(table).read_text().splitlines()[1:]:
                words = line.split()
                local, remote = (word[len(MAPPED):] if word.startswith(MAPPED) else word for word in words[1:3])
                rows.append(Socket(local, remote, words[3], int(words[7]), words[9]))
    return rows


def own(process: object = "self") -> set[str]:
    """The inodes of a process's sockets."""
    inodes = set()
    for handle in os.listdir(f"/proc/{process}/fd"):
        with suppress(OSError):  # closed meanwhile
            kind, _, inode = os.readlink(f"/proc/{process}/fd/{handle}").rstrip("]").partition(":[")
            if kind == "socket":
                inodes.add(inode)
    return inodes


def is_loopback(address: str) -> bool:
    """Whether a socket's address can be reached from this host alone."""
    host = address.split(":")[0]
    return host.endswith("7F") if len(host) == 8 else host == "00000000000000000000000001000000"


def strangers(before: set[str]) -> Optional[str]:
    """Who is at the other end of a connection of this process's that is newer than the sockets `before`, or that came
    in at a port where it listens; None where that is this user alone."""
    mine, table = own(), sockets()
    listeners = {_port(row.local): row for row in table if row.state == LISTENING}
    ends = {(row.local, row.remote): row for row in table}
    for row in table:
        if row.inode not in mine or row.state != ESTABLISHED or not is_loopback(row.local):
            continue
        listener = listeners.get(_port(row.local))
        if row.inode in before and not (listener and listener.inode in mine):
            continue
        other = ends.get((row.remote, row.local))
        if other and other.inode == NOBODYS:  # closed, or not accepted yet by the process that listens there
            other = listeners.get(_port(other.local))
        if other is None:
            return "a process that has gone"
        if other.user != os.geteuid():
            return f"the user with the ID {other.user}"
    return None


def _port(address: str) -> str:
    return address.split(":")[1]


@contextmanager
def checked() -> Iterator[None]:
    """Raises a PassingError if, after the block, a stranger is connected to this rank."""
    before = own()
    yield
    for _ in range(LOOKS):
        stranger = strangers(before)
        if stranger is None:
            return
        time.sleep(PAUSE)
    raise PassingError(f"{stranger} is connected to a rank of this run",
                       "see who runs programs on this host; if it was a chance, the next start resumes from the newest "
                       "checkpoint")
