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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, NoReturn, Optional

import psutil
import yaml

from debzero.base.environment import Environment, environment
from debzero.base.files import read_lines, write_text
from debzero.resolve import nvme_swap
from debzero.run.folder import Output

SOURCE = Path(__file__).resolve().parents[2]
LOOK = 0.2  # seconds between two looks at the memory

# Kinds of failure that a new start tries again, for somebody may have mended the cause. What memory or time did not
# suffice for is a result.
MENDABLE = ("refused", "failed")


@dataclass
class Run:
    """What one run showed. `reason` is None where it was measured; the kinds of failure are memory, refused, time and
    failed."""

    kind: str = "measured"
    reason: Optional[str] = None
    segments: list[dict[str, float]] = field(default_factory=list)  # after the warm-up: steps, samples, seconds
    memory_bytes: list[int] = field(default_factory=list)           # each rank's peak
    device_bytes: list[int] = field(default_factory=list)           # each GPU's, over what was taken before
    host_bytes: int = 0                                             # likewise the host's
    wall_seconds: float = 0.0


class Watch:
    """The highest use of the GPUs' and the host's memory, over what was in use when it was made."""

    def __init__(self) -> None:
        self.gpus = _nvml_handles()
        self.before = self._now()
        self.highest = list(self.before)

    def _now(self) -> list[int]:
        memory = psutil.virtual_memory()
        used = [memory.total - memory.available]  # pinned memory, too, which no process's resident set shows
        if self.gpus:
            import pynvml

            used += [int(pynvml.nvmlDeviceGetMemoryInfo(gpu).used) for gpu in self.gpus]
        return used

    def look(self) -> None:
        self.highest = [max(pair) for pair in zip(self.highest, self._now())]

    def taken(self) -> tuple[int, list[int]]:
        host, *gpus = (high - low for high, low in zip(self.highest, self.before))
        return host, gpus


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
    """Hold the folder of a bench or a search, whose runs end with this command, and have none beside them."""
    Output(str(folder)).lock()
    interruptible()
    end_leftovers(folder)


