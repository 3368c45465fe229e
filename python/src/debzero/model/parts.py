"""The ranks that compute one model's layers together, and what passes between them: two collectives, each the other's
transpose, and the random numbers of dropout (Shoeybi et al., 2019, "Megatron-LM", sections 3 and 4)."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Optional

import torch
import torch.distributed as dist


class _Spread(torch.autograd.Function):
    """Forward nothing; backward the sum over the ranks: each has the gradient of its own part of a layer."""

    @staticmethod
    def forward(ctx: Any, values: Any, part: Any) -> Any:
        ctx.part = part
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        ctx.part.all_reduce(total)
        return total, None


class _Sum(torch.autograd.Function):
    """Forward the sum over the ranks; backward nothing: all ranks have the sum's gradient."""

    @staticmethod
    def forward(ctx: Any, values: Any, part: Any) -> Any:
        total = values.clone(memory_format=torch.contiguous_format)
        part.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0], None


class Part:
    """This rank's place among those that compute each layer together. `group`: torch's process group."""

    def __init__(self, number: int, of: int, group: Any, device: Any) -> None:
        self.number, self.of, self.group, self.device = number, of, group, device
        self.before: Optional[tuple[Any, Any]] = None  # the generators' states that all ranks share

    def spread(self, values: Any) -> Any:
        """What all ranks have, at the entrance of a layer of which each has a part."""
        return _Spread.apply(values, self)

    def sum(self, values: Any) -> Any:
        """What each rank has a term of, on all ranks."""
        return _Sum.apply(values, self)

    def all_reduce(self, tensor: Any, op: Any = dist.ReduceOp.SUM) -> None:
        """The sum (or other `op`) over the ranks, in the tensor's place."""
        dist.all_reduce(tensor, op, self.group)

    def share(self, count: int) -> range:
        """Of `count` rows, those of this rank; the last ranks may have fewer."""
        size = -(-count // self.of)
        return range(min(self.number * size, count), min((self.number + 1) * size, count))

    def joined(self, values: Any, count: int) -> Any:
        """[..., count] on all ranks, of which each has its share of the last dimension. No gradients."""
        size = -(-count // self.of)
        own = torch.nn.functional.pad(values.detach(), (0, size - values.shape[-1])).contiguous()
        parts = [torch.empty_like(own) for _ in range(self.of)]
        dist.all_gather(parts, own, self.group)
        return torch.cat(parts, -1)[..., :count]

    def own_numbers(self) -> None:
        """From here on random numbers are this rank's own: it drops from a part that no other has.

        Their seed is drawn from the numbers that the ranks share, so a layer that is computed again, with
        gradient checkpointing, draws them again.
        """
        seed = int(torch.randint(2**62, ()))
        cuda = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        self.before = torch.get_rng_state(), cuda
        torch.manual_seed(seed + self.number)

    def shared_numbers(self) -> None:
        """Return to the numbers that all ranks share: what all have, all drop alike."""
        if self.before is None:
            return
        host, cuda = self.before
        self.before = None
        torch.set_rng_state(host)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, self.device)


@dataclass(frozen=True)
class Cut:
    """How a parameter is divided: along `dim`, each of its equal `sections` by itself (GPT-2 has queries, keys and
    values in one). `shape`: the whole parameter's."""

    dim: int
    sections: int
    shape: tuple[int, ...]

    def part(self, whole: Any, number: int, of: int) -> Any:
        """A copy of rank `number`'s part."""
        pieces = []
        for section in whole.chunk(self.sections, self.dim):
            size = -(-section.shape[self.dim] // of)
            start = min(number * size, section.shape[self.dim])
            pieces.append(section.narrow(self.dim, start, min(size, section.shape[self.dim] - start)))
        return torch.cat(pieces, self.dim).clone()

    def whole(self, parts: Sequence[Any]) -> Any:
        """The parameter of which these are all ranks' parts."""
        sections = zip(*(part.chunk(self.sections, self.dim) for part in parts))
        return torch.cat([piece for section in sections for piece in section], self.dim)

    def shape_of_part(self, number: int, of: int) -> tuple[int, ...]:
        return tuple(self.part(torch.empty(self.shape, device="meta"), number, of).shape)
