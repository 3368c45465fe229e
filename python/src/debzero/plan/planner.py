"""Predicts what a job needs with each sharding, and recommends one."""
from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
import inspect
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Callable, Optional

from debzero.deepspeed_json.view import normalized, renamed
from debzero.job import batch as batches
from debzero.job.schema import Favour, Job
from debzero.plan.activations import Curve
from debzero.plan.hardware import Hardware
from debzero.plan.host_memory import HostMemory, host_memory
from debzero.plan.memory import CONTEXT, Memory, Setting, predict
from debzero.plan.model_shapes import Shapes
from debzero.plan.speed import relative_speed
from debzero.resolve import deepspeed_config
from debzero.resolve.host import HostGpus
from debzero.resolve.micro_batch import is_fixed, with_micro
from debzero.resolve.resolve import ResolvedJob, resolve
from debzero.resolve.sharding import SHARDINGS, Sharding

SPARE = 0.1   # of a GPU's memory: what DeepSpeed's buffers for speed leave free, or are not used
SMALL = "small ones (zero.favour: memory), as"
NO_ROOM = f"{SMALL} those of favour: speed would leave less than {SPARE:.0%} of the GPU's memory free"
STEPS = 1000  # of the learning rate's schedule; any number will do, as it takes no memory


@dataclass(frozen=True)
class Row:
    """One sharding and its predicted memory."""

    sharding: Sharding
    micro_batch: int           # samples: the job's; for `auto` the largest that fits
    accumulation: int          # micro-batches per optimizer step
    memory: Memory             # of one rank
    host: HostMemory           # of all ranks together, and the system's
    nvme_bytes: int            # of all ranks together
    lacks: list[str]           # what the hardware has too little of: GPU memory, RAM, NVMe
    largest_micro_batch: int   # samples; 0: not even one fits
    speed: Optional[float]     # samples per second against plain DDP, where it was measured
    favour: Optional[Favour] = None  # what DeepSpeed's buffers are for, where it trains

    def as_dict(self) -> dict[str, Any]:
        """As --json and the bench's results have it."""
        memory = self.memory
        return {**self.sharding.as_dict(),
                "micro_batch": self.micro_batch, "accumulation": self.accumulation, "peak_bytes": memory.peak_bytes,
                "peak_phase": memory.phase, "parts": memory.parts_bytes, "phases": memory.phases_bytes,
                "context_bytes": CONTEXT, "device_bytes": memory.device_bytes, "ram_bytes": self.host.total,
                "ram_parts": self.host.parts(), "nvme_bytes": self.nvme_bytes, "fits": not self.lacks,
                "lacks": self.lacks, "largest_micro_batch": self.largest_micro_batch, "relative_speed": self.speed,
                "favour": self.favour}


def _variant(job: Job, config: Optional[dict[str, Any]], sharding: Sharding,
             own: Callable[[], ResolvedJob]) -> tuple[Job, Optional[dict[str, Any]]]:
    """The job and its DeepSpeed JSON with another sharding in them. `own`: gives what they come to as they are."""
    # If the job names no NVMe folder, any path will do: nothing is written.
    zero = sharding.in_section(job.zero).model_copy(update={"nvme_path": job.zero.nvme_path or "/"})
    if config is not None:
        config = renamed(normalized(copy.deepcopy(config)))[0]
        section = config.get("zero_optimization")
        for key in ("stage", "offload_optimizer", "offload_param"):
            if isinstance(section, dict):
                section.pop(key, None)
        if not sharding.stage:
            # Plain DDP reads no DeepSpeed JSON, but is compared with what the JSON asks for.
            as_it_is = own()
            config, train = None, as_it_is.job.train.model_copy(update={"precision": as_it_is.precision})
            job = as_it_is.job.model_copy(update={"train": train, "deepspeed": None})
    return job.model_copy(update={"zero": zero}), config


