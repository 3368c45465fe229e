"""What the benchmark programs share: child processes with a log, the speed in a debzero run's metrics, tables, facts of
the host."""
from __future__ import annotations

import json
import os
import platform
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Optional, Union

import psutil
import yaml

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parents[1]
SOURCE = ROOT / "python" / "src"
sys.path.insert(0, str(SOURCE))  # of this checkout, not one that is installed

from debzero.measure.run import kill_tree  # noqa: E402

OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


class Failed(SystemExit):
    """A part of a benchmark failed: the end of its log, and exit code 1."""


def variables_of(python: str, **environment: str) -> dict[str, str]:
    """The environment of this checkout's programs with the interpreter `python`."""
    variables = {**os.environ, **OFFLINE, **environment}
    variables["PATH"] = os.pathsep.join([str(Path(python).parent), os.environ["PATH"]])  # its ninja, for DeepSpeed
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, [str(SOURCE), variables.get("PYTHONPATH")]))
    return variables


def run(command: Sequence[object], log: Path, timeout: float, **environment: str) -> dict[str, float]:
    """Run a command to its end, with its output in `log`; the seconds that it took, and the CPU seconds of all its
    processes. After `timeout` seconds, and where this program is interrupted, all of them are killed."""
    arguments = [str(argument) for argument in command]
    variables = variables_of(arguments[0], **environment)
    started, cpu = time.perf_counter(), _cpu_seconds()
    with open(log, "w", encoding="utf-8") as file:
        process = psutil.Popen(arguments, stdout=file, stderr=subprocess.STDOUT, env=variables, start_new_session=True)
        try:
            code: Union[int, str] = process.wait(timeout)
        except (psutil.TimeoutExpired, subprocess.TimeoutExpired):
            code = f"not done after {timeout:.0f} s"
        finally:
            if process.poll() is None:
                kill_tree(process)
            with suppress(ProcessLookupError):  # ranks that a failed launcher has left
                os.killpg(process.pid, signal.SIGKILL)
    if code:
        tail = "".join(log.read_text(errors="replace").splitlines(keepends=True)[-25:])
        raise Failed(f"{tail}\n{' '.join(arguments)}\nfailed ({code}); its whole output is in {log}")
    return {"wall_seconds": time.perf_counter() - started, "cpu_seconds": _cpu_seconds() - cpu}


def _cpu_seconds() -> float:
    """Of the child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def launcher(python: str, ranks: int, gpus: Sequence[str] = ()) -> tuple[list[str], dict[str, str]]:
    """The start of a command that runs a script in `ranks` processes of this host, on the first GPUs or on `gpus`, and
    its environment: `deepspeed` of `python`'s environment, or, for one rank, `python` itself. The port is free, so
    benchmarks may run side by side."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    if ranks == 1:
        return [python], {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1",
                          "MASTER_PORT": port}
    return [python, "-c", "from deepspeed.launcher.runner import main; main()",
            f"--include=localhost:{','.join(gpus)}" if gpus else f"--num_gpus={ranks}", f"--master_port={port}"], {}


def debzero(python: str, folder: Path, name: str, job: dict[str, Any], timeout: float, again: bool = True,
            **environment: str) -> dict[str, Any]:
    """Train `job` with `debzero train` into folder/name, from its start or (not `again`) from where an earlier call was
    stopped; its report, its metrics and the time it took."""
    output = folder / name
    path = folder / f"{name}.yml"
    path.write_text(yaml.safe_dump({**job, "output": str(output)}, sort_keys=False))
    took = run([python, "-m", "debzero", "train", path, *["--again"] * again], folder / f"{name}.log", timeout,
               **environment)
    metrics = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return {**took, "report": json.loads((output / "report.json").read_text()), "metrics": metrics}


def samples_done(step: int, rows: int, batch: int) -> int:
    """Samples trained on after `step` steps; the last step of an epoch holds what is left of the rows."""
    per_epoch = -(-rows // batch)
    return step // per_epoch * rows + step % per_epoch * batch


def steady(metrics: list[dict[str, Any]], rows: int, batch: int, untimed_steps: int) -> dict[str, float]:
    """The samples_per_second and tflops of a debzero run after `untimed_steps`. Each line of its metrics covers the
    steps since the line before it."""
    samples, seconds, work, before = 0, 0.0, 0.0, 0
    for line in metrics:
        if "samples_per_second" not in line:
            continue
        if before >= untimed_steps:
            count = samples_done(line["step"], rows, batch) - samples_done(before, rows, batch)
            spent = count / line["samples_per_second"]
            samples, seconds, work = samples + count, seconds + spent, work + spent * line["tflops"]
        before = line["step"]
    if not samples:
        raise Failed(f"no steps are left after the {untimed_steps} untimed ones; train longer")
    return {"samples_per_second": samples / seconds, "tflops": work / seconds}


def versions(python: str, *packages: str) -> dict[str, Optional[str]]:
    """The versions of the packages that `python` imports (None: not installed)."""
    code = ("import json, sys, importlib.metadata as m\n"
            "def of(name):\n    try: return m.version(name)\n    except m.PackageNotFoundError: return None\n"
            "print(json.dumps({name: of(name) for name in sys.argv[1:]}))")
    found: dict[str, Optional[str]] = json.loads(subprocess.check_output([python, "-c", code, *packages], text=True))
    return found


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


def table(rows: list[Sequence[object]]) -> str:
    """Rows as aligned columns, the first to the left and the others to the right."""
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts)]
    return "\n".join("  ".join([row[0].ljust(widths[0]),
                                *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]).rstrip()
                     for row in texts)
