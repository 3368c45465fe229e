"""`debzero train`: opens the output folder, starts the ranks with torch's own launcher, and answers for how they
ended."""
from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import psutil

from debzero.base import systemd
from debzero.base.environment import environment
from debzero.base.files import read_json
from debzero.resolve.resolve import ResolvedJob
from debzero.run import report
from debzero.run.folder import SAME_FAILURES, Output
from debzero.run.open import open_output
from debzero.train import memory_retry, torch_imports
from debzero.train.agreement import SIGNALS

SCRIPT = Path(__file__).resolve().parents[2] / "train.py"


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
    source = str(SCRIPT.parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))


class Relay:
    """Passes a request to stop on to the ranks, and lets them take the time that their checkpoint needs.

    torch's launcher would give them 30 seconds. So the signals are blocked (before any library has started a thread that could take
    one), and a thread waits for them here: it asks the ranks again and again, as one may just be starting, and kills them only
    when it is told twice.
    """

    def __init__(self) -> None:
        self.code, self.killed = 0, False
        threading.Thread(target=self._wait, daemon=True).start()

    def _wait(self) -> NoReturn:
        number = signal.sigwait(SIGNALS)
        self.code = SIGNALS[signal.Signals(number)]
        print("stopping after this step, with a checkpoint; once more kills at once", file=sys.stderr, flush=True)
        told = set[int]()
        while True:
            for child in psutil.Process().children():
                if child.pid not in told or self.killed:
                    told.add(child.pid)
                    with suppress(psutil.NoSuchProcess):
                        child.send_signal(signal.SIGKILL if self.killed else signal.SIGTERM)
            if signal.sigtimedwait(SIGNALS, 0.2):
                self.killed = True


def train(resolved: ResolvedJob, job: Path, again: bool) -> int:
    """The exit code: 0 done, 1 failed, 2 bad input, 3 failed the same way again and again, 130 or 143 stopped by a
    signal."""
    output = Output(resolved.job.output)
    if not open_output(resolved, output, str(job), again):
        return 0
    relay = Relay()
    resolved = memory_retry.at_start(resolved, job, output)
    while (code := _launch(resolved, job)) == 1 and not relay.code:
        smaller = memory_retry.after_failure(resolved, output)
        if smaller is None:
            break
        resolved = smaller
    if code and relay.code and (relay.killed or output.first_error_text() is None):
        code = relay.code
    error = output.first_error_text() if code == 1 else None
    systemd.notify("STOPPING=1" if code else "STATUS=" + _last_words(output))
    if not code:
        output.failures_file.unlink(missing_ok=True)
    output.end({0: "finished", 130: "stopped", 143: "stopped"}.get(code, "failed"), error)
    if code == 1 and output.fails_alike(error):
        print(f"debzero: this job has failed {SAME_FAILURES} times in a row at the same step in the same way: given "
              "up. Mend the cause, then start it again: it goes on from its newest checkpoint", file=sys.stderr)
        code = 3
    output.first_error.unlink(missing_ok=True)
    if code in (130, 143):
        print("stopped; `debzero train` goes on from the newest checkpoint", file=sys.stderr)
    return code


def _last_words(output: Output) -> str:
    made = read_json(output.report_file)
    return f"finished, {report.headline(made)}" if made else "finished"  # `debzero bench` wants no report


def _launch(resolved: ResolvedJob, job: Path) -> int:
    torch_imports.name_quickly()
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    _environment(resolved)
    logging.disable(logging.CRITICAL)  # the launcher's: the ranks say themselves why they failed
    # What `python -m torch.distributed.run` starts, without its page of text when a rank fails, and looking more often.
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=resolved.batch.ranks, run_id="debzero", max_restarts=0,
        monitor_interval=0.2, rdzv_backend="static", rdzv_endpoint=f"127.0.0.1:{_free_port()}",
        rdzv_configs={"rank": 0, "timeout": 900})
    try:
        elastic_launch(config, sys.executable)("-u", str(SCRIPT), "--job", str(job))
    except ChildFailedError as failed:
        # A rank that was killed is the cause, whatever the others say that lost it; they may have been seen to end
        # first. But one that waits in a collective for a rank without memory is killed by the launcher.
        rank, failure = next(((rank, one) for rank, one in failed.failures.items() if one.exitcode < 0),
                             failed.get_first_failure())
        if failure.exitcode in (2, 130, 143):
            return int(failure.exitcode)
        if failure.exitcode < 0 and not read_json(Output(resolved.job.output).first_error).get("memory"):
            name = signal.Signals(-failure.exitcode).name
            hint = ": the host ran out of memory? see `journalctl -k`" if name == "SIGKILL" else ""
            text = f"rank {rank} was killed by {name}{hint}"
            Output(resolved.job.output).name_error({"rank": rank, "error": text})  # the others merely lost it
            print(f"debzero: {text}", file=sys.stderr)
        return 1
    return 0
