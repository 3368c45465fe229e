"""What a rank's GPU holds at its peak, part by part, for each way to shard and offload; and what the host and its NVMe
hold.

The states: Rajbhandari et al. 2020 ("ZeRO: Memory Optimizations Toward Training Trillion Parameter Models"), section 3:
with mixed precision Adam takes 2 + 2 + 12 bytes a parameter; over N ranks stage 1 leaves 4 + 12/N, stage 2 2 + 14/N,
stage 3 16/N. What is added here is read in the engines' sources (torch's DistributedDataParallel and AdamW; DeepSpeed
0.15 and 0.19, runtime/zero): the buckets, the copies that a step makes, and when each is alive. The peak is the largest
of some phases, each with its own parts. All in bytes of torch.cuda.max_memory_allocated, but where it says otherwise.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from debzero.plan.activations import Curve

MASTER, MOMENTS, FLOAT = 4, 8, 4  # bytes a parameter: the fp32 copy; Adam's two; one fp32 number

# What no source tells and the device must: compare `python/benchmarks/memory.py`, then set these, and nothing else.
# cuBLAS: one for each of the two threads that run forward and backward (32 MiB on Hopper, else 8)
WORKSPACES = 2 * 32 * 2**20
# of the activations: blocks that are larger than what was asked for, as they are not split below 1 MiB
SLACK = 0.01
COMPILED_SLACK = 0.03         # more of them in compiled layers, whose partitioner keeps a little more than it must
# Beside the allocator's peak the device holds the CUDA context, the loaded kernels and NCCL's buffers, and what the
# allocator cannot help reserving (as in docs/benchmarks' rows of offload); more that it has reserved it gives back
# before it says that memory ran out.
CONTEXT = 1300 * 2**20
FRAGMENTED = 0.06             # of the peak


@dataclass(frozen=True)
class Model:
    """Numbers of elements. `decayed`, `others`: of each parameter in the optimizer's two groups, in the model's
    order."""

    decayed: tuple[int, ...]
    others: tuple[int, ...]
    buffers: int            # bytes
    # elements of the largest module (with its own parameters only) that runs between the embeddings and the loss
    largest_layer: int
    hidden: int

    @property
    def groups(self) -> list[tuple[int, ...]]:
        return [group for group in (self.decayed, self.others) if group]

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.decayed + self.others

    @property
    def total(self) -> int:
        return sum(self.sizes)


@dataclass(frozen=True)
class Setting:
    """How it is trained. `zero`: DeepSpeed's zero_optimization section as dsconfig.generate() makes it; `release`:
    DeepSpeed's."""

    stage: int
    ranks: int
    micro: int
    accumulation: int
    precision: str
    zero: dict[str, Any]
    clip: bool = True
    fused: bool = True      # AdamW's step is one kernel, without temporaries
    release: tuple[int, int] = (0, 19)

    @property
    def width(self) -> int:
        """Bytes of a parameter in the forward pass of DeepSpeed's engine."""
        return 4 if self.precision == "fp32" else 2

    def offloaded(self, part: str) -> str:
        return str(self.zero.get(f"offload_{part}", {}).get("device", "none"))


@dataclass(frozen=True)
class Parts:
    """What a phase holds."""

    parameters: float = 0
    gradients: float = 0
    optimizer: float = 0
    activations: float = 0
    buffers: float = 0       # buckets, casts, workspaces, the model's own buffers
    temporary: float = 0     # what the optimizer step makes and drops

    @property
    def total(self) -> float:
        return sum(asdict(self).values())


@dataclass(frozen=True)
class Memory:
    """One rank's. `peak` is what torch.cuda.max_memory_allocated will say, `device` what the process needs of the device: `nvidia-smi`
    may show more, which the allocator keeps for later. `host` and `nvme`: what is offloaded to them (of all ranks on the host: times
    `ranks`)."""

    peak: int
    phase: str
    parts: dict[str, int]
    device: int
    host: int = 0
    nvme: int = 0
    phases: dict[str, int] = field(default_factory=dict)


def predict(model: Model, curve: Curve, setting: Setting, compiled: bool = False) -> Memory:
    """The memory of the rank that needs most."""
    ranks = [0, setting.ranks - 1] if setting.stage in (1, 2) and setting.ranks > 1 else [0]
    found = [_of_rank(model, curve, setting, compiled, rank) for rank in ranks]
    return max(found, key=lambda memory: memory.peak)