def interruptible() -> None:
    """Let SIGTERM and a terminal's hang-up end this command as Ctrl-C does: together with the run that it has
    started."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, _interrupt)


def _interrupt(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)


def _deferred() -> Callable[[], None]:
    """Let interruptions wait until what is returned is called: one that comes while a process starts would find nothing
    to end."""
    if threading.current_thread() is not threading.main_thread():  # whom no signal interrupts
        return lambda: None
    asked: list[int] = []
    handlers = {number: signal.signal(number, lambda sent, frame: asked.append(sent))
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}

    def resume() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for sent in asked:
            signal.raise_signal(sent)

    return resume


def measure(job: dict[str, Any], folder: Path, warmup: int, limit: float, cap: Optional[int] = None) -> Run:
    """Run `job` (a job file's mapping, whose output is below `folder`) for at most `limit` seconds, with ranks that may take `cap`
    bytes of their GPUs. Its job file, log and metrics stay in `folder`."""
    output = Path(job["output"])
    shutil.rmtree(folder, ignore_errors=True)
    output.mkdir(parents=True)
    (output / "data").symlink_to(_shared_data(folder), target_is_directory=True)
    file, log = folder / "job.yml", folder / "train.log"
    write_text(file, yaml.safe_dump(job, sort_keys=False))
    ours = Environment(measured=True, memory_cap_bytes=cap, textfile_folder=environment().textfile_folder)
    variables = {**os.environ, **ours.variables(),
                 "PYTHONPATH": os.pathsep.join(filter(None, [str(SOURCE), os.environ.get("PYTHONPATH")]))}
    watch, started, began = Watch(), time.monotonic(), time.time()
    process: Any = None
    code: Optional[int] = None
    interrupted = True
    resume = _deferred()
    try:
        with open(log, "w", encoding="utf-8") as words:
            process = psutil.Popen(
                [sys.executable, "-m", "debzero", "train", str(file)], stdin=subprocess.DEVNULL, stdout=words,
                stderr=subprocess.STDOUT, start_new_session=True, env=variables)
        resume()
        while code is None and time.monotonic() - started < limit:
            with suppress(psutil.TimeoutExpired, subprocess.TimeoutExpired):
                code = process.wait(LOOK)
            watch.look()
        interrupted = False
    finally:
        if process is None:
            resume()
        elif code is None:
            end(process)
            unlock(began)
        if interrupted:
            clear(job, output)
    run = Run(wall_seconds=round(time.monotonic() - started, 1))
    run.host_bytes, run.device_bytes = watch.taken()
    read(run, code, Output(str(output)), log, warmup, limit)
    if (output / "metrics.jsonl").is_file():
        shutil.move(str(output / "metrics.jsonl"), str(folder / "metrics.jsonl"))
    clear(job, output)
    return run


def clear(job: dict[str, Any], output: Path) -> None:
    """Leave nothing of a run but its log and figures; what is swapped to a disk is large."""
    shutil.rmtree(output, ignore_errors=True)
    if job["zero"].get("nvme_path"):
        shutil.rmtree(nvme_swap.folder(job["zero"]["nvme_path"], str(output)), ignore_errors=True)


def _shared_data(folder: Path) -> Path:
    """The tokenised samples, made by the first run and read by all."""
    shared = folder.parent.parent / "data"
    shared.mkdir(parents=True, exist_ok=True)
    return shared


def end(process: Any) -> None:
    """Kill a run with its ranks."""
    family: set[Any] = set()
    found = {process}
    while found:  # those that were stopped start no more, so the last look finds all
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


def end_leftovers(folder: Path) -> None:
    """End the runs below `folder` that a killed bench or tune could not end."""
    for output in folder.glob("runs/*/out"):
        if left := Output(str(output)).holder():
            with suppress(psutil.Error):
                process = psutil.Process(left)
                began = process.create_time()
                end(process)
                unlock(began)


def unlock(since: float) -> None:
    """Remove the locks of operators that a killed run was compiling: torch's later builds would wait for them for
    ever."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torch_extensions"
    for lock in Path(os.environ.get("TORCH_EXTENSIONS_DIR") or cache).glob("**/lock"):
        with suppress(OSError):
            if lock.stat().st_mtime >= since:
                lock.unlink()


def read(run: Run, code: Optional[int], output: Output, log: Path, warmup: int, limit: float) -> None:
    """Fill in what the run left behind."""
    text = log.read_text(encoding="utf-8", errors="replace").strip()
    if code is None:
        run.kind, run.reason = "time", f"not done after {limit / 60:g} minutes"
    elif code:
        run.kind, run.reason = _failure(code, output, text)
    else:
        steps = [line for line in read_lines(output.metrics_file) if "interval_seconds" in line]
        run.segments = [{key: line[f"interval_{key}"] for key in ("steps", "samples", "seconds")}
                        for line in steps if line["step"] > warmup]
        run.memory_bytes = [int(peak) for peak in steps[-1]["memory_bytes"]]


def _failure(code: int, output: Output, text: str) -> tuple[str, str]:
    """The kind of failure, and the reason in one line."""
    error = str(output.status().get("error") or "")
    if code == 2:
        # "FILE: 1 problem", then the key with its reason, and "-> the fix"
        problem = [line.strip() for line in text.splitlines()[1:]] or [text]
        return "refused", " ".join(problem)
    reason = " ".join((error or (text.splitlines() or ["the log is empty"])[-1]).split())
    return ("memory" if "out of memory" in reason or "can't allocate memory" in reason else "failed"), reason



def per_second(run: dict[str, Any], what: str) -> float:
    """A run's samples or steps a second, over all its measured segments."""
    return float(sum(segment[what] for segment in run["segments"]) / sum(segment["seconds"]
                                                                         for segment in run["segments"]))
