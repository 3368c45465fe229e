"""Predicts a rank's peak memory on its GPU, part by part, and what is offloaded to the host and its NVMe.

The model's and the optimizer's states: Rajbhandari et al. 2020 ("ZeRO: Memory Optimizations Toward Training Trillion
Parameter Models"), section 3. In mixed precision Adam takes 2 + 2 + 12 bytes per parameter; over N ranks stage 1 leaves
4 + 12/N, stage 2 2 + 14/N, stage 3 16/N. The rest comes from the engines' sources (train/gradient_mean and torch's
AdamW; DeepSpeed 0.15 and 0.19, runtime/zero): the buckets, the copies that a step makes, and how long each lives. The
peak is the largest of several phases, each with its own parts. All is in bytes, as torch.cuda.max_memory_allocated
counts them, unless a comment says otherwise.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Callable

import numpy as np

from debzero.plan.activations import Curve
from debzero.resolve.native import BUCKET, IN_FLIGHT

MASTER, MOMENTS, FLOAT = 4, 8, 4  # bytes per parameter: the fp32 copy, Adam's two moments, any one fp32 number

# Measured constants, which no source gives. To adjust them, run `python/benchmarks/memory.py`.
WORKSPACES = 2 * 32 * 2**20   # bytes of cuBLAS, for the threads of forward and backward (32 MiB each on Hopper, else 8)
SLACK = 0.01                  # of the activations: the allocator does not split blocks below 1 MiB
COMPILED_SLACK = 0.03         # added for compiled layers, whose partitioner keeps a little more than it must
CONTEXT = 1300 * 2**20        # bytes beside the allocator's peak: the CUDA context, loaded kernels, NCCL's buffers
FRAGMENTED = 0.06             # of the peak: what the allocator has to reserve besides


@dataclass(frozen=True)
class ParameterCounts:
    """A model's size. `decayed`, `others`: elements of each parameter in the optimizer's two groups, in the model's
    order."""

    decayed: tuple[int, ...]
    others: tuple[int, ...]
    buffers_bytes: int
    largest_layer: int      # elements that a module has itself at most, between the embeddings and the loss
    hidden: int             # the hidden size
    layers: int = 0         # elements of all repeated layers, whose weights the native engine's stage 3 gathers one
    layer: int = 0          # after the other, and of the largest of them
    layer_tensors: int = 0  # weights and biases of a layer

    @property
    def groups(self) -> list[tuple[int, ...]]:
        return [group for group in (self.decayed, self.others) if group]

    @property
    def each(self) -> tuple[int, ...]:
        return self.decayed + self.others

    @property
    def total(self) -> int:
        return sum(self.each)


@dataclass(frozen=True)
class Setting:
    """How the model is trained. `zero`: the section zero_optimization of DeepSpeed's JSON, empty where it does not
    train."""

    stage: int
    ranks: int
    micro_batch: int        # samples
    accumulation: int       # micro-batches per optimizer step
    precision: str          # fp32, fp16 or bf16
    zero: dict[str, Any]
    fused: bool = True      # AdamW's step is one kernel, without temporary tensors
    deepspeed_release: tuple[int, int] = (0, 19)
    whole_layers: bool = False  # stage 3 gathers a repeated layer at once, and reduces its gradients together

    @property
    def width(self) -> int:
        """Bytes of one parameter in the forward pass of DeepSpeed's engine."""
        return 4 if self.precision == "fp32" else 2

    def offloaded(self, part: str) -> str:
        """Where `part` (optimizer, param) is offloaded: none, cpu or nvme."""
        return str(self.zero.get(f"offload_{part}", {}).get("device", "none"))


@dataclass(frozen=True)
class Parts:
    """A phase's memory in bytes, by use."""

    parameters: float = 0
    gradients: float = 0
    optimizer: float = 0
    activations: float = 0
    buffers: float = 0       # buckets, casts, workspaces, the model's own buffers
    temporary: float = 0     # what the optimizer's step allocates and frees

    @property
    def total(self) -> float:
        return sum(asdict(self).values())


@dataclass(frozen=True)
class Memory:
    """One rank's memory, in bytes."""

    peak_bytes: int                # as torch.cuda.max_memory_allocated will report
    phase: str                     # the one with the peak: start, forward, backward, reduce, norm or step
    parts_bytes: dict[str, int]    # the peak's Parts
    device_bytes: int              # GPU memory that the process needs; nvidia-smi may show more, which is only cached
    ram_bytes: int = 0             # offloaded to the host
    nvme_bytes: int = 0            # offloaded to NVMe
    phases_bytes: dict[str, int] = field(default_factory=dict)


# An engine's memory outside the backward pass: what it always holds, the gradients and buckets for each operation of a
# Curve, and its other phases.
EngineMemory = tuple[Parts, Callable[[Curve], tuple[np.ndarray, np.ndarray]], dict[str, Parts]]


