"""What `debzero plan` says of a job whose model is divided over ranks (`parallel`): its memory and its waiting."""
from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Optional

from debzero.base.text import bytes_text, count_text
from debzero.job.schema import Parallel
from debzero.plan.hardware import Hardware
from debzero.plan.memory import MOMENTS
from debzero.plan.model_shapes import Shapes
from debzero.plan.parts import PartOfShapes
from debzero.plan.planner import Planner
from debzero.resolve.host import HostGpus
from debzero.resolve.resolve import resolve
from debzero.resolve.sharding import Sharding


def bubble(micro_batches: int, stages: int) -> float:
    """The share of a step in which a pipeline stage waits (Huang et al. 2019, "GPipe", section 2.3)."""
    return (stages - 1) / (micro_batches + stages - 1)


def plan(shapes: Shapes, settings: Optional[dict[str, Any]], hardware: Hardware, path: Path) -> dict[str, Any]:
    """The facts, as --json prints them. Stages are taken to be equal."""
    resolved = resolve(shapes.job, HostGpus(hardware.gpus, hardware.bf16), None, str(path), settings)
    job, batch, ways = resolved.job, resolved.batch, resolved.layout
    # The engine is plain data parallelism's, which keeps all in fp32, but does not compile layers.
    train = job.train.model_copy(update={"micro_batch": batch.micro, "compile": "never"})
    copy = job.model_copy(update={"parallel": Parallel(), "ranks": batch.ranks, "train": train})
    part = PartOfShapes(shapes, ways, cache(shapes.curve))
    memory = Planner(copy, settings, hardware, str(path), part).row(Sharding(0)).memory
    saved = int(MOMENTS * part.counts.total * (1 - 1 / batch.ranks)) if resolved.stage else 0
    need = (memory.device_bytes - saved) * -(-ways.ranks // hardware.gpus)
    return {"ok": True, "job": str(path), "model": {"parameters": shapes.counts.total, **shapes.facts()},
            "hardware": hardware.as_dict(), "precision": resolved.precision, "ranks": ways.ranks,
            "pipeline": ways.stage, "tensor": ways.tensor, "copies": batch.ranks, "micro_batch": batch.micro,
            "accumulation": batch.accumulation, "parameters_per_rank": part.counts.total,
            "peak_bytes": memory.peak_bytes - saved, "device_bytes": need, "fits": need <= hardware.gpu_memory,
            "bubble_share": bubble(batch.accumulation, ways.stage)}


def text(facts: dict[str, Any]) -> Iterator[str]:
    """The lines for people."""
    stages, micros = facts["pipeline"], facts["accumulation"]
    yield (f"{facts['model']['name']}, {facts['model']['parameters'] / 1e6:.0f} million parameters, "
           f"{facts['precision']}, micro-batch {facts['micro_batch']}")
    yield (f"  layout   {count_text(facts['ranks'], 'rank')} = {facts['pipeline']} (pipeline) x {facts['tensor']} "
           f"(tensor) x {facts['copies']} (copies)")
    fits = "which fits" if facts["fits"] else "which does not fit"
    yield (f"  memory   each GPU needs about {bytes_text(facts['device_bytes'])} of "
           f"{bytes_text(facts['hardware']['gpu_memory'])}, {fits}; each rank has "
           f"{facts['parameters_per_rank'] / 1e6:.0f} million parameters")
    if stages > 1:
        yield (f"  waiting  {facts['bubble_share']:.0%} of each step: ({stages} - 1) / ({micros} + {stages} - 1), with "
               f"{count_text(micros, 'micro-batch')} a step")
    yield "  Stages are taken to be equal; their speed is not predicted here: see debzero plan --hosts."
