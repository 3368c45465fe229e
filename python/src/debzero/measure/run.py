"""One measured run: `debzero train` in a process of its own, watched from outside until it ends."""
from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, NoReturn, Optional

import psutil

from debzero.base import interpreter, privileges
from debzero.base.environment import Environment, environment
from debzero.base.files import write_text
from debzero.job.schema import Job
from debzero.measure.records import MeasuredRun, Segment
from debzero.resolve import nvme_swap
from debzero.run import lock
from debzero.run.folder import RunFolder
from debzero.run.records import read_metrics

POLL_SECONDS = 0.2  # between two readings of the memory


class MemoryWatch:
    """The highest use of the host's and the GPUs' memory, over what was in use at the start."""

    def __init__(self) -> None:
        self.gpus = _nvml_handles()
        self.before = self._used_bytes()
        self.highest = list(self.before)

    def _used_bytes(self) -> list[int]:
        """Of the host, then of each GPU."""
        memory = psutil.virtual_memory()
        used = [memory.total - memory.available]  # pinned memory, too, which no process's resident set shows
        if self.gpus:
            import pynvml

            used += [int(pynvml.nvmlDeviceGetMemoryInfo(gpu).used) for gpu in self.gpus]
        return used

    def poll(self) -> None:
        self.highest = [max(pair) for pair in zip(self.highest, self._used_bytes())]

    def peaks(self) -> tuple[int, tuple[int, ...]]:
        """Bytes of the host, and of each GPU."""
        host, *gpus = (high - low for high, low in zip(self.highest, self.before))
        return host, tuple(gpus)


def _nvml_handles() -> list[Any]:
    """NVML's handles of the GPUs that torch would see; none where the driver does not answer."""
    try:
        import pynvml

        pynvml.nvmlInit()
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is None:
            return [pynvml.nvmlDeviceGetHandleByIndex(number) for number in range(pynvml.nvmlDeviceGetCount())]
        return [pynvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit()
                else pynvml.nvmlDeviceGetHandleByUUID(name)
                for name in filter(None, visible.split(","))]
    # the library has an error class for each of the driver's, and a host without GPUs may lack the library
    except Exception:
        return []


def claim(folder: Path) -> None:
    """Lock the folder of a bench or a search, and end what an earlier one has left running there. From here on, an
    interruption of this command also ends its run."""
    privileges.tighten_umask()
    RunFolder(str(folder)).lock()
    end_on_signals()
    kill_leftovers(folder)


