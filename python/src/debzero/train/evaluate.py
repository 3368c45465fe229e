"""What the model scores on the held-out samples: every sample exactly once, shared out over the ranks."""
from __future__ import annotations

from typing import Callable, NamedTuple

import numpy as np
import torch

from debzero.data.sampler import held_out_batches
from debzero.model.task import Model
from debzero.train import exchange
from debzero.train.context import Context
from debzero.train.engine import to_device
from debzero.train.setup import Samples


class Evaluation(NamedTuple):
    """The task's scores, and some samples with what the model wrote for them (Task.shown)."""

    scores: dict[str, float]
    shown: list[dict[str, str]]


@torch.no_grad()
def evaluate(model: Model, samples: Samples, context: Context, between: Callable[[], None]) -> Evaluation:
    """The same on every rank. The model is in evaluation mode already; `between` runs after each batch."""
    place, batch, device = context.place, context.resolved.batch, context.device
    task = samples.task
    held_out = samples.prepared.held_out
    seen: list[np.ndarray] = []
    answers: list[np.ndarray] = []
    # Without gradients to keep, twice the samples fit.
    for indices in held_out_batches(held_out.lengths, batch.ranks, place.data, 2 * batch.micro):
        found = task.answers(model, to_device(samples.collate(held_out, indices), device))
        # Indices are empty for a batch that only keeps the ranks in step. Of the ranks that have answered together, the
        # first speaks.
        kept = 0 if place.tensor or place.stage else len(indices)
        seen.append(indices[:kept])
        answers.append(found[:kept])
        between()
    rows = exchange.gather_rows(np.concatenate(seen), np.concatenate(answers), len(held_out))
    # Rank 0 alone computes the scores: the library for it takes each process a second to load, and all ranks must act
    # on the same numbers.
    scores, shown = exchange.broadcast([task.metrics(rows, samples.prepared), task.shown(rows, samples.prepared)]
                                       if context.rank == 0 else None)
    return Evaluation(scores, shown)