def setting_of(resolved: ResolvedJob, hidden: int) -> Setting:
    import torch

    zero: dict[str, Any] = {}
    if resolved.uses_deepspeed:
        nvme = resolved.job.zero.nvme_path or "/"
        zero = deepspeed_config.generate(resolved, hidden, STEPS, nvme)["zero_optimization"]
    batch = resolved.batch
    return Setting(resolved.stage, batch.ranks, batch.micro, batch.accumulation, resolved.precision, zero,
                   fused="fused" in inspect.signature(torch.optim.AdamW).parameters,
                   deepspeed_release=_deepspeed_release(),
                   whole_layers=resolved.stage == 3 and resolved.favours_speed)


def _deepspeed_release() -> tuple[int, int]:
    """The installed one, else the one that debzero installs."""
    try:
        version = importlib.metadata.version("deepspeed")
    except importlib.metadata.PackageNotFoundError:
        from debzero.base.stack import stack

        version = stack().deepspeed
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def compiles_layers(resolved: ResolvedJob) -> bool:
    """Whether training on a GPU would compile the layers: see model/compiled.can_compile. DeepSpeed's stage 3 gathers
    them in hooks, which would break their code into pieces."""
    import torch

    release = tuple(int(part) for part in torch.__version__.split(".")[:2])
    whole = resolved.stage < 3 or resolved.is_native
    return (resolved.job.train.compile == "auto" and whole and release >= (2, 4)
            and importlib.util.find_spec("triton") is not None)


