"""Faults that a training can be given, by name: who compares trainings must see each of them.

warm.py plants the one that the variable PLANTED names into a child before it runs the command.
"""
from __future__ import annotations

from functools import wraps

import torch


def _gradient_scaled_twice() -> None:
    """The sum over the ranks is divided by their number once too rarely."""
    from debzero.train.gradient_mean import GradientMean

    finish = GradientMean.finish

    @wraps(finish)
    def twice(self):
        finish(self)
        for bucket in self.buckets:
            for parameter in bucket:
                if parameter.grad is not None:
                    parameter.grad.mul_(2)

    GradientMean.finish = twice


def _mask_forgotten() -> None:
    """Padding is read as if it were text."""
    from debzero.data.collator import Collator

    collate = Collator.__call__

    @wraps(collate)
    def without(self, samples, indices):
        batch = collate(self, samples, indices)
        return {**batch, "attention_mask": torch.ones_like(batch["attention_mask"])}

    Collator.__call__ = without


PLANTS = {"gradient scaled twice": _gradient_scaled_twice, "mask forgotten": _mask_forgotten}
