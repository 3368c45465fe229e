"""Which samples each rank sees, and when.

Every epoch has its own permutation, cut into global batches, each dealt to accumulation steps and ranks. torch's
DistributedSampler repeats or drops samples to even out the end of an epoch; here the last batch is just smaller, so
that each sample is seen exactly once, and which samples an optimizer step sees depends on neither ranks nor
micro-batch.

Bucketed, samples of nearly the same length come together: a batch is padded to its longest, and what is padded is
computed for nothing. All is a pure function of the arguments, so any thread may ask for any epoch.
"""
from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from debzero.job.batch import Batch
from debzero.job.schema import Train

# Global batches that are sorted by length together. More would pad less (at 32, four tokens in a hundred are still due
# to the spread within a batch) but leave less to chance which samples meet in a step.
WINDOW = 32


def steps_per_epoch(samples: int, global_batch: int) -> int:
    return math.ceil(samples / global_batch)


def total_steps(train: Train, per_epoch: int) -> int:
    """Optimizer steps of a run whose epochs take `per_epoch` each, unless it stops early."""
    steps = train.epochs * per_epoch
    return min(steps, train.max_steps or steps)


class EpochSampler:
    """Deals one rank its part of each epoch. `lengths`: int[n], the samples' tokens."""

    def __init__(self, lengths: np.ndarray, batch: Batch, rank: int, seed: int, bucketed: bool) -> None:
        self.lengths, self.batch, self.rank, self.seed, self.bucketed = lengths, batch, rank, seed, bucketed

    def __len__(self) -> int:
        """Optimizer steps in an epoch."""
        return steps_per_epoch(len(self.lengths), self.batch.total)

    def epoch(self, number: int, start: int = 0) -> Iterator[tuple[int, list[np.ndarray]]]:
        """Per optimizer step from `start` on: the samples in it on all ranks, and this rank's micro-batches.

        There are always `accumulation` micro-batches of at most `micro` samples; in an epoch's last step some may be
        empty.
        """
        for samples in self._batches(number)[start:]:
            yield len(samples), self._mine(samples)

    def _batches(self, number: int) -> list[np.ndarray]:
        """The epoch's global batches. The smaller one is the last, of samples drawn like any others."""
        dice, total = np.random.default_rng([self.seed, number]), self.batch.total
        order = dice.permutation(len(self.lengths))
        whole = len(order) // total * total
        rest = [order[whole:]] if whole < len(order) else []
        if not self.bucketed:
            return [*order[:whole].reshape(-1, total), *rest]
        windows = [order[first : min(first + WINDOW * total, whole)] for first in range(0, whole, WINDOW * total)]
        batches = [batch for window in windows for batch in self._by_length(window).reshape(-1, total)]
        return [batches[i] for i in dice.permutation(len(batches))] + [self._by_length(samples) for samples in rest]

    def _by_length(self, samples: np.ndarray) -> np.ndarray:
        return samples[np.argsort(self.lengths[samples], kind="stable")]

    def _mine(self, samples: np.ndarray) -> list[np.ndarray]:
        """Neighbours form an accumulation step, dealt to the ranks one by one: all ranks' parts are about as long."""
        return [step[self.rank :: self.batch.ranks] for step in np.array_split(samples, self.batch.accumulation)]


def held_out_batches(lengths: np.ndarray, ranks: int, rank: int, size: int) -> Iterator[np.ndarray]:
    """This rank's share of the held-out samples, longest first, in as many batches as every other rank's.

    ZeRO-3 gathers parameters in each forward pass, so a rank with fewer batches would leave the others waiting: it gets
    empty ones.
    """
    order = np.argsort(-lengths, kind="stable")
    batches = math.ceil(math.ceil(len(order) / ranks) / size)
    mine = order[rank::ranks]
    for number in range(batches):
        yield mine[number * size : (number + 1) * size]
