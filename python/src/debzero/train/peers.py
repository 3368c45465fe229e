"""Who is at the other end of this rank's connections: on the loopback, and between the hosts of one job.

Neither gloo nor the NCCL of the pinned torch asks who connects: the first to reach a port that waits for a rank is
taken for it. The kernel knows whose each end of a local connection is. So whenever ranks have connected, and before
they send each other anything, another user's end of a connection ends the run. Where the kernel's tables cannot be read
here, nothing does.
"""
from __future__ import annotations

import os
import socket
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, Optional

from debzero.base.errors import PassingError

TABLES = ("/proc/self/net/tcp", "/proc/self/net/tcp6")
ESTABLISHED, CLOSE_WAIT, LISTENING = "01", "08", "0A"  # of the kernel's include/net/tcp_states.h
MAPPED = "0000000000000000FFFF0000"  # an IPv4 address in an IPv6 socket, as the tables write it
ANY = ("0" * 8, "0" * 32)  # the addresses of a socket that listens on all
NOBODYS = "0"  # the inode of a socket that no process holds
ROOT = 0
LOOKS, PAUSE = 5, 0.05  # a table is not read at one moment: a socket that is missing is looked for again; seconds


class Socket(NamedTuple):
    """A row of the kernel's tables. Addresses are `ADDRESS:PORT` in hexadecimal."""

    local: str
    remote: str
    state: str
    user: int
    inode: str


def sockets() -> list[Socket]:
    """Every TCP socket of this network namespace, as far as the kernel shows them here."""
    rows = []
    for table in TABLES:
        with suppress(OSError):  # a kernel without IPv6, or a container that hides it
            for line in Path(table).read_text().splitlines()[1:]:
                with suppress(ValueError, IndexError):
                    words = line.split()
                    local, remote = (word[len(MAPPED):] if word.startswith(MAPPED) else word for word in words[1:3])
                    rows.append(Socket(local, remote, words[3], int(words[7]), words[9]))
    return rows


def own(process: object = "self") -> set[str]:
    """The inodes of a process's sockets; none where they cannot be seen."""
    inodes = set()
    with suppress(OSError):
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


def plain(address: str) -> str:
    """A socket's IP address as people write it. The kernel writes it in words of its own byte order."""
    digits = bytes.fromhex(address.split(":")[0])
    words = b"".join(digits[start:start + 4][::-1] for start in range(0, len(digits), 4))
    return socket.inet_ntop(socket.AF_INET if len(words) == 4 else socket.AF_INET6, words)


def strangers(before: set[str], proven: bool = False, hosts: Collection[str] = ()) -> Optional[str]:
    """Who is at the other end of a connection of this process's that is newer than the sockets `before`, or that came
    in at a port where it listens; None where that is this user alone, or root at a port of its own.

    `hosts`: the addresses of all hosts of the job, where there are several. What comes in from elsewhere is a
    stranger's; who it is on another host, the kernel of this one does not know.

    `proven`: only a living process of another user, not root's, counts. NCCL opens and closes connections while it is
    looked at, so that one without a visible other end means nothing.
    """
    mine, table = own(), sockets()
    listeners = {row.local: row for row in table if row.state == LISTENING}
    ends = {(row.local, row.remote): row for row in table}
    for row in table:
        if row.inode not in mine or row.state not in (ESTABLISHED, CLOSE_WAIT):
            continue
        if not is_loopback(row.local) and not hosts:
            continue  # all ranks are here: it is no connection between them
        listener = _listener(row.local, listeners)
        came_in = bool(listener and listener.inode in mine)
        if row.inode in before and not came_in:
            continue
        other = ends.get((row.remote, row.local))
        if not is_loopback(row.local) and other is None:
            if came_in and plain(row.remote) not in hosts:
                return f"a process at {plain(row.remote)}"
            continue
        if other is None or other.inode == NOBODYS:
            if proven or row.state == CLOSE_WAIT:
                continue  # closed, or about to be
            # Closed, or not accepted yet by the process that listens there.
            other = _listener(row.remote, listeners) if other else None
            if other is None:
                return "a process that has gone"
        if other.user != os.geteuid() and not (other.user == ROOT and (proven or not came_in)):
            return f"the user with the ID {other.user}"
    return None


def _listener(address: str, listeners: dict[str, Socket]) -> Optional[Socket]:
    """The socket that takes connections to `address`; `listeners`: those that listen, by their addresses."""
    port = address.split(":")[1]
    return next(filter(None, map(listeners.get, (address, *(f"{host}:{port}" for host in ANY)))), None)


@contextmanager
def checked(proven: bool = False, hosts: Collection[str] = ()) -> Iterator[None]:
    """Raises a PassingError if, after the block, a stranger is connected to this rank; the rest as for strangers."""
    before = own()
    yield
    for _ in range(LOOKS):
        stranger = strangers(before, proven, hosts)
        if stranger is None:
            return
        time.sleep(PAUSE)
    raise PassingError(f"{stranger} is connected to a rank of this run",
                       "see who runs programs on this host; if it was a chance, the next start resumes from the newest "
                       "checkpoint")
