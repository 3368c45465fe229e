"""Other programs: side by side, each in a group of its own, with a time limit; and in a few words how they ended."""
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, NamedTuple, Optional

KILL_SECONDS = 5
SOURCE = Path(__file__).resolve().parents[2]


class Outcome(NamedTuple):
    """What a program printed, and how it ended: `trouble` is empty when it ended well."""

    out: str
    trouble: str

    @property
    def told(self) -> dict[str, Any]:
        """What debzero.doctor.child told, {topic: facts}. A child that was killed told what it knew until then."""
        found = {}
        for line in self.out.splitlines():
            with suppress(ValueError):
                topic, facts = json.loads(line)
                found[topic] = facts
        return found


def signal_name(number: int) -> str:
    with suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"


def last_words(text: str) -> str:
    """The line of a program's complaints that says why: the last error, else the last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if "rror" in line] or lines
    return telling[-1][:300] if telling else ""


def together(commands: Sequence[Sequence[str]], environments: Sequence[dict[str, str]], seconds: float) -> list[Outcome]:
    """Run programs until all have ended well, or one has failed, or the time is over; whatever is left then is killed."""
    with ExitStack() as stack:
        files: list[tuple[IO[str], IO[str]]] = []
        running: list[subprocess.Popen[str]] = []
        for command, environment in zip(commands, environments):
            out, err = (stack.enter_context(TemporaryFile("w+", errors="replace")) for _ in range(2))
            files.append((out, err))
            running.append(subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                                            text=True, start_new_session=True))
            stack.callback(_kill, running[-1])
        until = time.monotonic() + seconds
        while time.monotonic() < until and any(process.poll() is None for process in running) and not any(
                process.returncode for process in running):
            time.sleep(0.02)
        late = time.monotonic() >= until
        codes = [process.poll() for process in running]
        for process in running:
            _kill(process)
        return [Outcome(_whole(out), _ending(code, late, seconds, _whole(err))) for code, (out, err) in zip(codes, files)]


def _kill(process: subprocess.Popen[str]) -> None:
    """The program and all it started. What hangs inside a driver cannot be killed, and is left behind."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        process.wait(KILL_SECONDS)


def _whole(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


def _ending(code: Optional[int], late: bool, seconds: float, complaints: str) -> str:
    words = last_words(complaints)
    if code is None:
        return (f"no end within {seconds:g} s" + (f"; its last words: {words}" if words else "")) if late else "another one failed"
    if code < 0:
        return f"killed by {signal_name(-code)}"
    return (words or f"exit code {code}") if code else ""


def run(command: Sequence[str], seconds: float, **changes: str) -> Outcome:
    """One program; one that is not there is trouble as well."""
    try:
        return together([command], [environment(**changes)], seconds)[0]
    except OSError as error:
        return Outcome("", f"{command[0]}: {error.strerror}")


def python(*arguments: str) -> list[str]:
    """The command that runs a module with this interpreter."""
    return [sys.executable, "-m", *arguments]


def environment(**changes: str) -> dict[str, str]:
    """This process's environment, with debzero importable and systemd out of reach: a trial job is not the unit's."""
    kept = {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}
    path = os.pathsep.join(filter(None, [str(SOURCE), os.environ.get("PYTHONPATH")]))
    return {**kept, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore", **changes}