class Planner:
    """Predicts the memory of one job on some hardware. The traces, which take most of the time, are cached."""

    def __init__(self, job: Job, config: Optional[dict[str, Any]], hardware: Hardware, file: str,
                 shapes: Shapes) -> None:
        """`config`: the job's own DeepSpeed JSON; `file`: the job file, for errors."""
        self.job, self.config, self.hardware, self.file, self.shapes = job, config, hardware, file, shapes
        self.counts = shapes.counts
        self.curves: dict[tuple[str, bool], Curve] = {}

    def resolved(self, sharding: Optional[Sharding]) -> ResolvedJob:
        """The job with this sharding, or with its own."""
        job, config = self.job, self.config
        if sharding:
            job, config = _variant(job, config, sharding, lambda: self.resolved(None))
        return resolve(job, HostGpus(self.hardware.gpus, self.hardware.bf16), None, self.file, config)

    @cached_property
    def native(self) -> bool:
        """Whether debzero's own engine would carry out the stages of this job."""
        return self.resolved(Sharding(2)).is_native

    def memory(self, resolved: ResolvedJob) -> Memory:
        precision = resolved.precision
        halves = resolved.uses_deepspeed or resolved.is_native or precision == "fp32"
        kind = precision if halves else f"autocast {precision}"
        compiled = compiles_layers(resolved)
        if (kind, compiled) not in self.curves:
            self.curves[kind, compiled] = self.shapes.curve(kind, compiled)
        return predict(self.counts, self.curves[kind, compiled], setting_of(resolved, self.shapes.hidden), compiled)

    def shardings(self) -> list[Sharding]:
        """SHARDINGS, and the job's own if it is not among them."""
        own = self.resolved(None).sharding
        return SHARDINGS + [own] * (own not in SHARDINGS)

    def started(self, sharding: Sharding) -> tuple[ResolvedJob, int]:
        """The job as a training with this sharding starts, and the largest micro-batch that fits, 0 where none does.
        The micro-batch comes first: buffers for speed must leave SPARE of the memory beside it."""
        wanted = self.resolved(sharding)
        resolved = wanted.favouring("memory")
        largest = self._largest_micro_batch(resolved)
        if largest and resolved.job.train.micro_batch == "auto":
            resolved = with_micro(resolved, largest)
        fast = resolved.favouring("speed")
        return (fast if wanted.favours_speed and self._is_roomy(fast) else resolved), largest

    def largest_for_speed(self, sharding: Sharding) -> int:
        """The largest micro-batch beside which DeepSpeed's buffers for speed are used; 0 where there is none."""
        return self._largest_micro_batch(self.resolved(sharding).favouring("speed"), self._is_roomy)

    def row(self, sharding: Sharding) -> Row:
        return self.row_of(sharding, *self.started(sharding))

    def row_of(self, sharding: Sharding, resolved: ResolvedJob, largest: int) -> Row:
        """That of what started() has given."""
        memory, batch = self.memory(resolved), resolved.batch
        return Row(sharding, batch.micro, batch.accumulation, memory, self._host_memory(memory, resolved),
                   memory.nvme_bytes * batch.ranks, self._lacks(memory, resolved), largest,
                   relative_speed(sharding, batch.ranks, self.native),
                   resolved.job.zero.favour if resolved.uses_deepspeed else None)

    def _host_memory(self, memory: Memory, resolved: ResolvedJob) -> HostMemory:
        return host_memory(memory.ram_bytes, self.counts.total, resolved.stage == 3 and resolved.uses_deepspeed,
                           resolved.batch.ranks, isinstance(resolved.job.model, dict), self.hardware.ram)

    def _on_each_gpu(self, memory: Memory, resolved: ResolvedJob) -> int:
        """Bytes that its ranks need."""
        return memory.device_bytes * -(-resolved.batch.ranks // self.hardware.gpus)

    def _is_roomy(self, resolved: ResolvedJob) -> bool:
        """Whether SPARE of each GPU's memory stays free."""
        return self._on_each_gpu(self.memory(resolved), resolved) <= (1 - SPARE) * self.hardware.gpu_memory

    def _fits(self, resolved: ResolvedJob) -> bool:
        return not self._lacks(self.memory(resolved), resolved)

    def _lacks(self, memory: Memory, resolved: ResolvedJob) -> list[str]:
        hardware, batch = self.hardware, resolved.batch
        needs = {"GPU memory": (self._on_each_gpu(memory, resolved), hardware.gpu_memory),
                 "RAM": (self._host_memory(memory, resolved).total, hardware.ram),
                 "NVMe": (memory.nvme_bytes * batch.ranks, hardware.nvme)}
        return [name for name, (need, have) in needs.items() if need > have]

    def _largest_micro_batch(self, own: ResolvedJob, fits: Optional[Callable[[ResolvedJob], bool]] = None) -> int:
        """The largest that fits and keeps the global batch, so a divisor of each rank's share of it; 0 if none does."""
        fits = fits or self._fits
        batch = own.batch
        candidates = [batch.micro] if is_fixed(own) else reversed(batches.divisors(batch.total // batch.ranks))
        for micro in candidates:
            if fits(with_micro(own, micro)):
                return micro
        return 0


def recommend(rows: list[Row], fixed: str = "") -> tuple[Optional[Row], str]:
    """The row to choose, None where nothing fits, and the reason. `rows`: the least communication first; `fixed`: the
    key that fixes the micro-batch, if any does."""
    fitting = [row for row in rows if not row.lacks]
    if fitting and fitting[0] is rows[0]:
        return fitting[0], "it fits, so nothing has to be sharded or offloaded"
    if fitting:
        before = rows[rows.index(fitting[0]) - 1]
        return fitting[0], (f"least communication of those that fit; {before.sharding.label} lacks "
                            f"{' and '.join(before.lacks)}")
    smaller = next((row for row in rows if row.largest_micro_batch), None)
    if smaller:
        return smaller, ("but only with a smaller micro-batch: set train.micro_batch to "
                         f"{smaller.largest_micro_batch} or less")
    if fixed:
        return None, f"not with the micro-batch that {fixed} sets; set a smaller one there, or \"auto\""
    return None, ("not even a micro-batch of one sample; use more or larger GPUs, more RAM or NVMe, or a smaller "
                  "model")


def speed_words(best: Row, rows: list[Row]) -> str:
    """What the choice costs in speed, as far as that was measured."""
    if best.speed is None:
        return "its speed has not been measured; `debzero tune` measures it"
    faster = [row for row in rows if not row.lacks and (row.speed or 0) > best.speed]
    first = max(faster, key=lambda row: row.speed or 0) if faster else best
    if not best.sharding.stage:
        return (f"where it was measured, {first.sharding.label}, which fits too, was {first.speed:g} times as fast"
                if faster else "nothing that fits was faster where it was measured")
    words = f"it was {best.speed:g} times as fast as plain DDP where it was measured"
    return f"{words}; {first.sharding.label}, which fits too, {first.speed:g} times" if faster else words
