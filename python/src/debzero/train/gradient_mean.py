"""The mean of the ranks' gradients, exchanged while the backward pass still runs.

DistributedDataParallel does the same, but keeps a second copy of all gradients, cannot be recorded in a CUDA graph
before its eleventh step, and not where the ranks' shapes differ.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Callable

import torch
import torch.distributed as dist

from debzero.resolve.native import BUCKET


class GradientMean:
    """Sums the gradients of all ranks, in place. Who calls it divides the loss by the number of ranks, so that the sum
    is the mean. All ranks send the same buckets in the same order, whatever their shapes are and whether they replay a
    graph."""

    def __init__(self, parameters: Sequence[Any], group: Any = None) -> None:
        """`group`: the ranks that have these parameters; all by default."""
        self.group = group
        self.buckets: list[list[Any]] = []
        self.bucket_of: dict[Any, int] = {}
        room = 0
        for parameter in reversed(parameters):  # the last layer's gradients come first
            if room < parameter.numel():
                self.buckets.append([])
                room = BUCKET
            room -= parameter.numel()
            self.buckets[-1].append(parameter)
            self.bucket_of[parameter] = len(self.buckets) - 1
        self.nodes = [listen(parameter, self._ready) for parameter in parameters]
        self.sending, self.sent, self.missing = False, 0, list[int]()
        self.works: list[Any] = []

    def start(self) -> None:
        """The next backward pass completes the gradients."""
        self.sending, self.sent, self.works = True, 0, []
        self.missing = [len(bucket) for bucket in self.buckets]

    def _ready(self, parameter: Any) -> None:
        if self.sending:
            self.missing[self.bucket_of[parameter]] -= 1
            while self.sent < len(self.buckets) and not self.missing[self.sent]:
                self._send()

    def _send(self) -> None:
        # A parameter that the task does not use has no gradient, on all ranks alike.
        gradients = [p.grad for p in self.buckets[self.sent] if p.grad is not None]
        self.sent += 1
        if gradients:
            # dist.all_reduce_coalesced gives a future in place of the work. To wait for that does not free what was
            # sent: it stays until the next exchange, a second copy of all gradients while a graph is recorded.
            self.works.append((self.group or dist.group.WORLD).allreduce_coalesced(gradients))

    def finish(self) -> None:
        """Send what is left, and let the device wait for the sums."""
        while self.sent < len(self.buckets):
            self._send()
        for work in self.works:
            work.wait()
        self.sending, self.works = False, []


def listen(parameter: Any, ready: Callable[[Any], None]) -> Any:
    """Call ready(parameter) whenever its gradient is complete; what is returned must be kept as long."""
    if hasattr(parameter, "register_post_accumulate_grad_hook"):
        return parameter.register_post_accumulate_grad_hook(ready)
    node = parameter.expand_as(parameter).grad_fn.next_functions[0][0]  # torch before 2.1
    node.register_hook(lambda *_: ready(parameter))
    return node


def broadcast(model: torch.nn.Module, group: Any = None, first: int = 0) -> None:
    """Give every rank of the group the weights of its `first`."""
    for tensor in model.state_dict().values():
        dist.broadcast(tensor, first, group)
