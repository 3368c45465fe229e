"""What the model scores on the held-out samples: every sample exactly once, shared out over the ranks."""
from __future__ import annotations

from typing import Any, Callable

import numpy as np
import torch
import torch.distributed as dist

from debzero.data.collator import Collator
from debzero.data.sampler import held_out_batches
from debzero.data.tokens import Prepared
from debzero.model.tasks import Task


@torch.no_grad()
def evaluate(forward: Callable[..., Any], task: Task, prepared: Prepared, collate: Collator, device: torch.device,
             micro: int, between: Callable[[], None]) -> dict[str, float]:
    """The task's scores, the same on every rank. The model is in evaluation mode already; `between` runs after each
    batch."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    held_out = prepared.held_out
    seen: list[np.ndarray] = []
    answers: list[np.ndarray] = []
    # Without gradients to keep, twice the samples fit.
    for indices in held_out_batches(held_out.lengths, ranks, rank, 2 * micro):
        batch = {name: tensor.to(device, non_blocking=True) for name, tensor in collate(held_out, indices).items()}
        seen.append(indices)
        # nothing of a stand-in batch, whose indices are empty
        answers.append(task.answers(forward, batch)[: len(indices)])
        between()
    shares: list[Any] = [None] * ranks
    dist.all_gather_object(shares, (np.concatenate(seen), np.concatenate(answers)))
    order = np.concatenate([indices for indices, _ in shares])
    assert np.array_equal(np.sort(order), np.arange(len(held_out))), "each held-out sample is answered exactly once"
    # One rank counts: the library of the scores takes each process a second to load, and all ranks must act on the same
    # numbers.
    found = [task.metrics(np.concatenate([rows for _, rows in shares])[np.argsort(order)], prepared) if rank == 0
             else {}]
    dist.broadcast_object_list(found, 0)
    return found[0]
