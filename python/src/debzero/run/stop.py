"""`debzero stop`: end a run after its current step, with a checkpoint, and wait until that is written."""
from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from debzero.base import privileges
from debzero.base.errors import UserError
from debzero.base.text import printable
from debzero.run.folder import RunFolder
from debzero.run.status import check_readable, locate, show


def stop(name: str) -> int:
    """Exit code: 0 when nothing runs (any more). Raises a UserError where this user may not stop the run."""
    folder = locate(name)
    with privileges.acting_as_owner(folder.folder):
        check_readable(folder, name)
        pid, held = folder.holder(), folder.held()
    unit = _unit(pid) if pid else ""
    if unit:  # systemd must know that it was meant: a unit that merely ends may be started again
        try:
            subprocess.run(["systemctl", "stop", unit], check=True)
        except (subprocess.CalledProcessError, FileNotFoundError):
            raise _not_allowed(folder, pid, f"run: sudo systemctl stop {shlex.quote(unit)}") from None
    privileges.become_owner(folder.folder)
    if pid is None and held:
        raise UserError(f"a process that is not of its owner holds {folder.lock_file}",
                        f"see who it is, as root: fuser --verbose {shlex.quote(str(folder.lock_file))}")
    if pid is None:
        print(printable(f"not running: no process is writing to {folder.folder}"))
        return 0
    if not unit:
        _signal(folder, pid)
    while folder.holder() == pid:
        time.sleep(0.2)
    status = folder.status()
    print(show(status) if status else printable(f"not started: {folder.folder} has no run"))
    return 0


def _signal(folder: RunFolder, pid: int) -> None:
    """Ask the process that holds the folder to stop, and no other that may have got its number since."""
    try:
        process = os.pidfd_open(pid)
        with suppress(ProcessLookupError):
            if folder.holder() == pid:
                signal.pidfd_send_signal(process, signal.SIGTERM)
        os.close(process)
    except ProcessLookupError:
        return
    except PermissionError:
        raise _not_allowed(folder, pid, "run this as its owner, or as root") from None


def _not_allowed(folder: RunFolder, pid: object, fix: str) -> UserError:
    return UserError(f"process {pid} is writing to {folder.folder}, and this user may not stop it", fix)


def _unit(pid: int) -> str:
    """The debzero@ unit whose main process this is, as systemd says, or nothing. The name alone proves nothing: a
    user's own systemd has units of any name."""
    with suppress(OSError, subprocess.CalledProcessError):
        found = re.search(r"/(debzero@[^/\n]+\.service)$", Path(f"/proc/{pid}/cgroup").read_text(), re.MULTILINE)
        if found:
            main = subprocess.run(["systemctl", "show", "--property=MainPID", "--value", found[1]], check=True,
                                  capture_output=True, text=True).stdout
            return found[1] if main.strip() == str(pid) else ""
    return ""
