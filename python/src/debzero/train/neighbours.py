"""What a pipeline stage sends to the stages before and after it: hidden states down, their gradients up, in float32.

Each direction has a process group of its own. On a GPU a group's messages wait for each other, and two stages that
send to each other at the same time would wait for ever.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional

import torch
import torch.distributed as dist

from debzero.resolve.layout import Layout
from debzero.train.groups import ranks_along

DIMENSIONS = 3  # of logits at most


class Neighbours:
    """Of one rank: its line of stages. All ranks of the job make theirs at the same time."""

    def __init__(self, layout: Layout, device: Any) -> None:
        self.down, self.up = ranks_along(layout, "stage"), ranks_along(layout, "stage")
        self.device, self.sending = device, list[tuple[Any, Any]]()

    def receive_down(self, shapes: Sequence[tuple[int, ...]]) -> list[Any]:
        """Hidden states of these shapes, from the stage before."""
        return [self._receive(shape, self.down, -1) for shape in shapes]

    def receive_up(self, shapes: Sequence[tuple[int, ...]]) -> list[Any]:
        """Gradients of what was sent down, from the stage after."""
        return [self._receive(shape, self.up, 1) for shape in shapes]

    def send_down(self, tensors: Sequence[Any]) -> None:
        self._send(tensors, self.down, 1)

    def send_up(self, tensors: Sequence[Any]) -> None:
        self._send(tensors, self.up, -1)

    def _receive(self, shape: tuple[int, ...], line: Any, step: int) -> Any:
        tensor = torch.empty(shape, device=self.device)
        dist.recv(tensor, line.members[line.own + step], line.group)
        return tensor

    def _send(self, tensors: Sequence[Any], line: Any, step: int) -> None:
        for tensor in tensors:
            kept = tensor.detach().contiguous()
            self.sending.append((dist.isend(kept, line.members[line.own + step], line.group), kept))

    def wait(self) -> None:
        """Until all that was sent has arrived."""
        for work, _ in self.sending:
            work.wait()
        self.sending = []

    def from_last(self, tensor: Any) -> None:
        """Give all stages the last one's values."""
        dist.broadcast(tensor, self.down.members[-1], self.down.group)

    def shared(self, tensor: Optional[Any]) -> Any:
        """The last stage's tensor on all stages, which do not know its shape."""
        sizes = torch.zeros(DIMENSIONS, dtype=torch.int64, device=self.device)
        if tensor is not None:
            sizes[: tensor.dim()] = torch.tensor(tensor.shape)
        self.from_last(sizes)
        if tensor is None:
            tensor = torch.empty([size for size in sizes.tolist() if size], device=self.device)
        tensor = tensor.contiguous()
        self.from_last(tensor)
        return tensor
