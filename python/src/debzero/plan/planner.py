"""What a job will need for each sharding, and which one to choose."""
from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
import inspect
from dataclasses import asdict, dataclass
from typing import Any, Optional

from debzero.deepspeed_json.view import normalized
from debzero.job import batch as batches
from debzero.job.schema import Job
from debzero.plan.activations import Curve
from debzero.plan.hardware import Hardware
from debzero.plan.memory import CONTEXT, Memory, Model, Setting, predict
from debzero.plan.model_shapes import Shapes
from debzero.resolve import deepspeed_config
from debzero.resolve.host import Host
from debzero.resolve.micro_batch import is_fixed, with_micro
from debzero.resolve.resolve import ResolvedJob, resolve
from debzero.resolve.sharding import SHARDINGS, Sharding

STEPS = 1000  # the schedule's, which takes no memory


@dataclass(frozen=True)
class Row:
    """A sharding, and what it comes to."""

    sharding: Sharding
    micro: int           # the job's; where that is auto, the largest that fits
    accumulation: int
    memory: Memory
    host: int            # bytes, all ranks together
    nvme: int
    lacks: list[str]     # what there is too little of
    largest_micro: int   # 0: not even one sample fits

    def as_dict(self) -> dict[str, Any]:
        memory = asdict(self.memory)
        return {**self.sharding.as_dict(),
                "micro_batch": self.micro, "accumulation": self.accumulation, "peak_bytes": memory["peak"],
                "peak_phase": memory["phase"], "parts": memory["parts"], "phases": memory["phases"],
                "context_bytes": CONTEXT, "device_bytes": memory["device"], "ram_bytes": self.host,
                "nvme_bytes": self.nvme, "fits": not self.lacks, "lacks": self.lacks,
                "largest_micro_batch": self.largest_micro}


def _variant(job: Job, config: Optional[dict[str, Any]], sharding: Sharding) -> tuple[Job, Optional[dict[str, Any]]]:
    """The job and the user's DeepSpeed JSON with another sharding in them."""
    # Where the job names no disk, any path will do: nothing is written.
    update = {"stage": sharding.stage or "none", "offload_optimizer": sharding.offload_optimizer,
              "offload_param": sharding.offload_param, "nvme_path": job.zero.nvme_path or "/"}
    if config is not None:
        config = normalized(copy.deepcopy(config))
        section = config.get("zero_optimization")
        for key in ("stage", "offload_optimizer", "offload_param"):
            if isinstance(section, dict):
                section.pop(key, None)
        if not sharding.stage:
            config = None  # the baseline knows no DeepSpeed
    return job.model_copy(update={"zero": job.zero.model_copy(update=update)}), config


def _setting(resolved: ResolvedJob, hidden: int) -> Setting:
    import torch

    zero: dict[str, Any] = {}
    if resolved.uses_deepspeed:
        zero = deepspeed_config.generate(resolved, hidden, STEPS, resolved.job.zero.nvme_path or "/")["zero_optimization"]
    return Setting(resolved.stage, resolved.batch.ranks, resolved.batch.micro, resolved.batch.accumulation, resolved.precision, zero,
                   fused="fused" in inspect.signature(torch.optim.AdamW).parameters, release=_deepspeed())


def _deepspeed() -> tuple[int, int]:
    """The installed release, else the one that debzero installs."""
    try:
        version = importlib.metadata.version("deepspeed")
    except importlib.metadata.PackageNotFoundError:
        from debzero.base.stack import stack

        version = str(stack()["deepspeed"])
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def _compiles(resolved: ResolvedJob) -> bool:
    """What engine.py does: layers are compiled by the torch releases that speed.can_compile names, but in stage 3."""
    import torch

    release = tuple(int(part) for part in torch.__version__.split(".")[:2])
    return resolved.job.train.compile == "auto" and resolved.stage < 3 and release >= (2, 4) and importlib.util.find_spec("triton") is not None


class Planner:
    """A job on some hardware. The traces, which take most of the time, are made once for each kind."""

    def __init__(self, job: Job, config: Optional[dict[str, Any]], hardware: Hardware, file: str,
                 shapes: Shapes) -> None:
        self.job, self.config, self.hardware, self.file, self.shapes = job, config, hardware, file, shapes
        self.model: Model = shapes.model()
        self.curves: dict[tuple[str, bool], Curve] = {}

    def plan(self, sharding: Optional[Sharding]) -> ResolvedJob:
        """The job with this sharding, or its own."""
        job, config = _variant(self.job, self.config, sharding) if sharding else (self.job, self.config)
        return resolve(job, Host(self.hardware.gpus, self.hardware.bf16), None, self.file, config)

    def memory(self, resolved: ResolvedJob) -> Memory:
        compiled = _compiles(resolved)
        kind = resolved.precision if resolved.uses_deepspeed or resolved.precision == "fp32" else f"autocast {resolved.precision}"
        if (kind, compiled) not in self.curves:
            self.curves[kind, compiled] = self.shapes.curve(kind, compiled)
        return predict(self.model, self.curves[kind, compiled], _setting(resolved, self.shapes.hidden), compiled)

    def shardings(self) -> list[Sharding]:
        """SHARDINGS, and the job's own where it is none of them."""
        own = self.plan(None).sharding
        return SHARDINGS + [own] * (own not in SHARDINGS)

    def row(self, sharding: Sharding) -> Row:
        resolved = self.plan(sharding)
        largest = self._largest(resolved)
        if largest and resolved.job.train.micro_batch == "auto":  # as fit.at_start does
            resolved = with_micro(resolved, largest)
        memory = self.memory(resolved)
        return Row(sharding, resolved.batch.micro, resolved.batch.accumulation, memory, memory.host * resolved.batch.ranks,
                   memory.nvme * resolved.batch.ranks, self._lacks(memory, resolved.batch), largest)

    def _lacks(self, memory: Memory, batch: batches.Batch) -> list[str]:
        there = self.hardware
        sharing = -(-batch.ranks // there.gpus)  # ranks on one GPU
        needs = {"GPU memory": (memory.device * sharing, there.gpu_memory),
                 "RAM": (memory.host * batch.ranks, there.ram), "NVMe": (memory.nvme * batch.ranks, there.nvme)}
        return [name for name, (need, have) in needs.items() if need > have]

    def _largest(self, own: ResolvedJob) -> int:
        """The largest micro-batch that fits and keeps the global batch: a divisor of a rank's share of it."""
        batch = own.batch
        sizes = [batch.micro] if is_fixed(own) else reversed(batches.divisors(batch.total // batch.ranks))
        for micro in sizes:
            resolved = with_micro(own, micro)
            if not self._lacks(self.memory(resolved), resolved.batch):
                return micro
        return 0


def recommend(rows: list[Row]) -> tuple[Optional[Row], str]:
    """The sharding that fits with the least communication, and why it is that one."""
    fitting = [row for row in rows if not row.lacks]
    if fitting:
        first, earlier = fitting[0], rows[:rows.index(fitting[0])]
        why = "it fits, and nothing has to be sharded or offloaded" if not earlier else (
            f"it talks the least of those that fit: {earlier[-1].sharding.label} lacks "
            f"{' and '.join(earlier[-1].lacks)}")
        return first, why
    smaller = [row for row in rows if row.largest_micro]
    if smaller:
        return smaller[0], f"only with a smaller micro-batch: set train.micro_batch to {smaller[0].largest_micro} or less"
    return None, "not even one sample at a time fits in any way: use more or larger GPUs, more RAM or NVMe, or a smaller model"


