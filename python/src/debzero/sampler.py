"""Which samples each rank sees, and when.

Every epoch has its own permutation, cut into global batches, each dealt to ranks and accumulation steps. torch's
DistributedSampler repeats or drops samples to even out the end of an epoch; here the last batch is just smaller, so that
each sample is seen exactly once, and which samples an optimizer step sees depends on neither ranks nor micro-batch.
"""
from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np


def steps_per_epoch(samples: int, global_batch: int) -> int:
    return math.ceil(samples / global_batch)


class EpochSampler:
    """Deals one rank its part of the shuffled samples; `set_epoch` chooses the permutation."""

    def __init__(self, samples: int, global_batch: int, accumulation: int, ranks: int, rank: int, seed: int) -> None:
        self.samples, self.global_batch, self.accumulation = samples, global_batch, accumulation
        self.ranks, self.rank, self.seed, self.epoch = ranks, rank, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return steps_per_epoch(self.samples, self.global_batch)

    def __iter__(self) -> Iterator[tuple[int, list[np.ndarray]]]:
        """Per optimizer step: the samples in it on all ranks, and this rank's micro-batches (some empty in the last)."""
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.samples)
        for start in range(0, self.samples, self.global_batch):
            batch = order[start : start + self.global_batch]
            parts = np.array_split(batch, self.ranks * self.accumulation)
            yield len(batch), parts[self.rank :: self.ranks]


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
