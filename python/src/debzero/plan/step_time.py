"""Predicts how long an optimizer step takes in a layout over many GPUs.

Computing: model FLOPs (model/flops) over the share of the peak that was measured, or the samples per second of one rank
that somebody has measured. Communication: what each engine sends, from its source, over the links (collectives). What
the volumes come to for P parameters of one type, with n ranks and per rank: plain DDP and ZeRO-1 and 2 send 2(n-1)/n P,
ZeRO-3 sends at most 3(n-1)/n P (Rajbhandari et al. 2020, section 7). DeepSpeed's stages 1 and 2 send more: they
all-reduce the gradients and keep a part (stage_1_and_2.py, allreduce_and_scatter).

Divided models are debzero's own (train/engine_parallel), in fp32 with autocast. Pipelines run 1F1B (Narayanan et al.
2021, "Efficient Large-Scale Language Model Training", section 2.2): of m micro-batches over p stages, p - 1 more are
waited for; hidden states pass in fp32 while others compute. Tensor parallelism (Shoeybi et al. 2019, "Megatron-LM",
section 3): two all-reduces of a layer's activations forward, in autocast's type, and two of their gradients backward,
in fp32, which nothing hides. Copies average fp32 gradients, and broadcast what each has updated (ZeRO-1).
"""
from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Optional

from debzero.job.batch import Batch
from debzero.plan.collectives import Cluster, Group, exposed
from debzero.plan.layouts import data_group, next_stage, tensor_group
from debzero.resolve.layout import Layout
from debzero.resolve.native import BUCKET

FLOAT = 4
HIDDEN = 0.05  # communication hides where no more than this share of the step waits for it
SLOWEST, FASTEST = 1e3, 1e13  # bytes per second: between these a link is looked for


@dataclass(frozen=True)
class Work:
    """What one rank would compute alone. `sample_seconds`: forward and backward of a sample; `launching_seconds`: the
    processor's, of one layer and micro-batch, which come on top."""

    parameters: int
    layers: int
    hidden: int
    length: int              # tokens of a sample
    sample_seconds: float
    launching_seconds: float
    checkpointing: bool      # the backward pass computes the forward pass once more
    tied: int = 0            # elements of the embeddings that the first and the last stage of a pipeline share
    root: int = 0            # elements outside of the repeated layers


@dataclass(frozen=True)
class Engine:
    """Who trains, and what decides what it sends. `zero`: DeepSpeed's section zero_optimization, empty for debzero's
    own engines; `width`: bytes of a value in the products of the forward pass; `divided`: the engine of divided
    models."""

    stage: int
    width: int
    zero: dict[str, Any]
    divided: bool = False

    @property
    def weight_width(self) -> int:
        """Bytes of a weight or a gradient that is sent: plain PyTorch keeps everything in fp32."""
        return self.width if self.stage and not self.divided else FLOAT

    def overlaps(self, batch: Batch, gloo: bool) -> bool:
        """Whether gradients are sent while the backward pass runs."""
        if not self.stage or self.divided:
            return True
        if gloo:  # train/gloo waits
            return False
        sends_early = self.stage > 1 or batch.accumulation == 1
        return bool(self.zero.get("overlap_comm")) and sends_early if self.zero else True

    @property
    def all_reduces(self) -> bool:
        """Whether gradients are summed on every rank, though each needs a part alone."""
        zero = self.zero
        return not self.stage or self.divided or bool(zero) and self.stage < 3 and (
            zero.get("use_multi_rank_bucket_allreduce", True) or not zero.get("reduce_scatter", True))

    @property
    def live(self) -> int:
        """Elements of stage 3 that are still whole when the backward pass begins: DeepSpeed gathers so many ahead."""
        return int(self.zero.get("stage3_max_live_parameters", 0))

    @property
    def bucket(self) -> int:
        """Elements that are sent at once."""
        return int(self.zero.get("reduce_bucket_size", BUCKET))


@dataclass(frozen=True)
class Transfer:
    """One kind of collective in a step. `size`: bytes of the data; `sent`: bytes that each rank sends for it; both of
    all its `times` together, as are the seconds."""

    what: str
    times: int
    size: float
    sent: float
    seconds: float
    exposed_seconds: float


@dataclass(frozen=True)
class StepTime:
    """An optimizer step, in seconds."""

    compute: float
    launching: float
    bubble: float       # of a pipeline
    transfers: tuple[Transfer, ...]

    @property
    def exposed(self) -> float:
        """Communication that nothing hides."""
        return sum(transfer.exposed_seconds for transfer in self.transfers)

    @property
    def total(self) -> float:
        return self.compute + self.launching + self.bubble + self.exposed

    @property
    def efficiency(self) -> float:
        """The share of the step in which the GPU computes what one alone would."""
        return self.compute / self.total


