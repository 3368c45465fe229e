"""What every part of a rank's training needs to know."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, TypeVar

import torch
import torch.distributed as dist

from debzero.resolve.layout import Place
from debzero.resolve.resolve import ResolvedJob
from debzero.run.folder import RunFolder
from debzero.run.progress import Progress
from debzero.train import exchange, placement

T = TypeVar("T")


@dataclass(frozen=True)
class Context:
    """The job, where it writes, and this rank's device."""

    resolved: ResolvedJob
    folder: RunFolder
    device: torch.device
    progress: Progress

    def agree(self, work: Callable[[], T]) -> T:
        """What the first rank of this host got from `work`. An error of any host's is raised on all ranks, which all
        call this."""
        found: T = exchange.agree(work)
        return found

    def everywhere(self, work: Callable[[], T]) -> list[T]:
        """As agree, of every host."""
        return exchange.everywhere(work)

    @property
    def leads(self) -> bool:
        """Whether this rank is the first of its host, which alone writes to its output folder."""
        return placement.leads()

    @property
    def rank(self) -> int:
        return int(dist.get_rank())

    @property
    def ranks(self) -> int:
        return self.resolved.layout.ranks

    @property
    def place(self) -> Place:
        return self.resolved.layout.place(self.rank)
