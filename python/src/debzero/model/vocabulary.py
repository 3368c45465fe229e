"""A vocabulary that is divided over ranks: the embedding, the head that predicts tokens, and its loss.

The logits of all tokens are the largest tensor of a small model's training. So no rank ever has all of them, unless
text is generated.
"""
from __future__ import annotations

from functools import wraps
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

from debzero.model.parts import Part
from debzero.model.task import IGNORED


class _Losses(torch.autograd.Function):
    """float32[n]: minus the log-likelihood of each target, 0 for IGNORED ones. logits: float32[n, this rank's share of
    the vocabulary], which begins at token `start`."""

    @staticmethod
    def forward(ctx: Any, logits: Any, targets: Any, start: int, part: Part) -> Any:
        width = logits.shape[-1]
        highest = logits.max(-1).values if width else logits.new_full(logits.shape[:1], -torch.inf)
        part.all_reduce(highest, dist.ReduceOp.MAX)
        shifted = logits - highest.unsqueeze(-1)
        places = targets - start
        here = (places >= 0) & (places < width)
        found = places.clamp(0, max(width - 1, 0)).unsqueeze(-1)  # one place a row: the host need not know how many
        wanted = torch.zeros_like(highest)
        if width:
            wanted = shifted.gather(-1, found).squeeze(-1).masked_fill(~here, 0.0)
        likelihoods = shifted.exp_()
        sums = torch.stack([likelihoods.sum(-1), wanted])
        part.all_reduce(sums)
        known = targets != IGNORED
        likelihoods /= sums[0].unsqueeze(-1)
        ctx.save_for_backward(likelihoods, found, here, known)
        return (sums[0].log() - sums[1]).masked_fill(~known, 0.0)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        likelihoods, found, here, known = ctx.saved_tensors
        result = likelihoods.clone()
        if result.shape[-1]:
            result.scatter_add_(-1, found, -here.to(result.dtype).unsqueeze(-1))
        return result * (gradients[0] * known).unsqueeze(-1), None, None, None


class Logits:
    """[n, tokens, this rank's share of the vocabulary]."""

    def __init__(self, values: Any, start: int, part: Part) -> None:
        self.values, self.start, self.part = values, start, part

    def token_losses(self, targets: Any) -> Any:
        """As model/task.token_losses, with every rank's share. targets: int64[n, tokens]."""
        flat = self.values.float().flatten(0, 1)
        return _Losses.apply(flat, targets.flatten(), self.start, self.part).view(targets.shape)


def divide_embedding(embedding: Any, count: int, part: Part) -> None:
    """Let an embedding of `count` tokens look up those of this rank's share, which its weight holds, and add what the
    others find."""
    own, padding = part.share(count), embedding.padding_idx
    local = padding - own.start if padding is not None and padding in own else None

    def forward(ids: Any) -> Any:
        foreign = (ids < own.start) | (ids >= own.stop)
        found = F.embedding((ids - own.start).masked_fill(foreign, 0), embedding.weight, local)
        return part.sum(found.masked_fill(foreign.unsqueeze(-1), 0.0))

    embedding.forward = forward


class Head:
    """A model's head whose weight holds this rank's share of `count` tokens. Tasks get Logits from the model, or all of
    them while `whole` is set, as generating text needs them."""

    def __init__(self, model: Any, count: int, part: Part) -> None:
        self.whole = False
        linear, forward, own = model.get_output_embeddings(), model.forward, part.share(count)

        def predict(hidden: Any) -> Any:
            logits = F.linear(part.spread(hidden), linear.weight, linear.bias)
            return part.joined(logits, count) if self.whole else logits

        @wraps(forward)
        def run(*args: Any, labels: Any = None, **kwargs: Any) -> Any:
            if labels is not None:  # the model's own loss would take its logits for all
                kwargs["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels)
            output = forward(*args, **kwargs)
            if not self.whole:
                output.logits = self.divided(output.logits)
            return output

        self.divided = lambda values: Logits(values, own.start, part)
        linear.forward, model.forward = predict, run
