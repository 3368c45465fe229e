"""`debzero train`: opens the output folder, starts the ranks with torch's own launcher, and turns how they ended into
an exit code."""
from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import tempfile
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, Optional

import psutil

from debzero.base import interpreter, systemd
from debzero.base.environment import environment
from debzero.base.failures import disk_full
from debzero.base.text import printable_lines
from debzero.resolve.resolve import ResolvedJob
from debzero.run.folder import SAME_FAILURES, RunFolder
from debzero.run.open import open_folder
from debzero.run.records import ErrorNote
from debzero.run.report import headline
from debzero.train import memory_retry
from debzero.train.agreement import SIGNALS
from debzero.train.torch_imports import speed_up_imports
from debzero.train.watch import Watch

SCRIPT = interpreter.SOURCE / "train.py"
OUTSIDERS = ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGALRM", "SIGUSR1", "SIGUSR2", "SIGXCPU")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _environment(resolved: ResolvedJob) -> None:
    """What the ranks inherit."""
    os.environ.update(replace(environment(), launcher_pid=os.getpid(), micro_batch=resolved.batch.micro).variables())
    os.environ["LOCAL_SIZE"] = str(resolved.batch.ranks)  # DeepSpeed's CPU accelerator counts its devices by it
    cores = len(os.sched_getaffinity(0))
    os.environ.setdefault("OMP_NUM_THREADS", "4" if resolved.host.gpus else str(max(1, cores // resolved.batch.ranks)))


class Relay:
    """Passes a request to stop on to the ranks, and lets them take the time that their checkpoint needs.

    torch's launcher would give them 30 seconds. So the signals are blocked (before any library starts a thread that
    could take one), and a thread waits for them here. It asks the ranks repeatedly, as one may just be starting, and
    kills them only at a second signal.
    """

    def __init__(self) -> None:
        self.code, self.killed = 0, False
        threading.Thread(target=self._wait, daemon=True).start()

    def _wait(self) -> NoReturn:
        number = signal.sigwait(SIGNALS)
        self.code = SIGNALS[signal.Signals(number)]
        print("stopping after this step, with a checkpoint; a second signal kills at once", file=sys.stderr, flush=True)
        asked = set[int]()
        while True:
            for child in psutil.Process().children():
                if child.pid not in asked or self.killed:
                    asked.add(child.pid)
                    with suppress(psutil.NoSuchProcess):
                        child.send_signal(signal.SIGKILL if self.killed else signal.SIGTERM)
            if signal.sigtimedwait(SIGNALS, 0.2):
                self.killed = True


def train(resolved: ResolvedJob, job: Path, again: bool) -> int:
    """The exit code: 0 done, 1 failed, 2 bad input, 3 failed the same way again and again, 130 or 143 stopped by a
    signal."""
    folder = RunFolder(resolved.job.output)
    if not open_folder(resolved, folder, str(job), again):
        return 0
    relay = Relay()
    resolved = memory_retry.at_start(resolved, job, folder)
    while (code := _launch(resolved, job)) == 1 and not relay.code:
        smaller = memory_retry.after_failure(resolved, folder)
        if smaller is None:
            break
        resolved = smaller
    note = folder.error_note()
    if code and relay.code and (relay.killed or note is None):
        code = relay.code
    systemd.notify("STOPPING=1" if code else f"STATUS={_final_status(folder)}")
    return _record_end(folder, code, note if code == 1 else None)


def _record_end(folder: RunFolder, code: int, note: Optional[ErrorNote]) -> int:
    """Write how the run ended into its folder; the exit code, which a repeated failure of the job's own changes."""
    error = note.error if note else None
    if not code:
        folder.failures_file.unlink(missing_ok=True)
    folder.end({0: "finished", 130: "stopped", 143: "stopped"}.get(code, "failed"), error)
    if code == 1 and not (note and note.passing) and folder.record_failure(error):
        print(f"debzero: this job has failed {SAME_FAILURES} times in a row at the same step with the same error: "
              "giving up. Fix the cause and start it again; it resumes from its newest checkpoint", file=sys.stderr)
        code = 3
    folder.error_file.unlink(missing_ok=True)
    if code in (130, 143):
        print("stopped; `debzero train` resumes from the newest checkpoint", file=sys.stderr)
    return code


def _final_status(folder: RunFolder) -> str:
    score = headline(folder.report())  # none after a run of `debzero bench`
    return f"finished, {score}" if score else "finished"


def _launch(resolved: ResolvedJob, job: Path) -> int:
    speed_up_imports()
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    _environment(resolved)
    logging.disable(logging.CRITICAL)  # the launcher's: the ranks report themselves why they failed
    # As `python -m torch.distributed.run`, but without its page of text when a rank fails, and checking more often.
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=resolved.batch.ranks, run_id="debzero", max_restarts=0,
        monitor_interval=0.2, rdzv_backend="static", rdzv_endpoint=f"127.0.0.1:{_free_port()}",
        rdzv_configs={"rank": 0, "timeout": 900})
    with Watch() as watch:
        try:
            elastic_launch(config, sys.executable)(*interpreter.isolation(), "-u", str(SCRIPT), "--job", str(job))
        except ChildFailedError as failed:
            return _exit_code(failed, RunFolder(resolved.job.output), watch)
        except OSError as error:  # of the launcher's own files, in /tmp
            known = disk_full(error, tempfile.gettempdir())
            if known is None:
                raise
            return _blame(RunFolder(resolved.job.output), ErrorNote(rank=0, error=str(known), passing=True))
    return 0


def _exit_code(failed: Any, folder: RunFolder, watch: Watch) -> int:
    """What the ranks' failures (a ChildFailedError) come to. A rank that was killed is the cause, whatever the others
    report that lost it, even if they ended first. But one that waits in a collective for a rank without memory is
    killed by the launcher."""
    if watch.reason:
        rank = next((rank for rank, one in failed.failures.items() if one.pid in watch.stopped), 0)
        return _blame(folder, ErrorNote(rank=rank, error=f"rank {rank} {watch.reason}", passing=bool(watch.stopped)))
    rank, failure = next(((rank, one) for rank, one in failed.failures.items() if one.exitcode < 0),
                         failed.get_first_failure())
    if failure.exitcode in (2, 130, 143):
        return int(failure.exitcode)
    note = folder.error_note()
    if failure.exitcode < 0 and not (note and note.memory):
        name = signal.Signals(-failure.exitcode).name
        hint = ": the host ran out of memory? see `journalctl -k`" if name == "SIGKILL" else ""
        text = f"rank {rank} was killed by {name}{hint}"
        return _blame(folder, ErrorNote(rank=rank, error=text, passing=name in OUTSIDERS))
    return 1


def _blame(folder: RunFolder, note: ErrorNote) -> int:
    """The exit code of a failure of one rank, which the others merely lost."""
    folder.replace_error(note)
    print(f"debzero: {printable_lines(note.error)}", file=sys.stderr)
    return 1