@dataclass(frozen=True)
class Case:
    """All that decides a step. `batch`: its ranks are the copies of the model."""

    layout: Layout
    work: Work
    engine: Engine
    batch: Batch
    cluster: Cluster

    def step(self) -> StepTime:
        """The prediction."""
        layout, work, batch = self.layout, self.work, self.batch
        compute = batch.micro * work.sample_seconds / layout.each
        launching = work.launching_seconds * work.layers / layout.stage
        within = self._within_layers()
        slot = compute + launching + sum(transfer.exposed_seconds for transfer in within) / batch.accumulation
        between = self._between_copies(compute + launching)
        return StepTime(batch.accumulation * compute, batch.accumulation * launching, (layout.stage - 1) * slot,
                        (*within, *self._between_stages(slot), *between))

    def smallest_link(self) -> Optional[float]:
        """Bytes per second of the slowest link between hosts with which communication hides; None where there is no
        such link, or none is needed."""
        if self.cluster.hosts == 1 or not self._hides(FASTEST):
            return None
        low, high = SLOWEST, FASTEST
        while high / low > 1.001:
            middle = math.sqrt(low * high)
            low, high = (low, middle) if self._hides(middle) else (middle, high)
        return high

    def _hides(self, link: float) -> bool:
        step = replace(self, cluster=replace(self.cluster, link=link)).step()
        return step.exposed <= HIDDEN * step.total

    def _within_layers(self) -> list[Transfer]:
        """What tensor-parallel ranks send each other."""
        layout, work, batch = self.layout, self.work, self.batch
        if layout.tensor == 1:
            return []
        values, group = float(batch.micro * work.length * work.hidden), tensor_group(layout, self.cluster)
        times, part = 2 * work.layers // layout.stage * batch.accumulation, 2 * (group.ranks - 1) / group.ranks
        return [_transfer(f"{what}, all-reduce", again * times, width * values, part, group.all_reduce(width * values))
                for what, again, width in (("activations", 2 if work.checkpointing else 1, self.engine.width),
                                           ("activations' gradients", 1, FLOAT))]

    def _between_stages(self, slot: float) -> list[Transfer]:
        """What pipeline stages send each other. `slot`: seconds of a micro-batch on one of them. Only while the
        pipeline fills and empties nothing hides it, unless it takes longer than a slot."""
        layout, work, batch = self.layout, self.work, self.batch
        if layout.stage == 1:
            return []
        hidden, group = float(FLOAT * batch.micro * work.length * work.hidden), next_stage(layout, self.cluster)
        # The first stage sends hidden states alone, the last one gradients, those between both.
        each, times = group.send(hidden), min(2, layout.stage - 1) * batch.accumulation
        waits = 2 * (layout.stage - 1) * each + batch.accumulation * max(0.0, each - slot)
        found = [_transfer("hidden states and their gradients, sent on", times, hidden, 1, each, waits / times)]
        if work.tied:
            size = FLOAT * work.tied / layout.tensor
            found.append(_transfer("tied weights' gradients, all-reduce", 1, size, 1, group.all_reduce(size)))
        return found

    def _between_copies(self, micro_seconds: float) -> list[Transfer]:
        """What the copies send each other. `micro_seconds`: a rank's for one micro-batch."""
        engine, batch = self.engine, self.batch
        group = data_group(self.layout, self.cluster)
        if group.ranks == 1:
            return []
        count = self.work.parameters / self.layout.each
        backward = micro_seconds * (3 / 4 if self.work.checkpointing else 2 / 3)
        if engine.stage == 3:
            return self._of_stage_3(group, count, (micro_seconds - backward, backward))
        pieces, size = max(1, math.ceil(count / engine.bucket)), count * engine.weight_width
        times = batch.accumulation if engine.stage == 2 else 1
        reduce = group.all_reduce if engine.all_reduces else group.reduce_scatter
        seconds = pieces * reduce(size / pieces)
        window = backward if engine.overlaps(batch, self.cluster.gloo) else 0.0
        part, whole = (group.ranks - 1) / group.ranks, engine.all_reduces or self.cluster.gloo
        found = [_transfer(f"gradients, {'all-reduce' if whole else 'reduce-scatter'}", times, size,
                           2 * part if whole else part, seconds, exposed(seconds, window, pieces) if window else None)]
        if engine.stage:
            weights = count * engine.weight_width
            gather = pieces * group.all_gather(weights / pieces)
            how = "broadcast" if engine.divided else "all-gather"
            found.append(_transfer(f"weights, {how}", 1, weights, part, gather))
        return found

    def _of_stage_3(self, group: Group, count: float, windows: tuple[float, float]) -> list[Transfer]:
        """Each layer's weights are gathered as it runs, in both passes; its gradients are reduced at once. The backward
        pass gathers only layers, of DeepSpeed's those that are not live: an interface's counter of sent bytes showed
        it. `windows`: the seconds of a micro-batch's forward and backward pass."""
        layers, times, gloo = self.work.layers, self.batch.accumulation, self.cluster.gloo
        size, kept = count * self.engine.width, min(count, self.work.root + self.engine.live) / count
        gather, scatter = layers * group.all_gather(size / layers), layers * group.reduce_scatter(size / layers)
        again = layers * group.all_gather((1 - kept) * size / layers) if kept < 1 else 0.0
        overlaps = self.engine.overlaps(self.batch, gloo)
        part = (group.ranks - 1) / group.ranks
        forward = exposed(gather, windows[0], layers) if overlaps else gather
        both = again + scatter
        backward = exposed(both, windows[1], layers) if overlaps else both
        return [_transfer("weights, all-gather forward", times, size, part, gather, forward),
                _transfer("weights, all-gather backward", times, (1 - kept) * size, part, again,
                          backward * again / both),
                _transfer(f"gradients, {'all-reduce' if gloo else 'reduce-scatter'}", times, size,
                          2 * part if gloo else part, scatter, backward * scatter / both)]


def _transfer(what: str, times: int, size: float, sends: float, seconds: float,
              waits: Optional[float] = None) -> Transfer:
    """`size`, `seconds` and `waits` (None: nothing is hidden) are those of one time; a rank sends `sends` times the
    size."""
    return Transfer(what, times, times * size, times * sends * size, times * seconds,
                    times * (seconds if waits is None else waits))
