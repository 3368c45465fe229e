"""`debzero stop`: end a run after its current step, with a checkpoint, and wait until that is written."""
from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

from debzero.base.errors import UserError
from debzero.run.status import find, show


def stop(name: str) -> int:
    """Exit code: 0 when nothing runs (any more). Raises a UserError where this user may not stop the run."""
    folder = find(name)
    pid = folder.holder()
    if pid is None:
        print(f"not running: no process trains into {folder.folder}")
        return 0
    unit = _unit(pid)
    try:
        if unit:  # systemd must know that it was meant: a unit that merely ends may be started again
            subprocess.run(["systemctl", "stop", unit], check=True)
        else:
            os.kill(pid, signal.SIGTERM)
    except (PermissionError, subprocess.CalledProcessError, FileNotFoundError):
        raise UserError(f"process {pid} trains into {folder.folder}, and this user may not stop it",
                        f"run: sudo systemctl stop {unit}" if unit else "run this as its owner, or as root") from None
    while folder.holder() == pid:
        time.sleep(0.2)
    status = folder.status()
    print(show(status) if status else f"not started: {folder.folder} has no run")
    return 0


def _unit(pid: int) -> str:
    """The debzero@ unit that the process belongs to, or nothing."""
    try:
        found = re.search(r"debzero@[^/]+\.service", Path(f"/proc/{pid}/cgroup").read_text())
    except OSError:
        return ""
    return found[0] if found else ""
