"""`debzero train`: opens the output folder, starts the ranks as torch's own launcher does, and turns how they ended
into an exit code."""
from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, Optional

import psutil

from debzero.base import interpreter, systemd
from debzero.base.environment import environment
from debzero.base.errors import InputError
from debzero.base.failures import disk_full
from debzero.base.text import printable_lines
from debzero.deepspeed_json import releases
from debzero.hosts import cluster
from debzero.hosts.member import Ended, Stopped
from debzero.resolve.resolve import ResolvedJob
from debzero.run.folder import SAME_FAILURES, RunFolder
from debzero.run.open import open_folder
from debzero.run.records import ErrorNote
from debzero.run.report import headline
from debzero.train import memory_retry, rendezvous, standby
from debzero.train.agreement import SIGNALS
from debzero.train.hosts import Hosts, Part, described
from debzero.train.torch_imports import speed_up_imports
from debzero.train.watch import Watch

TORCHS_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)  # for which it sets handlers
OUTSIDERS = ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGALRM", "SIGUSR1", "SIGUSR2", "SIGXCPU")


def _environment(resolved: ResolvedJob, meeting: Path, hosts: Optional[Hosts]) -> None:
    """What the ranks inherit."""
    os.environ.update(replace(environment(), launcher_pid=os.getpid(), micro_batch=resolved.batch.micro,
                              favour=resolved.job.zero.favour, meeting_folder=meeting).variables())
    os.environ.update(hosts.variables() if hosts else {})
    os.environ["LOCAL_SIZE"] = str(resolved.local_ranks)  # DeepSpeed's CPU accelerator counts its devices by it
    os.environ.setdefault(standby.THREADS, standby.threads(resolved.host.gpus, resolved.local_ranks))


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
    code = _with_all_hosts(resolved, job, again)
    if code in (130, 143):  # by another host, perhaps: a unit that ends before it is ready would be started again
        systemd.notify("READY=1")
    return code


def _with_all_hosts(resolved: ResolvedJob, job: Path, again: bool) -> int:
    folder, relay, several = RunFolder(resolved.job.output), Relay(), cluster.find(job)
    if several is None:
        return _train(resolved, job, again, folder, relay, None)
    hosts = Hosts(several, folder, lambda: relay.code)
    try:
        return _train(resolved, job, again, folder, relay, hosts)
    except InputError as error:
        hosts.refuse(error)
        raise
    except Stopped:
        return hosts.stop()
    except Ended as ended:
        print(printable_lines(f"debzero: {described(ended.end)}"), file=sys.stderr, flush=True)
        return int(ended.end["code"])
    finally:
        hosts.close()


def _train(resolved: ResolvedJob, job: Path, again: bool, folder: RunFolder, relay: Relay,
           hosts: Optional[Hosts]) -> int:
    if not open_folder(resolved, folder, str(job), again,
                       partial(hosts.meet, resolved, str(job)) if hosts else lambda done: done):
        return 0
    resolved = memory_retry.at_start(resolved, job, folder)
    if hosts:
        resolved = hosts.agree_start(resolved)
    while (code := _launch(resolved, job, hosts)) == 1 and not relay.code:
        smaller = memory_retry.after_failure(resolved, folder)
        if smaller is None:
            break
        if hosts:  # all start again, and agree on it
            folder.replace_error(ErrorNote(rank=0, error="out of memory", passing=True))
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


def _launch(resolved: ResolvedJob, job: Path, hosts: Optional[Hosts]) -> int:
    """The exit code of one start of the ranks."""
    folder = RunFolder(resolved.job.output)
    try:
        with rendezvous.meeting_folder(folder.folder) as meeting:
            part = _run_ranks(resolved, job, meeting, hosts)
            return hosts.settle(part) if hosts else part.code
    except OSError as error:  # of the files that the ranks meet in
        known = disk_full(error, str(folder.folder))
        if known is None:
            raise
        return _blame(folder, ErrorNote(rank=0, error=str(known), passing=True))


