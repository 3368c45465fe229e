"""`debzero plan`: what a job will need for each way to shard and offload it, before a GPU is touched or a weight is
there."""
from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Optional

from debzero.base.errors import InputError, Problem, without_known
from debzero.deepspeed_json.reader import read_deepspeed
from debzero.job.reader import parse
from debzero.model import tasks
from debzero.model.checks import model_problems
from debzero.plan.hardware import find_hardware
from debzero.plan.model_shapes import Shapes
from debzero.plan.planner import Planner, Row, recommend
from debzero.resolve.host import Host
from debzero.resolve.micro_batch import is_fixed
from debzero.resolve.resolve import resolve
from debzero.resolve.sharding import SHARDINGS


def plan_job(path: Path, gpus: Optional[int], sizes: dict[str, Optional[str]], config: Optional[Path],
             as_json: bool) -> int:
    """The command. `sizes`: the texts of --gpu-memory, --ram and --nvme."""
    there, problems = find_hardware(gpus, sizes)
    job, wrong = parse(path)
    problems += wrong
    shapes = None
    if job is not None:
        settings, found = read_deepspeed(job, str(path))
        found += tasks.problems(job, str(path))
        try:
            resolve(job, Host(there.gpus, there.bf16), None, str(path), settings)
        except InputError as error:
            found += error.problems
        # A folder or a hub's model is Shapes' to judge, which wants less of it than a training does.
        if config is None and isinstance(job.model, dict):
            found += model_problems(job, str(path))
        if not any(p.key.startswith("model") for p in found):
            try:
                shapes = Shapes(job, str(path), config)
            except InputError as error:
                found += error.problems
        problems += without_known(found, wrong)
    if problems or job is None or shapes is None:
        raise InputError(problems)
    try:
        planner = Planner(job, settings, there, str(path), shapes)
        rows = [planner.row(sharding) for sharding in planner.shardings()]
    except InputError:
        raise
    except Exception as error:  # anybody's model may come, and its code is run as it is
        raise InputError([Problem(str(path), "model",
                                  f"{shapes.name} cannot be followed: {type(error).__name__}: {error}",
                                  "plan a model of a usual architecture; `debzero tune` measures any")]) from error
    best, why = recommend(rows)
    if as_json:
        print(json.dumps({
            "ok": True, "job": str(path), "model": {"parameters": planner.model.total, **shapes.facts()},
            "notes": shapes.notes, "hardware": asdict(there), "precision": planner.plan(SHARDINGS[0]).precision,
            "ranks": planner.plan(SHARDINGS[0]).batch.ranks, "choices": [row.as_dict() for row in rows],
            "recommended": {**best.as_dict(), "why": why} if best else {"why": why}}, indent=2))
    else:
        print("\n".join(_text(planner, rows, best, why)))
    return 0


def _gib(value: float) -> str:
    return f"{value / 2**30:.2f}" if value < 100 * 2**30 else f"{value / 2**30:.0f}"


def _text(planner: Planner, rows: list[Row], best: Optional[Row], why: str) -> Iterator[str]:
    """The table for people, at most 100 columns wide."""
    there, first = planner.hardware, planner.plan(SHARDINGS[0])
    train = first.job.train
    yield (f"{planner.shapes.name}: {planner.model.total / 1e6:.1f} M parameters, {first.precision}, sequences of "
           f"{first.job.data.max_length} tokens" + (", gradient checkpointing" if train.gradient_checkpointing else ""))
    yield (f"  global batch {first.batch.total} on {first.batch.ranks} rank{'s' if first.batch.ranks > 1 else ''}, "
           "each way with the largest micro-batch that fits" if train.micro_batch == "auto"
           and not is_fixed(planner.plan(None)) else f"  {first.batch}")
    yield (f"  on {there.gpus} GPU{'s' if there.gpus > 1 else ''} of {_gib(there.gpu_memory)} GiB, {_gib(there.ram)} "
           f"GiB RAM, {_gib(there.nvme)} GiB NVMe")
    yield f"  ({there.words})"
    yield from (f"  note: {note}" for note in planner.shapes.notes)
    yield ""
    yield "GiB per rank at the peak; host RAM and NVMe of all ranks together"
    yield (f"{'':<34}{'param':>6}{'grad':>6}{'optim':>7}{'activ':>7}{'buffer':>7}{'temp':>6}{'peak':>7}{'RAM':>6}{'NVMe':>6}"
           f"{'micro':>6}")
    for row in rows:
        parts = row.memory.parts
        mark = "*" if best is row else " " if not row.lacks else "x"
        yield (f"{mark} {row.sharding.label:<32}{_gib(parts['parameters']):>6}{_gib(parts['gradients']):>6}{_gib(parts['optimizer']):>7}"
               f"{_gib(parts['activations']):>7}{_gib(parts['buffers']):>7}{_gib(parts['temporary']):>6}{_gib(row.memory.peak):>7}"
               f"{row.host / 2**30:>6.0f}{row.nvme / 2**30:>6.0f}{row.largest_micro:>6}")
    yield ""
    yield "x: does not fit. micro: the largest micro-batch that fits. The peak is the allocator's; the device"
    needed = _gib(rows[0].memory.device - rows[0].memory.peak)
    yield f"needs {needed} GiB more for {rows[0].sharding.label} (CUDA context, NCCL, fragments)."
    yield ""
    yield f"Recommended: {best.sharding.label}, {why}" if best else f"Nothing fits: {why}"
    if best:
        lines = best.sharding.as_dict()
        yield "  zero: {" + ", ".join(f"{key}: {value}" for key, value in lines.items() if key == "stage"
                                      or value != "none") + "}"
