"""What a run measures of itself: losses, samples, tokens, seconds, operations and memory."""
from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import torch
import torch.distributed as dist

from debzero.base.errors import UserError
from debzero.data import stream
from debzero.model import flops
from debzero.run import report
from debzero.run.records import Metrics
from debzero.train import exchange
from debzero.train.setup import Setup


class Reduced(NamedTuple):
    """What all ranks measured: the mean loss since the last progress line, and each one's peak memory in bytes."""

    loss: float
    memory_bytes: list[int]


class Meter:
    """One per rank. The sums are in the training state, so that a checkpoint holds them, except for the loss's: reading
    it waits for the device."""

    def __init__(self, setup: Setup) -> None:
        self.setup, self.context, self.state = setup, setup.context, setup.state
        losses = self.state.losses
        self.loss_sum = torch.tensor(losses[self.context.rank] if losses else 0.0, device=self.context.device)
        train = setup.samples.prepared.train
        answer = 0.0 if train.targets is None else train.targets.shape[1]  # tokens that the decoder reads for a sample
        if train.answers is not None:
            answer = float(train.answers.lengths.mean())
        task = self.context.resolved.job.task
        self.flops = cache(lambda width: flops.per_sample(setup.config, float(width), task, answer))

    def count(self, batch: stream.Step, seconds: float) -> None:
        """Add one step and the time that it took. Ranks that compute it together each count their share."""
        state, each = self.state, self.context.resolved.layout.each
        work = sum(rows * self.flops(width) for rows, width in batch.widths)
        for number, more in enumerate(share / each for share in (batch.tokens, batch.real_tokens, work)):
            state.tokens[number] += more
            state.interval[2 + number] += more
        state.samples, state.seconds = state.samples + batch.size, state.seconds + seconds
        state.interval[0] += batch.size
        state.interval[1] += seconds

    def reduce(self) -> Reduced:
        """One exchange between the ranks, which all call this. Raises a UserError where the loss is NaN: it is the same
        on every rank, and stays so."""
        ranks, state = self.context.ranks, self.state
        shares = torch.zeros(1 + ranks, dtype=torch.float64, device=self.context.device)
        shares[0], shares[1 + self.context.rank] = self.loss_sum, float(report.peak_memory(self.context.device))
        if ranks > 1:
            dist.all_reduce(shares)
        loss, *memory = shares.tolist()
        loss = loss / ranks / state.since
        if math.isnan(loss):
            first = state.step - state.since + 1
            where = f"at step {first}" if first == state.step else f"between steps {first} and {state.step}"
            written = self.context.resolved.origins.text
            raise UserError(f"the loss became NaN {where}",
                            f"lower {written('train.learning_rate')}, or train in bf16 or fp32 "
                            f"({written('train.precision')}); then start the job again: it resumes from its newest "
                            "checkpoint")
        return Reduced(loss, [int(share) for share in memory])

    def line(self, reduced: Reduced, rate: float) -> Metrics:
        """The progress line since the last one, whose sums begin anew. `rate`: the last step's learning rate."""
        state, engine, steps = self.state, self.setup.engine, self.setup.samples.steps
        samples, seconds, padded, real, work = state.interval
        total = max(seconds, 1e-9)
        # Every rank does its share; rank 0's tokens stand for all.
        peak = flops.peak(report.device_name(self.context.device), self.context.resolved.precision)
        tflops = work / total / 1e12
        metrics = Metrics(
            step=state.step, total_steps=steps, epoch=round(state.step / self.setup.samples.per_epoch, 4),
            loss=reduced.loss, memory_bytes=reduced.memory_bytes, learning_rate=rate,
            samples_per_second=round(samples / total, 2),
            tokens_per_second=round(real * self.context.ranks / total, 1),
            padding_share=round(1 - real / padded, 4) if padded else 0.0, tflops=round(tflops, 3),
            peak_share=round(tflops * 1e12 / peak, 4) if peak else None,
            skipped_steps=state.step - engine.applied_steps, loss_scale=engine.loss_scale,
            eta_seconds=round((steps - state.step) * total / state.since, 1),
            # Not rounded, for what is computed from them.
            interval_steps=state.since, interval_samples=samples, interval_seconds=total)
        self.loss_sum = torch.zeros((), device=self.context.device)
        state.since, state.interval = 0, [0.0] * 5
        return metrics

    def share_losses(self) -> None:
        """Put every rank's sum of losses into the state, for a checkpoint. All ranks call this."""
        self.state.losses = exchange.gather(self.loss_sum.item())