def predict(model: ParameterCounts, curve: Curve, setting: Setting, compiled: bool = False) -> Memory:
    """The memory of the rank that needs the most. `compiled`: the layers are compiled by torch.compile."""
    ranks = [0, setting.ranks - 1] if setting.stage in (1, 2) and setting.ranks > 1 else [0]
    if not setting.zero:
        engine = (_plain, _native, _native, _native_sharded)[setting.stage]
    else:
        engine = _sharded_states if setting.stage < 3 else _sharded_parameters
    found = [of_engine(engine(model, setting, rank), model, curve, setting, compiled) for rank in ranks]
    return max(found, key=lambda memory: memory.peak_bytes)


def of_engine(engine: EngineMemory, model: ParameterCounts, curve: Curve, setting: Setting,
              compiled: bool = False) -> Memory:
    """One rank's memory in training with an engine."""
    base, gradients, phases = engine
    slack = 1 + SLACK + (COMPILED_SLACK if compiled else 0)
    # During the backward pass activations give way to gradients: the largest sum of any moment counts.
    held, buckets = gradients(curve)
    moments = curve.fixed + slack * curve.sample * setting.micro_batch + held + buckets
    when = int(np.argmax(moments))
    phases["forward" if when < curve.forward else "backward"] = replace(
        base, gradients=float(held[when]), activations=slack * float(curve.sample[when]) * setting.micro_batch,
        buffers=base.buffers + float(buckets[when] + curve.fixed[when]))
    phase, parts = max(phases.items(), key=lambda item: item[1].total)
    peak = math.ceil(parts.total)
    ram, nvme = _offloaded(model, setting)
    return Memory(peak, phase, {name: math.ceil(value) for name, value in asdict(parts).items()},
                  math.ceil(peak * (1 + FRAGMENTED)) + CONTEXT, ram, nvme,
                  {name: math.ceil(value.total) for name, value in phases.items()})