def end_on_signals() -> None:
    """Let SIGTERM and a terminal's hang-up end this command as Ctrl-C does: together with the run that it has
    started."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, _interrupt)


def _interrupt(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)


def _defer_interruptions() -> Callable[[], None]:
    """Hold signals back until the returned function is called: one that arrives while a process starts would find
    nothing to end."""
    if threading.current_thread() is not threading.main_thread():  # which no signal interrupts
        return lambda: None
    received: list[int] = []
    handlers = {number: signal.signal(number, lambda sent, frame: received.append(sent))
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}

    def resume() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for sent in received:
            signal.raise_signal(sent)

    return resume


def measure(job: Job, folder: Path, warmup: int, limit: float, cap: Optional[int] = None) -> MeasuredRun:
    """Train `job`, whose output is below `folder`, for at most `limit` seconds, and say what it
    took after `warmup` optimizer steps. `cap`: the GPU memory in bytes that each rank may take. The job file, the log
    and the metrics stay in `folder`."""
    output = Path(job.output)
    shutil.rmtree(folder, ignore_errors=True)
    output.mkdir(parents=True)
    (output / "data").symlink_to(_shared_data(folder), target_is_directory=True)
    os.close(lock.open_own(RunFolder(job.output).lock_file))  # a folder of debzero's own: it has samples already
    file, log = folder / "job.yml", folder / "train.log"
    write_text(file, job.as_yaml())
    watch, started = MemoryWatch(), time.monotonic()
    try:
        code = _train(file, log, limit, cap, watch)
    except BaseException:
        remove_output(job, output)
        raise
    run = _outcome(code, RunFolder(str(output)), log, warmup, limit)
    host, gpus = watch.peaks()
    if (output / "metrics.jsonl").is_file():
        shutil.move(str(output / "metrics.jsonl"), str(folder / "metrics.jsonl"))
    remove_output(job, output)
    return replace(run, host_bytes=host, device_bytes=gpus, wall_seconds=round(time.monotonic() - started, 1))


def _train(file: Path, log: Path, limit: float, cap: Optional[int], watch: MemoryWatch) -> Optional[int]:
    """Run `debzero train` on a job file, with its output in `log`. Its exit code; None where it was ended after `limit`
    seconds. An interruption ends it, too."""
    ours = Environment(measured=True, memory_cap_bytes=cap, textfile_folder=environment().textfile_folder)
    variables = {**os.environ, **ours.variables()}
    began, deadline = time.time(), time.monotonic() + limit
    process: Any = None
    code: Optional[int] = None
    resume = _defer_interruptions()
    try:
        with open(log, "w", encoding="utf-8") as stream:
            process = psutil.Popen(interpreter.command("train", str(file)), stdin=subprocess.DEVNULL, stdout=stream,
                                   stderr=subprocess.STDOUT, start_new_session=True, env=variables)
        resume()
        while code is None and time.monotonic() < deadline:
            with suppress(psutil.TimeoutExpired, subprocess.TimeoutExpired):
                code = process.wait(POLL_SECONDS)
            watch.poll()
    finally:
        if process is None:
            resume()
        elif code is None:
            kill_tree(process)
            remove_build_locks(began)
    return code


def remove_output(job: Job, output: Path) -> None:
    """Leave nothing of a run but its log and figures: its checkpoints and what it swapped to a disk are large."""
    shutil.rmtree(output, ignore_errors=True)
    if job.zero.nvme_path:
        shutil.rmtree(nvme_swap.folder(job.zero.nvme_path, str(output)), ignore_errors=True)


def _shared_data(folder: Path) -> Path:
    """The folder of the tokenised samples, which the first run writes and all read."""
    shared = folder.parent.parent / "data"
    shared.mkdir(parents=True, exist_ok=True)
    return shared


def kill_tree(process: Any) -> None:
    """Kill a run with its ranks."""
    family: set[Any] = set()
    found = {process}
    while found:  # a suspended process starts no more, so the last round finds all
        for member in found:
            with suppress(psutil.NoSuchProcess):
                member.suspend()
        family |= found
        try:
            found = set(process.children(recursive=True)) - family
        except psutil.NoSuchProcess:
            break
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(family, timeout=30)


def kill_leftovers(folder: Path) -> None:
    """Kill the runs below `folder` that a killed bench or tune could not end."""
    for output in folder.glob("runs/*/out"):
        run = RunFolder(str(output))
        if holder := run.holder():
            with suppress(psutil.Error):
                process = psutil.Process(holder)
                began = process.create_time()
                if run.holder() == holder:  # no other process has got its number; psutil sees to that from here on
                    kill_tree(process)
                    remove_build_locks(began)


def remove_build_locks(since: float) -> None:
    """Remove the locks of operators that a killed run was compiling since then (seconds since the epoch): torch's later
    builds would wait for them forever."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torch_extensions"
    with suppress(OSError):  # a folder that this user may not enter
        for lock in Path(os.environ.get("TORCH_EXTENSIONS_DIR") or cache).glob("**/lock"):
            with suppress(OSError):
                if lock.stat().st_mtime >= since:
                    lock.unlink()


def _outcome(code: Optional[int], output: RunFolder, log: Path, warmup: int, limit: float) -> MeasuredRun:
    """What the run left in its folder and its log, or why it has no figures."""
    if code is None:
        return MeasuredRun("time", f"not done after {limit / 60:g} minutes")
    if code:
        return _failure(code, output, log.read_text(encoding="utf-8", errors="replace").strip())
    lines = [line for line in read_metrics(output.metrics_file) if line.interval_seconds is not None]
    segments = tuple(Segment(line.interval_steps or 0, line.interval_samples or 0, line.interval_seconds or 0)
                     for line in lines if line.step > warmup)
    from debzero.model.compiled import WITHOUT_GRAPHS

    return MeasuredRun(segments=segments, memory_bytes=tuple(lines[-1].memory_bytes or ()),
                       fell_out=WITHOUT_GRAPHS in log.read_text(encoding="utf-8", errors="replace"))


def _failure(code: int, output: RunFolder, log: str) -> MeasuredRun:
    """The kind of failure, and the reason in one line."""
    if code == 2:
        # "FILE: 1 problem", then the key with its reason, and "-> the fix"
        problem = [line.strip() for line in log.splitlines()[1:]] or [log]
        return MeasuredRun("refused", " ".join(problem))
    status = output.status()
    error = (status.error if status else None) or ""
    reason = " ".join((error or (log.splitlines() or ["the log is empty"])[-1]).split())
    return MeasuredRun("memory" if "out of memory" in reason or "can't allocate memory" in reason else "failed", reason)
