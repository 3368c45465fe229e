"""What `debzero plan` says of a job whose model is divided over ranks (`parallel`): the memory of each pipeline stage,
and how long it waits."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Optional

import numpy as np

from debzero.base.text import bytes_text, count_text
from debzero.job import batch as batches
from debzero.model.divisible import stage_layers
from debzero.plan.activations import Curve
from debzero.plan.hardware import Hardware
from debzero.plan.host_memory import HostMemory, host_memory
from debzero.plan.memory import FLOAT, MOMENTS, WORKSPACES, EngineMemory, Memory, Parts, Setting, of_engine
from debzero.plan.model_shapes import Shapes
from debzero.plan.parts import PartOfShapes, overlaid
from debzero.plan.planner import setting_of
from debzero.resolve.host import HostGpus
from debzero.resolve.layout import Layout
from debzero.resolve.micro_batch import is_fixed, with_micro
from debzero.resolve.native import BUCKET
from debzero.resolve.resolve import ResolvedJob, resolve


def bubble(micro_batches: int, stages: int) -> float:
    """The share of a step in which a pipeline stage waits, with 1F1B's order as with GPipe's (Narayanan et al. 2021,
    "Efficient Large-Scale Language Model Training on GPU Clusters", section 2.2)."""
    return (stages - 1) / (micro_batches + stages - 1)


@dataclass(frozen=True)
class StageNeeds:
    """What a rank of one pipeline stage holds; of several tensor-parallel ranks the first, which has the most."""

    number: int          # from 0
    layers: range
    parameters: int
    in_flight: int       # micro-batches whose activations it holds at once
    memory: Memory

    def as_dict(self) -> dict[str, Any]:
        memory = self.memory
        return {"stage": self.number, "first_layer": self.layers.start, "layers": len(self.layers),
                "parameters": self.parameters, "in_flight": self.in_flight, "peak_bytes": memory.peak_bytes,
                "peak_phase": memory.phase, "parts": memory.parts_bytes, "device_bytes": memory.device_bytes}


def largest(stages: Sequence[StageNeeds]) -> StageNeeds:
    """The one that needs the most."""
    return max(stages, key=lambda needs: needs.memory.peak_bytes)


class DividedMemory:
    """The memory of the stages of one layout. Traces take most of the time; there is one for each stage."""

    def __init__(self, shapes: Shapes, layout: Layout, wanted: Optional[set[int]] = None) -> None:
        """`layout`: the number of copies does not matter here; `wanted`: the stages to look at, all by default."""
        self.layers = stage_layers(shapes.config, layout.stage)
        self.parts = [PartOfShapes(shapes, layout, number) for number in sorted(wanted or range(layout.stage))]
        self.curves: dict[tuple[int, str], Curve] = {}

    def stages(self, resolved: ResolvedJob) -> list[StageNeeds]:
        return [self._of_stage(part, resolved) for part in self.parts]

    def largest(self, resolved: ResolvedJob) -> StageNeeds:
        return largest(self.stages(resolved))

    def _of_stage(self, part: PartOfShapes, resolved: ResolvedJob) -> StageNeeds:
        setting, precision = setting_of(resolved, part.hidden), resolved.precision
        key = part.number, precision if precision == "fp32" else f"autocast {precision}"
        if key not in self.curves:
            self.curves[key] = part.curve(key[1], False)
        count, counts = part.in_flight(setting.accumulation), part.counts
        engine = _engine(part, setting, resolved.stage == 1)
        memory = of_engine(engine, counts, overlaid(self.curves[key], count), setting)
        return StageNeeds(part.number, self.layers[part.number], counts.total, count, memory)


def _engine(part: PartOfShapes, setting: Setting, shards: bool) -> EngineMemory:
    """train/engine_parallel: everything in fp32, as in plain DDP, but no graphs, which would keep NCCL's memory. ZeRO-1
    (`shards`) leaves each copy the moments of some parameters. What a stage sends stays until the step ends."""
    model, copies = part.counts, setting.ranks
    total, largest = model.total, max(model.each)
    passed = part.passed_bytes() * setting.micro_batch * (setting.accumulation - 1)  # one more is in the curve
    base = Parts(parameters=FLOAT * total, optimizer=MOMENTS * total / (copies if shards else 1),
                 buffers=model.buffers_bytes + WORKSPACES + passed)

    def gradients(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
        held = FLOAT * (np.full_like(curve.gradients, total) if setting.accumulation > 1 else curve.gradients)
        return held, np.zeros_like(held)

    # The squares of a gradient for the norm; unfused AdamW's square roots and denominators of a whole group; a bucket
    # of weights for the other copies.
    working = FLOAT * max(largest, 0 if setting.fused else 2 * max(map(sum, model.groups)),
                          min(total, max(BUCKET, largest)) if shards and copies > 1 else 0)
    return base, gradients, {"step": replace(base, gradients=FLOAT * total, temporary=working)}


@dataclass(frozen=True)
class DividedPlan:
    """A divided job on some hardware. `largest_micro_batch`: 0 where none fits."""

    resolved: ResolvedJob
    stages: list[StageNeeds]
    host: HostMemory
    hardware: Hardware
    largest_micro_batch: int

    @property
    def largest(self) -> StageNeeds:
        return largest(self.stages)

    @property
    def device_bytes(self) -> int:
        """Of the GPU that needs the most."""
        return self.largest.memory.device_bytes * -(-self.resolved.layout.ranks // self.hardware.gpus)

    @property
    def lacks(self) -> list[str]:
        return (["GPU memory"] * (self.device_bytes > self.hardware.gpu_memory)
                + ["RAM"] * (self.host.total > self.hardware.ram))


def plan_divided(shapes: Shapes, resolved: ResolvedJob, hardware: Hardware) -> DividedPlan:
    """With the job's micro-batch; for `auto` with the one that a training would begin with."""
    memory, layout, batch = DividedMemory(shapes, resolved.layout), resolved.layout, resolved.batch
    # Each rank builds the whole model before it keeps its part.
    host = host_memory(0, shapes.counts.total, False, layout.ranks, isinstance(resolved.job.model, dict), hardware.ram)

    def planned(micro: int) -> DividedPlan:
        asked = with_micro(resolved, micro) if micro != batch.micro else resolved
        return DividedPlan(asked, memory.stages(asked), host, hardware, micro)

    sizes = [batch.micro] if is_fixed(resolved) else batches.divisors(batch.total // batch.ranks)[::-1]
    fits = next((micro for micro in sizes if "GPU memory" not in planned(micro).lacks), 0)
    return replace(planned(batch.micro), largest_micro_batch=fits)


def plan(shapes: Shapes, settings: Optional[dict[str, Any]], hardware: Hardware, path: Path) -> dict[str, Any]:
    """The facts, as --json prints them. What has no stage in its name is the largest one's."""
    resolved = resolve(shapes.job, HostGpus(hardware.gpus, hardware.bf16), None, str(path), settings)
    found = plan_divided(shapes, resolved, hardware)
    batch, ways, most = resolved.batch, resolved.layout, found.largest
    return {"ok": True, "job": str(path), "model": {"parameters": shapes.counts.total, **shapes.facts()},
            "notes": shapes.notes, "hardware": hardware.as_dict(), "precision": resolved.precision,
            "ranks": ways.ranks, "pipeline": ways.stage, "tensor": ways.tensor, "copies": batch.ranks,
            "micro_batch": batch.micro, "accumulation": batch.accumulation,
            "stages": [stage.as_dict() for stage in found.stages], "largest_stage": most.number,
            "parameters_per_rank": most.parameters, "peak_bytes": most.memory.peak_bytes,
            "device_bytes": found.device_bytes, "ram_bytes": found.host.total, "fits": not found.lacks,
            "lacks": found.lacks, "largest_micro_batch": found.largest_micro_batch,
            "bubble_share": bubble(batch.accumulation, ways.stage)}


def text(facts: dict[str, Any]) -> Iterator[str]:
    """The lines for people."""
    stages, micros, hardware = facts["pipeline"], facts["accumulation"], facts["hardware"]
    yield (f"{facts['model']['name']}, {facts['model']['parameters'] / 1e6:.0f} million parameters, "
           f"{facts['precision']}, micro-batch {facts['micro_batch']}")
    yield (f"  layout     {count_text(facts['ranks'], 'rank')} = {stages} (pipeline) x {facts['tensor']} "
           f"(tensor) x {facts['copies']} (copies)")
    for stage in facts["stages"]:
        yield _line(stage, stages, facts["largest_stage"])
    fits = "which fits" if facts["fits"] else f"which does not fit: too little {' and '.join(facts['lacks'])}"
    yield (f"  memory     a GPU needs about {bytes_text(facts['device_bytes'])} of "
           f"{bytes_text(hardware['gpu_memory'])}, the host {bytes_text(facts['ram_bytes'])} of "
           f"{bytes_text(hardware['ram'])}, {fits}")
    yield (f"  largest    micro-batch that fits: {facts['largest_micro_batch']}" if facts["largest_micro_batch"]
           else "  largest    not even a micro-batch of one sample fits")
    if stages > 1:
        yield (f"  waiting    {facts['bubble_share']:.0%} of each step: ({stages} - 1) / ({micros} + {stages} - 1), "
               f"with {count_text(micros, 'micro-batch')} a step")
    yield "  Stages are taken to be equally fast; debzero plan --hosts predicts the speed."


def _line(stage: dict[str, Any], stages: int, largest: int) -> str:
    """Of one stage; `largest`: the number of the one that needs the most."""
    name = f"stage {stage['stage'] + 1}" if stages > 1 else "each rank"
    layers = f"layers {stage['first_layer'] + 1} to {stage['first_layer'] + stage['layers']}"
    holds = f", {count_text(stage['in_flight'], 'micro-batch')} at once" if stages > 1 else ""
    mark = "  (the largest)" if stages > 1 and stage["stage"] == largest else ""
    return (f"  {name:<11}{bytes_text(stage['device_bytes'])}: a peak of {bytes_text(stage['peak_bytes'])}, {layers}, "
            f"{stage['parameters'] / 1e6:.0f} million parameters{holds}{mark}")
