"""Watches the ranks where systemd does not: listens in its place to what they tell its watchdog."""
from __future__ import annotations

import os
import secrets
import socket
import struct
import threading
import time
from collections import Counter
from contextlib import suppress

import psutil

from debzero.base.environment import environment
from debzero.base.stack import stack

MOST_PAUSE = 5.0  # seconds between two looks at the ranks
CREDENTIALS = struct.Struct("3i")  # struct ucred of unix(7): pid, uid, gid


class Watch:
    """While its block runs, kills this process's children when a rank has been stopped (by SIGSTOP) for too long, or
    when training has begun and makes no progress for as long; `reason` then says why.

    Preparation has no steps, and takes as long as it takes. Time during which this process itself does not run counts
    for nothing: Ctrl-Z stops it together with its ranks, and a host may be suspended.
    """

    def __init__(self) -> None:
        chosen = environment().watchdog_seconds
        self.limit: float = stack().watchdog_seconds if chosen is None else chosen
        self.reason = ""
        self.stopped: set[int] = set()  # processes that were stopped too long
        self.active = bool(self.limit) and "NOTIFY_SOCKET" not in os.environ
        self._over = threading.Event()

    def __enter__(self) -> Watch:
        if self.active:
            name = f"debzero-{os.getpid()}-{secrets.token_hex(8)}"
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            self._socket.bind("\0" + name)
            os.environ["NOTIFY_SOCKET"] = "@" + name
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.active:
            self._over.set()
            del os.environ["NOTIFY_SOCKET"]
            self._thread.join()
            self._socket.close()

    def _watch(self) -> None:
        pause = min(MOST_PAUSE, self.limit / 20)
        training, silent, before = False, 0.0, time.monotonic()
        stopped: Counter[int] = Counter()  # milliseconds, by process
        while not self._over.is_set():
            lines = self._heard(pause)
            now = time.monotonic()
            passed, before = min(now - before, 2 * pause), now
            training = training or "READY=1" in lines
            silent = 0.0 if {"READY=1", "WATCHDOG=1"} & lines or not training else silent + passed
            still = [child.pid for child in self._children() if _is_stopped(child)]
            stopped = Counter({pid: stopped[pid] + round(1000 * passed) for pid in still})
            self.stopped = {pid for pid, milliseconds in stopped.items() if milliseconds > 1000 * self.limit}
            if silent > self.limit or self.stopped:
                self._kill(set(still))
                return

    def _heard(self, seconds: float) -> set[str]:
        """The lines that arrive within so many seconds, from this user's processes."""
        lines: set[str] = set()
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not self._over.is_set():
            self._socket.settimeout(min(left, 0.2))
            with suppress(OSError):
                text, extras, _, _ = self._socket.recvmsg(2**14, socket.CMSG_SPACE(CREDENTIALS.size))
                users = [CREDENTIALS.unpack(data)[1] for _, kind, data in extras if kind == socket.SCM_CREDENTIALS]
                if users == [os.geteuid()]:
                    lines.update(text.decode(errors="replace").splitlines())
        return lines

    def _children(self) -> list[psutil.Process]:
        return list(psutil.Process().children())

    def _kill(self, stopped: set[int]) -> None:
        self.stopped |= stopped
        self.reason = (f"was stopped, by SIGSTOP or a debugger, for {self.limit:g} seconds" if self.stopped else
                       f"and the others made no progress for {self.limit:g} seconds: one of them hangs. If a step "
                       "really takes longer, set DEBZERO_WATCHDOG to more seconds")
        for child in self._children():
            with suppress(psutil.NoSuchProcess):
                child.kill()


def _is_stopped(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(process.status() == psutil.STATUS_STOPPED)
    return False
