"""Root's terminal, which a process that becomes another user has to leave first.

Whoever has a terminal reads what is typed there and, before Linux 6.2, types into it himself (TIOCSTI): commands for
root's shell. So the command continues in a child with a session of its own and without a terminal for its input. What
it prints passes through a pseudo-terminal and a filter; the process that was there waits, stays root's, and passes the
terminal's signals on.
"""
from __future__ import annotations

import codecs
import ctypes
import errno
import fcntl
import os
import re
import signal
import sys
import termios
import threading
import time
import tty
from contextlib import suppress
from typing import NoReturn, Optional

from debzero.base.text import printable

PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15  # of prctl(2)
# What a terminal or its user sends to the whole command; SIGTERM is for its first process alone.
PASSED = {signal.SIGINT, signal.SIGQUIT, signal.SIGHUP}
AWAITED = {*PASSED, signal.SIGTERM, signal.SIGTSTP, signal.SIGWINCH, signal.SIGCHLD}
# What may move a terminal's cursor: all that a line of progress needs.
MOVES = re.compile(r"(\x1b\[K|[\n\r\t])")
UNFINISHED = re.compile(r"\x1b\[?\Z")
SECONDS_LEFT = 1  # for the last lines, where something that is left over still holds the pseudo-terminal


def leave() -> Optional[int]:
    """Where this process has a terminal, return in a child that has none, with the process that it ends with (see
    end_with); the caller's own process does not return, and exits as the child does. None where there is no terminal.
    To be called before there are threads."""
    terminals = [number for number in map(int, os.listdir("/proc/self/fd")) if os.isatty(number)]
    if not terminals and not _has_one():
        return None
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    shown = next((number for number in (1, 2) if number in terminals), None)
    ours, theirs = (None, None) if shown is None else os.openpty()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, AWAITED)
    parent, child = os.getpid(), os.fork()
    if child:
        _accompany(child, shown, ours, theirs)
    os.setsid()
    if theirs is not None:
        tty.setraw(theirs)
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in terminals:
        if number > 2:
            os.close(number)
        else:
            os.dup2(theirs if number and theirs is not None else nothing, number)
    for spare in (nothing, ours, theirs):
        if spare is not None:
            os.close(spare)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return parent


def end_with(parent: int) -> None:
    """Let this process be killed when its parent ends. To be called after a change of user, which forgets it."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before that
        os._exit(1)


def take_name(name: str) -> None:
    """Let `ps -C` and `pgrep` show this process by `name`, of which the kernel keeps 15 bytes."""
    ctypes.CDLL(None).prctl(PR_SET_NAME, name.encode())


def harmless(text: str) -> str:
    """`text` for a terminal: what would do more than move within a line, or to the next, is shown instead."""
    return "".join(part if number % 2 else printable(part) for number, part in enumerate(MOVES.split(text)))


def _has_one() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError as error:
        return error.errno != errno.ENXIO  # without /dev nobody knows
    return True


def _accompany(child: int, shown: Optional[int], ours: Optional[int], theirs: Optional[int]) -> NoReturn:
    """Be at the terminal what the child was, until it ends. `shown`: the terminal; `ours`, `theirs`: the ends of the
    pseudo-terminal; None where the child prints nothing to a terminal."""
    try:
        copier = threading.Thread(target=lambda: None)
        if shown is not None and ours is not None and theirs is not None:
            _resize(shown, ours)
            os.close(theirs)
            copier = threading.Thread(target=_copy, args=(ours, shown), daemon=True)
        copier.start()
        while True:
            number = signal.sigwait(AWAITED)
            if number == signal.SIGCHLD:
                ended, status = os.waitpid(child, os.WNOHANG)
                if ended:
                    break
            elif number == signal.SIGWINCH:
                if shown is not None and ours is not None:
                    _resize(shown, ours)
            elif number == signal.SIGTSTP:
                _pause(child)
            else:
                _send(child, number)
        copier.join(SECONDS_LEFT)
        code = os.waitstatus_to_exitcode(status)
        os._exit(code if code >= 0 else 128 - code)
    finally:  # never back into the command, as root
        os._exit(1)


def _send(child: int, number: int) -> None:
    """Its process group is its own: a number that it has as long as nobody has waited for it."""
    with suppress(OSError):
        if number in (signal.SIGTERM, signal.SIGKILL):
            os.kill(child, number)
            return
        try:
            os.killpg(child, number)
        except ProcessLookupError:  # it has no group yet
            os.kill(child, number)


def _pause(child: int) -> None:
    """Ctrl-Z: the kernel stops no group that has no shell to wake it, and so not the child's either."""
    _send(child, signal.SIGSTOP)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTSTP})
    os.kill(os.getpid(), signal.SIGTSTP)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTSTP})
    _send(child, signal.SIGCONT)


def _resize(shown: int, ours: int) -> None:
    with suppress(OSError):
        fcntl.ioctl(ours, termios.TIOCSWINSZ, fcntl.ioctl(shown, termios.TIOCGWINSZ, bytes(8)))


def _copy(ours: int, shown: int) -> None:
    """Until nobody has the other end any more. Where the terminal is gone, what is printed is lost, and nobody waits
    for it."""
    encoding = sys.stdout.encoding or "utf-8"
    decoder = codecs.getincrementaldecoder(encoding)("backslashreplace")
    held, chunk = "", b" "
    while chunk:
        try:
            chunk = os.read(ours, 2**14)
        except OSError:
            chunk = b""
        text = held + decoder.decode(chunk, final=not chunk)
        cut = UNFINISHED.search(text) if chunk else None
        text, held = (text[:cut.start()], cut[0]) if cut else (text, "")
        with suppress(OSError):
            _write(shown, harmless(text).encode(encoding, "backslashreplace"))


def _write(shown: int, content: bytes) -> None:
    while content:
        try:
            content = content[os.write(shown, content):]
        except BlockingIOError:  # another program has made it so
            time.sleep(0.05)
