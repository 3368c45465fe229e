"""Parameters in one flat tensor, of which each rank has an equal share; those of a layer are whole only while it
computes."""
from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, Optional

import torch
import torch.distributed as dist

from debzero.train import gloo

ALIGNMENT = 8  # elements: 16 bytes in half precision, as matrix products and vectorised kernels want them


def aligned(elements: int, of: int = ALIGNMENT) -> int:
    return -(-elements // of) * of


class Flat:
    """Parameters that lie one after the other in one tensor. Each begins at a multiple of 16 bytes: compiled kernels
    that have once seen a layer's so take all others' for such."""

    def __init__(self, parameters: Sequence[Any], device: Any, half: Any) -> None:
        """The weights are the first rank's. `half`: the type that the model computes in."""
        self.parameters, self.starts, end = list(parameters), list[int](), 0
        for parameter in self.parameters:
            self.starts.append(end)
            end = aligned(end + parameter.numel())
        ranks, rank = dist.get_world_size(), dist.get_rank()
        self.share = aligned(end, ALIGNMENT * ranks) // ranks  # elements of each rank's equal part
        self.held = slice(rank * self.share, (rank + 1) * self.share)
        whole = torch.zeros(self.share * ranks, device=device)
        for parameter, part in self.parts():
            whole[part].copy_(parameter.detach().reshape(-1))
        dist.broadcast(whole, 0)
        self.master = whole[self.held].clone()  # fp32, this rank's to update
        self.master.grad = torch.zeros_like(self.master)
        self.weights = whole.to(half)
        for parameter, part in self.parts():
            parameter.data = self.weights[part].view_as(parameter)

    def parts(self) -> Iterator[tuple[Any, slice]]:
        for parameter, start in zip(self.parameters, self.starts):
            yield parameter, slice(start, start + parameter.numel())

    def take_gradients(self) -> Any:
        """half[share * ranks]: the gradients of all parameters, zeros where there is none; the parameters have none any
        more."""
        whole = torch.empty_like(self.weights)
        parts, end = list[Any](), 0
        for parameter, part in self.parts():
            if part.start > end:
                parts.append(whole.new_zeros(part.start - end))
            parts.append(whole.new_zeros(parameter.numel()) if parameter.grad is None else parameter.grad.reshape(-1))
            parameter.grad, end = None, part.stop
        torch.cat([*parts, whole.new_zeros(len(whole) - end)], out=whole)
        return whole


class Unit(Flat):
    """Parameters whose `weights` are gathered and freed: their memory is there between `start` and `free`.

    What the backward pass needs of the weights are views of the same storage: they see what is gathered there again.
    All work is queued on the current stream: a block of memory is reused only after what was queued before.
    """

    gradients = None  # nothing is kept for the next micro-batch but the share's sum

    def __init__(self, parameters: Sequence[Any], decayed: Collection[Any], device: Any, half: Any) -> None:
        """`decayed`: the parameters with weight decay. They come first, so that a share has at most two pieces for
        AdamW."""
        super().__init__(sorted(parameters, key=lambda parameter: parameter not in decayed), device, half)
        boundary = max((aligned(part.stop) for parameter, part in self.parts() if parameter in decayed), default=0)
        self.own = self.master.to(half)  # in fp32 the same tensor
        cut = min(max(boundary - self.held.start, 0), self.share)
        self.pieces = (self.master[:cut], self.master[cut:])  # with weight decay, and without
        self.pieces[0].grad, self.pieces[1].grad = self.master.grad[:cut], self.master.grad[cut:]
        self.storage = _storage(self.weights)
        self.bytes = self.storage.nbytes()
        self.work: Optional[Any] = None
        self.free()

    @property
    def is_there(self) -> bool:
        """Whether the weights are gathered, or on their way."""
        return bool(self.storage.nbytes())

    def start(self) -> None:
        """Begin to gather the weights, if nobody has."""
        if not self.is_there:
            self.storage.resize_(self.bytes)
            gather = dist.all_gather_into_tensor if self.weights.is_cuda else gloo.all_gather_into_tensor
            self.work = gather(self.weights, self.own, async_op=True)

    def wait(self) -> None:
        """Have the weights there for what is queued from now on."""
        self.start()
        if self.work is not None:
            self.work.wait()
            self.work = None

    def free(self) -> None:
        """What was queued before still finds the weights."""
        if self.work is not None:  # nothing has used them
            self.work.wait()
            self.work = None
        self.storage.resize_(0)

    def renew(self) -> None:
        """Take over what the optimizer made of the share's weights."""
        if self.own is not self.master:
            self.own.copy_(self.master)


def _storage(tensor: Any) -> Any:
    return tensor.untyped_storage() if hasattr(tensor, "untyped_storage") else tensor.storage().untyped()
