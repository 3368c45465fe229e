"""The lock of an output folder: a file that only its owner may open, so that nobody else can hold it or block it.

Who holds it is asked of the kernel. The file's text would be whatever the last one to write there wanted.
"""
from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
from contextlib import suppress
from pathlib import Path
from typing import Optional

SAFELY = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # neither a link nor a FIFO without a reader


def open_own(path: Path) -> int:
    """A descriptor of the lock file, made if it is missing. Raises an OSError where `path` is something else: a link,
    another user's file, or one with a second name, which may be anybody's."""
    foreign = OSError(errno.EPERM, f"{path} is no lock that this user made", str(path))
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | SAFELY, 0o600)
    except OSError:
        if os.path.lexists(path):
            raise foreign from None
        raise
    state = os.fstat(handle)
    if not stat.S_ISREG(state.st_mode) or state.st_uid != os.geteuid() or state.st_nlink != 1:
        os.close(handle)
        raise foreign
    os.fchmod(handle, 0o600)  # older releases let everybody read it, and so hold it
    return handle


def is_held(path: Path) -> bool:
    """Whether a living process holds the lock, or may hold it: this user may not look."""
    try:
        handle = os.open(path, os.O_RDONLY | SAFELY)
    except PermissionError:
        return True
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False


def holder(path: Path) -> Optional[int]:
    """The process that holds the lock, if it is the file's owner's; None where there is none or the kernel names
    none."""
    try:
        handle = os.open(path, os.O_RDONLY | SAFELY)
    except OSError:
        return None
    try:
        state = os.fstat(handle)
        found = _holders(f"{_device(handle)}:{state.st_ino}")
    finally:
        os.close(handle)
    return next((pid for pid in found if pid > 1 and _user(pid) == state.st_uid), None)


def _device(handle: int) -> str:
    """The device of an open file as /proc/locks writes it. It is that of its mount: of some file systems, such as
    btrfs, stat(2) invents one."""
    mount = _field(Path(f"/proc/self/fdinfo/{handle}"), r"^mnt_id:\s*(\d+)")
    numbers = _field(Path("/proc/self/mountinfo"), rf"^{mount} \d+ (\d+:\d+) ") if mount else None
    if numbers is None:
        device = os.fstat(handle).st_dev
        numbers = f"{os.major(device)}:{os.minor(device)}"
    return ":".join(f"{int(number):02x}" for number in numbers.split(":"))


def _holders(file: str) -> list[int]:
    """The processes that hold a lock on a file (device:inode)."""
    with suppress(OSError):
        text = Path("/proc/locks").read_text()
        return [int(pid) for pid in re.findall(rf"^\d+: FLOCK +\w+ +WRITE +(\d+) +{file} ", text, re.MULTILINE)]
    return []


def _user(pid: int) -> Optional[int]:
    """The user that a process runs as. Not the owner of its folder in /proc: that is root where the process was
    root."""
    found = _field(Path(f"/proc/{pid}/status"), r"^Uid:\s*\d+\s+(\d+)")
    return None if found is None else int(found)


def _field(file: Path, pattern: str) -> Optional[str]:
    with suppress(OSError):
        if found := re.search(pattern, file.read_text(errors="replace"), re.MULTILINE):
            return found[1]
    return None
