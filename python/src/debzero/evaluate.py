"""Held-out accuracy and F1: every sample exactly once, shared out over the ranks."""
from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from debzero.data import Collator, Prepared
from debzero.sampler import held_out_batches


def scores(truth: np.ndarray, answers: np.ndarray, classes: int) -> dict[str, float]:
    """F1 of class 1 for two classes (as GLUE counts it), else the mean over classes."""
    from sklearn.metrics import accuracy_score, f1_score

    f1 = f1_score(truth, answers, average="binary" if classes == 2 else "macro", zero_division=0)
    return {"accuracy": float(accuracy_score(truth, answers)), "f1": float(f1)}


@torch.no_grad()
def evaluate(engine: Any, data: Prepared, collate: Collator, micro: int) -> dict[str, float]:
    """The scores, the same on every rank."""
    engine.model.eval()
    rank, ranks = dist.get_rank(), dist.get_world_size()
    mine: list[tuple[int, int]] = []
    for indices in held_out_batches(np.asarray(data.held_out["length"]), ranks, rank, 2 * micro):
        inputs, _ = collate(data.held_out, indices)
        answers = engine.logits(inputs).argmax(-1).tolist()
        mine += zip(indices.tolist(), answers)  # nothing of a stand-in batch, whose indices are empty
    shares: list[list[tuple[int, int]]] = [[] for _ in range(ranks)]
    dist.all_gather_object(shares, mine)
    answered = dict(pair for share in shares for pair in share)
    truth = np.asarray(data.held_out["labels"])
    assert len(answered) == len(truth) == sum(map(len, shares)), "each held-out sample is answered exactly once"
    return scores(truth, np.asarray([answered[i] for i in range(len(truth))]), len(data.labels))
