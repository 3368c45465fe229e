"""`debzero train`: opens the output folder, starts the ranks with torch's own launcher, and answers for how they ended."""
from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from pathlib import Path
from typing import NoReturn

from debzero import report, systemd
from debzero.files import read_json
from debzero.plan import Plan
from debzero.runstate import Output

SCRIPT = Path(__file__).resolve().parent.parent / "train.py"


def open_output(plan: Plan, output: Output, job: str, again: bool) -> bool:
    """Hold the output folder and make room; False when this very job has finished there already, after showing its report."""
    output.lock()
    done = None if again else output.finished(plan.fingerprint)
    if done is not None:
        print(report.text(done), "  train it again  debzero train --again ...", sep="\n", flush=True)
        systemd.notify("READY=1", f"STATUS=finished before, accuracy {done['accuracy']:.4f}")
        return False
    archive = output.begin(job, plan.fingerprint, again)
    if archive:
        print(f"the earlier run in {output.folder} was another one: moved to {archive}", flush=True)
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _environment(plan: Plan) -> None:
    """What the ranks inherit."""
    os.environ["DEBZERO_OUTPUT_HELD"] = "1"
    os.environ["LOCAL_SIZE"] = str(plan.batch.ranks)  # DeepSpeed's CPU accelerator counts its devices by it
    cores = len(os.sched_getaffinity(0))
    os.environ.setdefault("OMP_NUM_THREADS", "4" if plan.host.gpus else str(max(1, cores // plan.batch.ranks)))
    source = str(SCRIPT.parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))


def _terminated(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)


def train(plan: Plan, job: Path, again: bool) -> int:
    """The exit code: 0 done, 1 failed, 2 bad input, 130 or 143 stopped by a signal."""
    signal.signal(signal.SIGTERM, _terminated)  # until torch's launcher takes the signals over
    output = Output(plan.job.output)
    if not open_output(plan, output, str(job), again):
        return 0
    code = 1
    try:
        code = _launch(plan, job)
    except KeyboardInterrupt:
        code = 130
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        systemd.notify("STOPPING=1" if code else "STATUS=" + _last_words(output))
        output.end({0: "finished", 130: "stopped", 143: "stopped"}.get(code, "failed"),
                   read_json(output.first_error).get("error") if code == 1 else None)
        output.first_error.unlink(missing_ok=True)
    if code in (130, 143):
        print("stopped; `debzero train` goes on from the newest checkpoint", file=sys.stderr)
    return code


def _last_words(output: Output) -> str:
    return f"finished, accuracy {read_json(output.report_file).get('accuracy', 0):.4f}"


def _launch(plan: Plan, job: Path) -> int:
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    _environment(plan)
    logging.disable(logging.CRITICAL)  # the launcher's: the ranks say themselves why they failed
    # What `python -m torch.distributed.run` starts, without its page of text when a rank fails, and looking more often.
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=plan.batch.ranks, run_id="debzero", max_restarts=0, monitor_interval=0.2,
        rdzv_backend="static", rdzv_endpoint=f"127.0.0.1:{_free_port()}", rdzv_configs={"rank": 0, "timeout": 900})
    try:
        elastic_launch(config, sys.executable)("-u", str(SCRIPT), "--job", str(job))
    except SignalException as stop:
        return 128 + int(stop.sigval)
    except ChildFailedError as failed:
        rank, failure = failed.get_first_failure()
        if failure.exitcode in (2, 130, 143):
            return int(failure.exitcode)
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            hint = ": the host ran out of memory? see `journalctl -k`" if name == "SIGKILL" else ""
            text = f"rank {rank} was killed by {name}{hint}"
            Output(plan.job.output).claim_error({"rank": rank, "error": text})
            print(f"debzero: {text}", file=sys.stderr)
        return 1
    return 0
