"""What every part of a rank's training needs to know."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Protocol, TypeVar

import torch
import torch.distributed as dist

from debzero.resolve.layout import Place
from debzero.resolve.resolve import ResolvedJob
from debzero.run.folder import RunFolder
from debzero.run.progress import Progress

T = TypeVar("T")


class Agree(Protocol):
    """Runs a function on rank 0; all ranks get its result, or raise its error. All ranks call it."""

    def __call__(self, work: Callable[[], T]) -> T: ...


@dataclass(frozen=True)
class Context:
    """The job, where it writes, and this rank's device."""

    resolved: ResolvedJob
    folder: RunFolder
    device: torch.device
    agree: Agree
    progress: Progress

    @property
    def rank(self) -> int:
        return int(dist.get_rank())

    @property
    def ranks(self) -> int:
        return self.resolved.layout.ranks

    @property
    def place(self) -> Place:
        return self.resolved.layout.place(self.rank)