def _of_rank(model: Model, curve: Curve, setting: Setting, compiled: bool, rank: int) -> Memory:
    engine = _plain if not setting.zero else _sharded_states if setting.stage < 3 else _sharded_parameters
    base, gradients, phases = engine(model, setting, rank)
    slack = 1 + SLACK + (COMPILED_SLACK if compiled else 0)
    # Gradients and activations trade places during the backward pass: each moment of it is a phase, of which the
    # largest counts.
    held, buckets = gradients(curve)
    moments = curve.fixed + slack * curve.sample * setting.micro + held + buckets
    when = int(np.argmax(moments))
    phases["forward" if when < curve.forward else "backward"] = replace(
        base, gradients=float(held[when]), activations=slack * float(curve.sample[when]) * setting.micro,
        buffers=base.buffers + float(buckets[when] + curve.fixed[when]))
    phase, parts = max(phases.items(), key=lambda item: item[1].total)
    peak = math.ceil(parts.total)
    host, nvme = _offloaded(model, setting)
    return Memory(peak, phase, {name: math.ceil(value) for name, value in asdict(parts).items()},
                  math.ceil(peak * (1 + FRAGMENTED)) + CONTEXT, host, nvme,
                  {name: math.ceil(value.total) for name, value in phases.items()})


def _plain(model: Model, setting: Setting, rank: int) -> Any:
    """torch: everything in fp32 (autocast's half-precision copies of the weights are in the curve). DistributedDataParallel keeps all
    gradients a second time, in its buckets."""
    total = model.total
    base = Parts(parameters=FLOAT * total, optimizer=MOMENTS * total,
                 buffers=model.buffers + WORKSPACES + (FLOAT * total if setting.ranks > 1 else 0))

    def gradients(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
        held = FLOAT * (np.full_like(curve.gradients, total) if setting.accumulation > 1 else curve.gradients)
        return held, np.zeros_like(held)

    # Unfused AdamW makes the square roots of a whole group, then the denominators.
    working = 0 if setting.fused else 2 * FLOAT * max(map(sum, model.groups))
    return base, gradients, {"step": replace(base, gradients=FLOAT * total, temporary=working)}


def _own(sizes: Sequence[int], ranks: int, rank: int) -> tuple[int, int, int]:
    """Stage 1 and 2 cut the flat group into equal parts. Elements of: this rank's part; the parameters that touch it;
    their largest."""
    part = math.ceil(sum(sizes) / (2 * ranks)) * 2
    ends = np.cumsum(sizes)
    touching = [size for size, end in zip(sizes, ends) if end > part * rank and end - size < part * (rank + 1)]
    return part, sum(touching), max(touching, default=0)


def _sharded_states(model: Model, setting: Setting, rank: int) -> Any:
    """ZeRO 1 and 2 (stage_1_and_2.py). The weights lie in one flat buffer; this rank's part of it has an fp32 copy and Adam's moments.
    Gradients go through a bucket of fixed size; what belongs to this rank is collected in a buffer of its own."""
    width, total = setting.width, model.total
    parts = [_own(group, setting.ranks, rank) for group in model.groups]
    own = sum(touching for _, touching, _ in parts)
    largest_part, largest = max(part for part, _, _ in parts), max(size for _, _, size in parts)
    offload, states = setting.offloaded("optimizer") != "none", sum(part for part, _, _ in parts) * (MASTER + MOMENTS)
    bucket, overlap = int(setting.zero["reduce_bucket_size"]), bool(setting.zero.get("overlap_comm"))
    base = Parts(parameters=width * total, optimizer=0 if offload else states,
                 buffers=model.buffers + WORKSPACES + (width * max(model.sizes) if offload else 0))
    # Reduced as they come, or (stage 1 where communication does not overlap) at the end.
    at_once = setting.stage == 2 or (overlap and setting.accumulation == 1)
    # A bucket is copied into one piece to be reduced; one parameter larger than it goes alone.
    largest_grad = max(model.sizes)
    sent = width * (min(bucket, total) if largest_grad <= bucket else max(min(bucket, total), largest_grad))
    buckets = width * bucket * (2 if overlap else 1)

    def gradients(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
        made = curve.gradients
        started, reduced = made > 0, made > min(bucket, 0.99 * total)
        if not at_once:
            held = width * (np.full_like(made, total) if setting.accumulation > 1 else made)
            return held, buckets * started
        first = np.full_like(made, float(setting.accumulation > 1 and not offload))  # of the micro-batches before
        mine = 0 if offload else width * own
        waits = np.minimum(made, largest_grad) * width * (largest_grad > bucket)  # until the next one's turn
        early = made > total - own if rank == 0 else reduced
        return mine * (first + early), started * (buckets + waits) + reduced * sent

    phases = {}
    if not at_once:
        phases["reduce"] = replace(base, gradients=width * (total + (0 if offload
                                                                     else own)) - width * min(bucket, total),
                                   buffers=base.buffers + buckets + sent)
    if offload:
        moved = FLOAT * largest_part if setting.release < (0, 16) else 0  # the new weights came back in fp32
        phases["step"] = replace(base, temporary=max(moved, FLOAT * largest + 8 * largest))
    else:
        # The own gradients, once more in one piece, and that in fp32; before, each was looked at for overflows and
        # squared in fp64.
        piece = 0 if width == FLOAT else width * largest_part
        phases["step"] = replace(base, gradients=width * own + FLOAT * largest_part, temporary=piece)
        checked = setting.precision == "fp16" or (setting.precision == "bf16" and setting.release >= (0, 16))
        looks = (4 + 1 + 1 + 1 + 4 if checked else 8) * largest
        phases["norm"] = replace(base, gradients=width * own, temporary=looks)
    if setting.release >= (0, 16):  # flattened on the device
        phases["start"] = Parts(parameters=width * (total + max(map(sum, model.groups))), buffers=model.buffers)
    return base, gradients, phases


def _sharded_parameters(model: Model, setting: Setting, rank: int) -> Any:
    """ZeRO 3 (stage3.py, partitioned_param_coordinator.py). Each parameter is cut by itself. A module's are gathered when it runs and
    dropped when they will not be used again within `stage3_max_reuse_distance` elements; small ones always stay whole."""
    width, zero, ranks = setting.width, setting.zero, setting.ranks
    shard = sum(math.ceil(size / ranks) for size in model.sizes)
    threshold = int(zero.get("stage3_param_persistence_threshold", 100_000))
    small = sum(size for size in model.sizes if size <= threshold)
    rest = model.total - small
    offload = setting.offloaded("optimizer") != "none"
    on_gpu = 0 if setting.offloaded("param") != "none" else width * shard
    group = min(max(math.ceil(sum(sizes) / ranks) for sizes in model.groups), int(zero.get("sub_group_size", 10**9)))
    base = Parts(parameters=on_gpu + width * small, optimizer=0 if offload else (MASTER + MOMENTS) * shard,
                 gradients=0 if offload else width * shard,
                 buffers=model.buffers + WORKSPACES + width * int(zero["reduce_bucket_size"]))
    # What is gathered stays while its next use is near (in the backward pass it is twice as far as the end of the
    # forward pass), and is gathered ahead: each module that runs, however small, fetches some more, until as many are
    # there as may be.
    ahead = int(zero.get("stage3_max_live_parameters", 10**9)) if zero.get("stage3_prefetch_bucket_size",
                                                                           5 * 10**7) else 0
    live = max(int(zero.get("stage3_max_reuse_distance", 10**9)) // 2, ahead + model.largest_layer)

    def gradients(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
        gathered = np.minimum(np.minimum(live, model.total - curve.gradients + model.largest_layer), rest)
        # A gradient waits whole until the next one's turn, and is then cut up for the others.
        made = np.diff(curve.gradients, prepend=0.0)
        waits = 2 * made[np.maximum.accumulate(np.where(made > 0, np.arange(len(made)), 0))]
        return np.full_like(gathered, base.gradients), width * (gathered + waits)

    phases = {}
    if offload:
        phases["step"] = replace(base, temporary=width * group)
    else:
        piece = 0 if width == FLOAT else width * group
        phases["step"] = replace(base, gradients=base.gradients + FLOAT * group, temporary=piece)
    return base, gradients, phases


def _pinned(size: float) -> int:
    """torch's allocator of page-locked memory rounds up to a power of two."""
    return 2 ** math.ceil(math.log2(size)) if size >= 1 else 0


def _offloaded(model: Model, setting: Setting) -> tuple[int, int]:
    """(host, NVMe) bytes of this rank for what is offloaded: the fp32 weights, Adam's moments and the fp32 gradients are 16 bytes a
    parameter of this rank's part; offloaded parameters are in half precision."""
    optimizer, param = setting.offloaded("optimizer"), setting.offloaded("param")
    parts = [math.ceil(sum(group) / setting.ranks) for group in model.groups]
    host = nvme = 0
    pins = _pinned if setting.zero.get("offload_optimizer", {}).get("pin_memory") else int
    if optimizer == "cpu":
        host += sum(pins(MASTER * part) + pins(FLOAT * part) + MOMENTS * part for part in parts)
        host += setting.width * (max(model.sizes) + (sum(parts) if setting.release >= (0, 16) or setting.stage == 3
                                                     else 0))
    elif optimizer == "nvme":
        nvme += (MASTER + MOMENTS + FLOAT) * sum(parts)
        count = int(setting.zero["offload_optimizer"].get("buffer_count", 4))
        host += pins(FLOAT * count * min(max(parts),
                                         int(setting.zero.get("sub_group_size", 10**9)))) + setting.width * sum(parts)
    if param == "cpu":
        host += pins(setting.width * sum(parts))
    elif param == "nvme":
        nvme += setting.width * sum(parts)
        section = setting.zero["offload_param"]
        host += pins(setting.width * int(section.get("buffer_count", 5)) * int(section.get("buffer_size", 10**8)))
    return host, nvme
