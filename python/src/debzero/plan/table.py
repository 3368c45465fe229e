"""`debzero plan`: predicts a job's memory for each sharding and offload, as a table or as JSON."""
from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Optional

from debzero.base.text import bytes_text, count_text, printable
from debzero.deepspeed_json.view import ZERO
from debzero.plan import divided
from debzero.plan.hardware import find_hardware
from debzero.plan.host_memory import PROCESS, system_bytes
from debzero.plan.inputs import open_job, tracing
from debzero.plan.memory import CONTEXT, FRAGMENTED
from debzero.plan.planner import NO_ROOM, Planner, Row, recommend, speed_words
from debzero.plan.speed import measured
from debzero.resolve.micro_batch import is_fixed
from debzero.resolve.sharding import SHARDINGS

# The parts of a peak, and their columns.
PARTS = {"parameters": "param", "gradients": "grad", "optimizer": "optim", "activations": "activ",
         "buffers": "buffer", "temporary": "temp"}


def plan_job(path: Path, gpus: Optional[int], sizes: dict[str, Optional[str]], config: Optional[Path],
             as_json: bool) -> int:
    """The command; returns the exit code. `sizes`: the texts of --gpu-memory, --ram and --nvme; `config`: of --config.
    Raises an InputError with every problem of the job and the command line."""
    opened = open_job(path, config)
    hardware, problems = find_hardware(gpus, sizes)
    shapes, settings = opened.inputs(hardware, problems)
    if shapes.job.parallel.each > 1:
        with tracing(path, shapes):
            facts = divided.plan(shapes, settings, hardware, path)
        print(json.dumps(facts, indent=2) if as_json else "\n".join(map(printable, divided.text(facts))))
        return 0
    with tracing(path, shapes):
        planner = Planner(shapes.job, settings, hardware, str(path), shapes)
        rows = [planner.row(sharding) for sharding in planner.shardings()]
    own = planner.resolved(None)
    best, why = recommend(rows, own.origins.text("train.micro_batch") if own.deepspeed and is_fixed(own) else "")
    if as_json:
        print(json.dumps(_as_dict(path, planner, rows, best, why), indent=2))
    else:
        print("\n".join(map(printable, _as_text(planner, rows, best, why))))
    return 0


def _as_dict(path: Path, planner: Planner, rows: list[Row], best: Optional[Row], why: str) -> dict[str, Any]:
    """What --json prints."""
    first = planner.resolved(SHARDINGS[0])
    return {
        "ok": True, "job": str(path), "model": {"parameters": planner.counts.total, **planner.shapes.facts()},
        "notes": planner.shapes.notes, "hardware": planner.hardware.as_dict(), "precision": first.precision,
        "ranks": first.batch.ranks, "choices": [row.as_dict() for row in rows],
        "recommended": {**best.as_dict(), "why": why, "speed": speed_words(best, rows)} if best else {"why": why},
        "speed_measured": asdict(measured(first.batch.ranks, planner.native))}


def _as_text(planner: Planner, rows: list[Row], best: Optional[Row], why: str) -> Iterator[str]:
    """The lines for people, at most 100 columns wide."""
    yield from _heading(planner)
    yield ""
    yield "What a rank holds on its GPU at the peak, in GiB (-: nothing of it in that phase)"
    yield f"{'':<34}" + "".join(f"{name:>7}" for name in (*PARTS.values(), "peak")) + "  phase"
    for row in rows:
        yield f"  {row.sharding.label:<32}{_parts(row)}"
    yield ""
    yield "What each choice needs, in GiB: each GPU, and RAM and NVMe of the whole host; and its speed"
    yield f"{'':<34}{'GPU':>7}{'RAM':>7}{'NVMe':>7}{'micro':>7}{'speed':>15}"
    for row in rows:
        yield ("* " if row is best else "x " if row.lacks else "  ") + _needs(planner, row)
    yield ""
    yield from _legend(planner, rows)
    yield ""
    yield f"Recommended: {best.sharding.label}: {why}" if best else f"Nothing fits: {why}"
    if best:
        yield from textwrap.wrap(speed_words(best, rows), 100, initial_indent="  ", subsequent_indent="  ")
        yield f"  {_section(planner, best)}"


def _parts(row: Row) -> str:
    parts = row.memory.parts_bytes
    shown = [_gib(parts[name]) if parts[name] else "-" for name in PARTS]
    return "".join(f"{text:>7}" for text in (*shown, _gib(row.memory.peak_bytes))) + f"  {row.memory.phase}"


def _needs(planner: Planner, row: Row) -> str:
    ranks = planner.resolved(row.sharding).batch.ranks
    gpu = row.memory.device_bytes * -(-ranks // planner.hardware.gpus)
    speed = "not measured" if row.speed is None else f"{row.speed:.2f}"
    return (f"{row.sharding.label:<32}{_gib(gpu):>7}{_gib(row.host.total):>7}{_gib(row.nvme_bytes):>7}"
            f"{row.largest_micro_batch:>7}{speed:>15}")


def _legend(planner: Planner, rows: list[Row]) -> Iterator[str]:
    """How the numbers are made."""
    small = [row.sharding.label for row in rows if row.favour == "memory"]
    if small and planner.job.zero.favour == "speed":
        yield from textwrap.wrap(f"DeepSpeed's buffers are {NO_ROOM}: {', '.join(small)}.", 100, subsequent_indent="  ")
    ranks, hardware = planner.resolved(None).batch.ranks, planner.hardware
    source = measured(ranks, planner.native)
    yield "*: recommended. x: does not fit. micro: the largest micro-batch that fits."
    for text in (
            f"GPU: a rank's peak, {FRAGMENTED:.0%} of it for fragmentation, and {bytes_text(CONTEXT)} for the CUDA "
            "context, kernels and NCCL. nvidia-smi may show more: torch keeps what it has freed.",
            f"RAM: of each rank the larger of what it offloads and of the model while it is loaded, and "
            f"{bytes_text(PROCESS)} for its process; and {bytes_text(system_bytes(hardware.ram))} of "
            f"{bytes_text(hardware.ram)} for the system.",
            f"speed: samples/s against plain DDP with the same micro-batch, measured with {source.what} "
            f"(docs/benchmarks/{source.file}). Other models and GPUs differ: `debzero tune` measures them."):
        yield from textwrap.wrap(text, 100, subsequent_indent="  ")


def _section(planner: Planner, best: Row) -> str:
    """The recommended settings, as the user's file has them: the job, or the DeepSpeed JSON that overrules it."""
    section = {key: value for key, value in best.sharding.as_dict().items() if key == "stage" or value != "none"}
    origins = planner.resolved(None).origins
    if not {"zero.stage", "zero.offload_optimizer", "zero.offload_param"} & set(origins.keys):
        return "zero: {" + ", ".join(f"{key}: {value}" for key, value in section.items()) + "}"
    values = {key: best.sharding.stage if key == "stage" else {"device": value} for key, value in section.items()}
    where = "" if origins.prefix else f", in {origins.json_file}"
    return f'"{ZERO}": {json.dumps(values)}{where}'


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


def _gib(value: float) -> str:
    """Bytes in GiB, in at most six characters up to 1 PiB."""
    return f"{value / 2**30:.2f}" if value < 100 * 2**30 else f"{value / 2**30:.0f}"
