"""`debzero plan`: predicts a job's memory for each sharding and offload, as a table or as JSON."""
from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, Optional

from debzero.base.errors import InputError, Problem, without_known
from debzero.base.text import bytes_text, count_text
from debzero.deepspeed_json.reader import read_deepspeed
from debzero.job.reader import parse
from debzero.model import tasks
from debzero.model.checks import model_problems
from debzero.plan.activations import LayersNotTrainedError
from debzero.plan.hardware import Hardware, find_hardware
from debzero.plan.model_shapes import Shapes
from debzero.plan.planner import Planner, Row, recommend
from debzero.resolve.host import HostGpus
from debzero.resolve.micro_batch import is_fixed
from debzero.resolve.resolve import resolve
from debzero.resolve.sharding import SHARDINGS


def plan_job(path: Path, gpus: Optional[int], sizes: dict[str, Optional[str]], config: Optional[Path],
             as_json: bool) -> int:
    """The command; returns the exit code. `sizes`: the texts of --gpu-memory, --ram and --nvme; `config`: of --config.
    Raises an InputError with every problem of the job and the command line."""
    hardware, problems = find_hardware(gpus, sizes)
    shapes, settings, of_job = _read(path, hardware, config)
    problems += of_job
    if problems or shapes is None:
        raise InputError(problems)
    try:
        planner = Planner(shapes.job, settings, hardware, str(path), shapes)
        rows = [planner.row(sharding) for sharding in planner.shardings()]
    except InputError:
        raise
    except LayersNotTrainedError as error:
        checkpoints = shapes.job.train.gradient_checkpointing
        cause = f": transformers {version('transformers')} drops their outputs when it checkpoints" * checkpoints
        raise InputError([Problem(str(path), "train.gradient_checkpointing" if checkpoints else "model",
                                  f"{shapes.name} would not learn: {error}{cause}",
                                  "set gradient_checkpointing: false" if checkpoints else "choose another model")
                          ]) from None
    except Exception as error:  # the trace runs the model's own code, which may be anybody's
        raise InputError([Problem(str(path), "model",
                                  f"{shapes.name} cannot be traced: {type(error).__name__}: {error}",
                                  "correct the model's settings; if they are right, `debzero tune` measures it without "
                                  "a prediction")]) from error
    best, why = recommend(rows)
    if as_json:
        print(json.dumps(_as_dict(path, planner, rows, best, why), indent=2))
    else:
        print("\n".join(_as_text(planner, rows, best, why)))
    return 0


def _read(path: Path, hardware: Hardware, config: Optional[Path]) -> tuple[
        Optional[Shapes], Optional[dict[str, Any]], list[Problem]]:
    """The job's model (None where a problem is in the way), its DeepSpeed JSON, and everything wrong with the job."""
    job, wrong = parse(path)
    if job is None:
        return None, None, wrong
    shapes, file = None, str(path)
    settings, found = read_deepspeed(job, file)
    found += tasks.problems(job, file)
    try:
        resolve(job, HostGpus(hardware.gpus, hardware.bf16), None, file, settings)
    except InputError as error:
        found += error.problems
    # Of a folder or a hub's model a plan needs only the configuration, which Shapes looks for.
    if config is None and isinstance(job.model, dict):
        found += model_problems(job, file)
    if not any(p.key.startswith("model") for p in found):
        try:
            shapes = Shapes(job, file, config)
        except InputError as error:
            found += error.problems
    return shapes, settings, [*wrong, *without_known(found, wrong)]


def _as_dict(path: Path, planner: Planner, rows: list[Row], best: Optional[Row], why: str) -> dict[str, Any]:
    """What --json prints."""
    first = planner.resolved(SHARDINGS[0])
    return {
        "ok": True, "job": str(path), "model": {"parameters": planner.counts.total, **planner.shapes.facts()},
        "notes": planner.shapes.notes, "hardware": planner.hardware.as_dict(), "precision": first.precision,
        "ranks": first.batch.ranks, "choices": [row.as_dict() for row in rows],
        "recommended": {**best.as_dict(), "why": why} if best else {"why": why}}


def _as_text(planner: Planner, rows: list[Row], best: Optional[Row], why: str) -> Iterator[str]:
    """The lines for people, at most 100 columns wide."""
    yield from _heading(planner)
    yield ""
    yield "GiB per rank at the peak; RAM and NVMe in GiB for all ranks of the host together"
    yield (f"{'':<34}{'param':>6}{'grad':>6}{'optim':>7}{'activ':>7}{'buffer':>7}{'temp':>6}{'peak':>7}{'RAM':>6}"
           f"{'NVMe':>6}{'micro':>6}")
    for row in rows:
        yield ("* " if row is best else "x " if row.lacks else "  ") + _line(row)
    yield ""
    memory = rows[0].memory
    beyond = bytes_text(memory.device_bytes - memory.peak_bytes)
    yield "*: recommended. x: does not fit. micro: the largest micro-batch that fits."
    yield f"Beyond torch's peak, {rows[0].sharding.label} needs another {beyond} (CUDA context, NCCL, fragmentation)."
    yield ""
    yield f"Recommended: {best.sharding.label}: {why}" if best else f"Nothing fits: {why}"
    if best:
        section = {key: value for key, value in best.sharding.as_dict().items() if key == "stage" or value != "none"}
        yield "  zero: {" + ", ".join(f"{key}: {value}" for key, value in section.items()) + "}"


def _heading(planner: Planner) -> Iterator[str]:
    """The model, the batch and the hardware that the table is about."""
    hardware, first = planner.hardware, planner.resolved(SHARDINGS[0])
    train, batch = first.job.train, first.batch
    yield (f"{planner.shapes.name}: {_millions(planner.counts.total)} M parameters, {first.precision}, sequences of "
           f"{first.job.data.max_length} tokens" + (", gradient checkpointing" if train.gradient_checkpointing else ""))
    automatic = train.micro_batch == "auto" and not is_fixed(planner.resolved(None))
    ranks = count_text(batch.ranks, "rank")
    yield (f"  global batch {batch.total} on {ranks}; each row with the largest micro-batch that fits" if automatic
           else f"  {batch}")
    yield (f"  on {count_text(hardware.gpus, 'GPU')} with {_gib(hardware.gpu_memory)} GiB each, "
           f"{_gib(hardware.ram)} GiB RAM, {_gib(hardware.nvme)} GiB NVMe")
    yield f"  ({hardware.source})"
    yield from (line for note in planner.shapes.notes
                for line in textwrap.wrap(f"note: {note}", 100, initial_indent="  ", subsequent_indent=" " * 8))


def _millions(parameters: int) -> str:
    return f"{parameters / 1e6:.1f}" if parameters >= 10**6 else f"{parameters / 1e6:.2g}"


def _line(row: Row) -> str:
    parts, gib = row.memory.parts_bytes, 2**30
    return (f"{row.sharding.label:<32}{_gib(parts['parameters']):>6}{_gib(parts['gradients']):>6}"
            f"{_gib(parts['optimizer']):>7}{_gib(parts['activations']):>7}{_gib(parts['buffers']):>7}"
            f"{_gib(parts['temporary']):>6}{_gib(row.memory.peak_bytes):>7}{row.ram_bytes / gib:>6.0f}"
            f"{row.nvme_bytes / gib:>6.0f}{row.largest_micro_batch:>6}")


def _gib(value: float) -> str:
    """Bytes in GiB, in at most six characters up to 1 PiB."""
    return f"{value / 2**30:.2f}" if value < 100 * 2**30 else f"{value / 2**30:.0f}"