def _run_ranks(resolved: ResolvedJob, job: Path, meeting: Path, hosts: Optional[Hosts]) -> Part:
    speed_up_imports()
    from torch.distributed.elastic import multiprocessing

    _environment(resolved, meeting, hosts)
    logging.disable(logging.CRITICAL)  # the launcher's: the ranks report themselves why they failed
    ranks = range(resolved.local_ranks)
    first = hosts.cluster.number * len(ranks) if hosts else 0
    abort = "TORCH_NCCL_ASYNC_ERROR_HANDLING" if releases.parsed(releases.here().torch) >= (2, 2) else (
        "NCCL_ASYNC_ERROR_HANDLING")
    common = {"WORLD_SIZE": str(resolved.layout.ranks), "LOCAL_WORLD_SIZE": str(len(ranks)),
              abort: os.environ.get(abort, "1")}
    arguments = (*interpreter.isolation(), "-u", str(standby.SCRIPT), "--job", str(job))
    logs = meeting / "logs"
    logs.mkdir()
    specs = getattr(multiprocessing, "DefaultLogsSpecs", None)  # since torch 2.3
    where: dict[str, Any] = {"logs_specs": specs(log_dir=str(logs))} if specs else {"log_dir": str(logs)}
    # The part of torch's launcher that starts processes and waits for them. The rest brings launchers of several hosts
    # together, over a TCP store that anybody can join.
    standby.lend()
    with Watch() as watch:
        handlers = {number: signal.getsignal(number) for number in TORCHS_SIGNALS}
        started = multiprocessing.start_processes(
            "debzero", sys.executable, dict.fromkeys(ranks, arguments),
            {rank: {"RANK": str(first + rank), "LOCAL_RANK": str(rank), **common} for rank in ranks}, **where)
        standby.close()
        if hosts:
            hosts.watch()
        for number, handler in handlers.items():  # who started this with nohup meant it
            signal.signal(number, handler)
        try:
            ended = started.wait(period=0.2)
        finally:
            started.close()
        if hosts and hosts.end and hosts.end["code"]:
            return Part(1)  # it was the end of the run that killed them
        killed = any(failure.exitcode < 0 for failure in ended.failures.values())
        return Part(_exit_code(ended.failures, RunFolder(resolved.job.output), watch, first), killed)


def _exit_code(failures: Mapping[int, Any], folder: RunFolder, watch: Watch, base: int = 0) -> int:
    """What the ranks' failures (torch's ProcessFailure, by local rank; `base`: the first one's rank) come to. A rank
    that was killed is the cause, whatever the others report that lost it, even if they ended first. But one that waits
    in a collective for a rank without memory is killed by the launcher."""
    if not failures:
        return 0
    if watch.reason:
        rank = next((rank for rank, one in failures.items() if one.pid in watch.stopped), 0)
        return _blame(folder, ErrorNote(rank=base + rank, error=f"rank {base + rank} {watch.reason}",
                                        passing=bool(watch.stopped)))
    rank, failure = next(((rank, one) for rank, one in failures.items() if one.exitcode < 0),
                         min(failures.items(), key=lambda item: item[1].timestamp))
    if failure.exitcode in (2, 130, 143):
        return int(failure.exitcode)
    note = folder.error_note()
    if failure.exitcode < 0 and not (note and note.memory):
        name = signal.Signals(-failure.exitcode).name
        hint = ": the host ran out of memory? see `journalctl -k`" if name == "SIGKILL" else ""
        text = f"rank {base + rank} was killed by {name}{hint}"
        return _blame(folder, ErrorNote(rank=base + rank, error=text, passing=name in OUTSIDERS))
    return 1


def _blame(folder: RunFolder, note: ErrorNote) -> int:
    """The exit code of a failure of one rank, which the others merely lost."""
    folder.replace_error(note)
    print(f"debzero: {printable_lines(note.error)}", file=sys.stderr)
    return 1
