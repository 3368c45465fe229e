"""Other programs: run side by side, each in a process group of its own, with a time limit; and why they failed."""
from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from tempfile import TemporaryFile
from typing import IO, Any, NamedTuple, Optional

KILL_SECONDS = 5
ENDED_WITH_ANOTHER = "stopped, because another one failed"


class ProcessResult(NamedTuple):
    """What a program printed, and why it failed: `error` is empty when it ended well."""

    output: str
    error: str

    @property
    def facts(self) -> dict[str, Any]:
        """What debzero.doctor.child reported, {topic: facts}: one that was killed reported what it knew until then."""
        found = {}
        for line in self.output.splitlines():
            with suppress(ValueError):
                topic, facts = json.loads(line)
                found[topic] = facts
        return found


def signal_name(number: int) -> str:
    with suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"


def error_line(text: str) -> str:
    """The line of a program's standard error that says why: the last one with an error, else the last one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "rror" in line] or lines
    return errors[-1][:300] if errors else ""


def run_side_by_side(commands: Sequence[Sequence[str]], environments: Sequence[dict[str, str]],
                     seconds: float) -> list[ProcessResult]:
    """Run programs until all have ended well, one has failed, or the time is over; then kill those that still run."""
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
        return [ProcessResult(_content(out), _describe_failure(code, late, seconds, _content(err)))
                for code, (out, err) in zip(codes, files)]


def _kill(process: subprocess.Popen[str]) -> None:
    """The program and all it started. What hangs inside a driver cannot be killed, and is left behind."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        process.wait(KILL_SECONDS)


def _content(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


def _describe_failure(code: Optional[int], late: bool, seconds: float, stderr: str) -> str:
    """Empty for exit code 0. `code` is None for a program that still ran."""
    line = error_line(stderr)
    if code is None and late:
        return f"no end within {seconds:g} s" + (f"; its last line: {line}" if line else "")
    if code is None:
        return ENDED_WITH_ANOTHER
    if code < 0:
        return f"killed by {signal_name(-code)}"
    return (line or f"exit code {code}") if code else ""


def run(command: Sequence[str], seconds: float, **changes: str) -> ProcessResult:
    """Run one program; that it does not exist is an error as well. `changes` go to its environment."""
    try:
        return run_side_by_side([command], [environment(**changes)], seconds)[0]
    except OSError as error:
        return ProcessResult("", f"{command[0]}: {error.strerror}")


def environment(**changes: str) -> dict[str, str]:
    """This process's environment with systemd out of reach: a trial job is not the unit's."""
    inherited = {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}
    return {**inherited, "PYTHONWARNINGS": "ignore", **changes}
