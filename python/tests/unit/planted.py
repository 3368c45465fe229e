"""Faults that a training can be given, by name: who compares trainings must see each of them.

warm.py plants the one that the variable PLANTED names into a child before it runs the command.
"""
from __future__ import annotations

import hashlib
import os
from functools import wraps

import numpy as np
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


def _gradient_summed_twice() -> None:
    """The gradients of a sum over tensor-parallel ranks are summed again, as torch's own differentiable sum does."""
    from debzero.model import parts

    def backward(ctx, gradient):
        total = gradient.clone()
        ctx.part.all_reduce(total)
        return total, None

    forward = parts._Sum.forward

    def keeping(ctx, values, part):
        ctx.part = part
        return forward(ctx, values, part)

    parts._Sum.forward, parts._Sum.backward = staticmethod(keeping), staticmethod(backward)


def _gradient_scaled_on_the_way() -> None:
    """The earlier stages of a pipeline divide their gradients by the accumulation steps once more."""
    from debzero.train.neighbours import Neighbours

    receive = Neighbours.receive_up
    Neighbours.receive_up = lambda self, shapes: [gradient / 4 for gradient in receive(self, shapes)]


def _dropout_recorded() -> None:
    """No fault: each rank writes down what it drops, as the shape and the digest of each mask."""
    drop, folder = torch.nn.functional.dropout, os.getcwd()

    def recorded(values, p=0.5, training=True, inplace=False):
        if not (training and p):
            return values
        mask = drop(torch.ones_like(values), p, True)
        with open(f"{folder}/dropped-{os.environ['RANK']}", "a") as file:
            digest = hashlib.sha256(mask.numpy().tobytes()).hexdigest()
            file.write(f"{','.join(map(str, mask.shape))} {digest}\n")
        return values * mask

    torch.nn.functional.dropout = recorded


def _parts_drop_alike() -> None:
    """Tensor-parallel ranks drop the same of their own parts."""
    from debzero.model.parts import Part

    Part.own_numbers = lambda self: None
    _dropout_recorded()


def _copies_drop_alike() -> None:
    """Each copy of the model drops the same."""
    sequence = np.random.SeedSequence
    np.random.SeedSequence = lambda entropy: sequence(entropy[:2])
    _dropout_recorded()


def _shared_dropped_apart() -> None:
    """Tensor-parallel ranks drop something else of what they all have."""
    from debzero.model.parts import Part

    Part.shared_numbers = lambda self: None
    _dropout_recorded()


def _stages_drop_alike() -> None:
    """Each stage of a pipeline drops the same."""
    from debzero.resolve.layout import Layout

    Layout.dropout_stream = lambda self, rank: self.place(rank).data
    _dropout_recorded()


PLANTS = {"gradient scaled twice": _gradient_scaled_twice, "mask forgotten": _mask_forgotten,
          "gradient summed twice": _gradient_summed_twice,
          "gradient scaled twice on the way": _gradient_scaled_on_the_way, "dropout recorded": _dropout_recorded,
          "parts drop alike": _parts_drop_alike, "copies drop alike": _copies_drop_alike,
          "stages drop alike": _stages_drop_alike,
          "shared dropped apart": _shared_dropped_apart}