def _plain(model: ParameterCounts, setting: Setting, rank: int) -> EngineMemory:
    """Everything in fp32; autocast's half-precision copies of the weights are in the curve."""
    total = model.total
    base = Parts(parameters=FLOAT * total, optimizer=MOMENTS * total, buffers=model.buffers_bytes + WORKSPACES)

    def gradients(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
        held = FLOAT * (np.full_like(curve.gradients, total) if setting.accumulation > 1 else curve.gradients)
        return held, np.zeros_like(held)

    # Unfused AdamW allocates the square roots of a whole group, then the denominators.
    working = 0 if setting.fused else 2 * FLOAT * max(map(sum, model.groups))
    return base, gradients, {"step": replace(base, gradients=FLOAT * total, temporary=working)}


def _native(model: ParameterCounts, setting: Setting, rank: int) -> EngineMemory:
    """debzero's own ZeRO 1 and 2 (train/engine_native.py). The weights lie in buckets, in the precision of the forward
    pass; this rank's share of each has an fp32 copy, Adam's moments and an fp32 gradient. A bucket's gradients are
    copied into one tensor to be sent, and IN_FLIGHT of them are on their way at once."""
    width, total, bucket = setting.width, model.total, min(BUCKET, model.total)
    share = total / setting.ranks
    keeps = setting.stage == 1 and setting.accumulation > 1  # the sum of the micro-batches' gradients
    base = Parts(parameters=width * total, optimizer=(MASTER + MOMENTS) * share,
                 gradients=FLOAT * share + width * total * keeps, buffers=model.buffers_bytes + WORKSPACES)

    def gradients(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
        waiting = np.minimum(curve.gradients, max(bucket, max(model.each)))
        sent = np.minimum(curve.gradients, (1 if keeps else IN_FLIGHT) * bucket)
        held = np.full_like(curve.gradients, base.gradients) + (0 if keeps else width * waiting)
        return held, width * ((0 if keeps else 1) * sent + sent / setting.ranks)

    # All weights are gathered in place; unfused AdamW works on a copy of the share.
    working = 0 if setting.fused else 2 * FLOAT * share
    return base, gradients, {"step": replace(base, temporary=working)}


def _native_sharded(model: ParameterCounts, setting: Setting, rank: int) -> EngineMemory:
    """debzero's own ZeRO 3 (train/engine_sharded.py). All weights are sharded. The root, which is all but the repeated
    layers, is whole for as long as a micro-batch takes, and so are its gradients once they are complete; so is a layer
    that computes and the one after it. A layer's gradients are copied into one tensor to be sent, and IN_FLIGHT of
    these are on their way while the next layer's come. The root's are sent last, when its weights are freed."""
    width, share, root = setting.width, model.total / setting.ranks, model.total - model.layers
    own = 0 if width == FLOAT else width * share  # in fp32 the optimizer's weights are sent
    base = Parts(parameters=own, optimizer=(MASTER + MOMENTS) * share, gradients=FLOAT * share,
                 buffers=model.buffers_bytes + WORKSPACES)
    computing = replace(base, parameters=own + width * (root + 2 * model.layer))

    def gradients(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
        waiting = np.minimum(curve.gradients, root + model.layer)
        sent = np.minimum(curve.gradients, IN_FLIGHT * model.layer)
        return np.full_like(waiting, base.gradients), width * (waiting + sent * (1 + 1 / setting.ranks))

    sent = width * (root + model.layer) * (1 + 1 / setting.ranks)
    last = replace(base, gradients=base.gradients + width * root, buffers=base.buffers + sent)
    working = 0 if setting.fused else 2 * FLOAT * share
    return computing, gradients, {"reduce": last, "step": replace(base, temporary=working)}


def _partition(sizes: Sequence[int], ranks: int, rank: int) -> tuple[int, int, int]:
    """Stages 1 and 2 cut the flat group into equal parts. The elements of this rank's part, of all parameters that
    reach into it, and of the largest of these."""
    part = math.ceil(sum(sizes) / (2 * ranks)) * 2
    ends = np.cumsum(sizes)
    touching = [size for size, end in zip(sizes, ends) if end > part * rank and end - size < part * (rank + 1)]
    return part, sum(touching), max(touching, default=0)


def _sharded_states(model: ParameterCounts, setting: Setting, rank: int) -> EngineMemory:
    """ZeRO 1 and 2 (stage_1_and_2.py). The weights lie in one flat buffer; this rank's part of it has an fp32 copy and
    Adam's moments. Gradients go through a bucket of fixed size; those of this rank's part are kept in a buffer."""
    width, total = setting.width, model.total
    parts = [_partition(group, setting.ranks, rank) for group in model.groups]
    own = sum(touching for _, touching, _ in parts)
    largest_part, largest = max(part for part, _, _ in parts), max(size for _, _, size in parts)
    offload, states = setting.offloaded("optimizer") != "none", sum(part for part, _, _ in parts) * (MASTER + MOMENTS)
    bucket, overlap = int(setting.zero["reduce_bucket_size"]), bool(setting.zero.get("overlap_comm"))
    base = Parts(parameters=width * total, optimizer=0 if offload else states,
                 buffers=model.buffers_bytes + WORKSPACES + (width * max(model.each) if offload else 0))
    # Reduced as they come, or (stage 1 where communication does not overlap) at the end.
    at_once = setting.stage == 2 or (overlap and setting.accumulation == 1)
    # A bucket is copied into one tensor to be reduced; a parameter larger than the bucket is reduced alone.
    largest_grad = max(model.each)
    sent = width * (min(bucket, total) if largest_grad <= bucket else max(min(bucket, total), largest_grad))
    buckets = width * bucket * (2 if overlap else 1)

    def gradients(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
        complete = curve.gradients
        started, reduced = complete > 0, complete > min(bucket, 0.99 * total)
        if not at_once:
            held = width * (np.full_like(complete, total) if setting.accumulation > 1 else complete)
            return held, buckets * started
        earlier = np.full_like(complete, float(setting.accumulation > 1 and not offload))  # micro-batches' sum
        kept = 0 if offload else width * own
        waiting = np.minimum(complete, largest_grad) * width * (largest_grad > bucket)  # for the next to be complete
        own_started = complete > total - own if rank == 0 else reduced
        return kept * (earlier + own_started), started * (buckets + waiting) + reduced * sent

    phases = {}
    if not at_once:
        held = total + (0 if offload else own) - min(bucket, total)
        phases["reduce"] = replace(base, gradients=width * held, buffers=base.buffers + buckets + sent)
    if offload:
        # Older releases copied the new weights back in fp32.
        moved = FLOAT * largest_part if setting.deepspeed_release < (0, 16) else 0
        phases["step"] = replace(base, temporary=max(moved, FLOAT * largest + 8 * largest))
    else:
        # This rank's gradients are copied into one tensor, and that into fp32. Before, each is checked for overflows
        # and squared in fp64.
        piece = 0 if width == FLOAT else width * largest_part
        phases["step"] = replace(base, gradients=width * own + FLOAT * largest_part, temporary=piece)
        checked = setting.precision == "fp16" or (setting.precision == "bf16" and setting.deepspeed_release >= (0, 16))
        norms = (4 + 1 + 1 + 1 + 4 if checked else 8) * largest
        phases["norm"] = replace(base, gradients=width * own, temporary=norms)
    if setting.deepspeed_release >= (0, 16):  # which flattens the weights on the GPU
        phases["start"] = Parts(parameters=width * (total + max(map(sum, model.groups))), buffers=model.buffers_bytes)
    return base, gradients, phases


def _sharded_parameters(model: ParameterCounts, setting: Setting, rank: int) -> EngineMemory:
    """ZeRO 3 (stage3.py, partitioned_param_coordinator.py). Each parameter is sharded by itself. A module's parameters
    are gathered when it runs, and freed unless they are used again within `stage3_max_reuse_distance` elements; small
    ones always stay whole. With `whole_layers` (zero.favour: speed) the formula is not measured yet."""
    width, zero, ranks = setting.width, setting.zero, setting.ranks
    shard = sum(math.ceil(size / ranks) for size in model.each)
    threshold = int(zero.get("stage3_param_persistence_threshold", 100_000))
    small = sum(size for size in model.each if size <= threshold)
    rest = model.total - small
    offload = setting.offloaded("optimizer") != "none"
    on_gpu = 0 if setting.offloaded("param") != "none" else width * shard
    group = min(max(math.ceil(sum(sizes) / ranks) for sizes in model.groups), int(zero.get("sub_group_size", 10**9)))
    base = Parts(parameters=on_gpu + width * small, optimizer=0 if offload else (MASTER + MOMENTS) * shard,
                 gradients=0 if offload else width * shard,
                 buffers=model.buffers_bytes + WORKSPACES + width * int(zero["reduce_bucket_size"]))
    # What is gathered stays while its next use is near (the backward pass uses it twice as far away as the forward pass
    # ends). Parameters are also gathered ahead: each module that runs, however small, prefetches some more, up to
    # `stage3_max_live_parameters`.
    prefetches = int(zero.get("stage3_prefetch_bucket_size", 5 * 10**7))
    ahead = int(zero.get("stage3_max_live_parameters", 10**9)) if prefetches else 0
    largest = max(model.largest_layer, model.layer if setting.whole_layers else 0)
    live = max(int(zero.get("stage3_max_reuse_distance", 10**9)) // 2, ahead + largest)

    def gradients(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
        gathered = np.minimum(np.minimum(live, model.total - curve.gradients + largest), rest)
        # A gradient stays whole until the next one is complete; then it is sharded. Those of a whole layer wait for its
        # last one (stage3.py, reduce_leaf_module_grads).
        new = np.diff(curve.gradients, prepend=0.0)
        waiting = 2 * new[np.maximum.accumulate(np.where(new > 0, np.arange(len(new)), 0))]
        if setting.whole_layers:
            waiting = np.maximum(waiting, np.minimum(curve.gradients, largest))
        # What is gathered ahead comes in one tensor, from which it is copied (all_gather_coalesced).
        coming = np.minimum(gathered, prefetches)
        return np.full_like(gathered, base.gradients), width * (gathered + coming + waiting)

    phases = {}
    if offload:
        phases["step"] = replace(base, temporary=width * group)
    else:
        piece = 0 if width == FLOAT else width * group
        phases["step"] = replace(base, gradients=base.gradients + FLOAT * group, temporary=piece)
    return base, gradients, phases


def _pinned(size: float) -> int:
    """torch's allocator of page-locked host memory rounds up to a power of two."""
    return 2 ** math.ceil(math.log2(size)) if size >= 1 else 0


def _offloaded(model: ParameterCounts, setting: Setting) -> tuple[int, int]:
    """Bytes that this rank offloads to the host and to NVMe. The optimizer takes 16 per parameter of this rank's part:
    the fp32 weights, Adam's moments and the fp32 gradients. Offloaded parameters are in half precision."""
    optimizer, param = setting.offloaded("optimizer"), setting.offloaded("param")
    parts = [math.ceil(sum(group) / setting.ranks) for group in model.groups]
    ram = nvme = 0
    pins = _pinned if setting.zero.get("offload_optimizer", {}).get("pin_memory") else int
    if optimizer == "cpu":
        ram += sum(pins(MASTER * part) + pins(FLOAT * part) + MOMENTS * part for part in parts)
        copied = setting.deepspeed_release >= (0, 16) or setting.stage == 3
        ram += setting.width * (max(model.each) + (sum(parts) if copied else 0))
    elif optimizer == "nvme":
        nvme += (MASTER + MOMENTS + FLOAT) * sum(parts)
        count = int(setting.zero["offload_optimizer"].get("buffer_count", 4))
        group = min(max(parts), int(setting.zero.get("sub_group_size", 10**9)))
        ram += pins(FLOAT * count * group) + setting.width * sum(parts)
    if param == "cpu":
        ram += pins(setting.width * sum(parts))
    elif param == "nvme":
        nvme += setting.width * sum(parts)
        section = setting.zero["offload_param"]
        ram += pins(setting.width * int(section.get("buffer_count", 5)) * int(section.get("buffer_size", 10**8)))
    return ram, nvme
