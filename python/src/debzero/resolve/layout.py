"""How a job's ranks are divided: into copies of the model, and each copy over ranks that compute it together."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Optional

from debzero.base.errors import Problem
from debzero.base.text import count_text
from debzero.job.batch import nearest
from debzero.job.schema import Job


class Place(NamedTuple):
    """A rank's: which copy of the model it belongs to, and which part of that it has."""

    data: int
    tensor: int


@dataclass(frozen=True)
class Layout:
    """`data` copies of the model, each on `tensor` ranks. Ranks that follow each other share a copy: they talk most,
    and are on one host."""

    data: int
    tensor: int = 1

    @property
    def each(self) -> int:
        """Ranks of one copy."""
        return self.tensor

    @property
    def ranks(self) -> int:
        return self.data * self.each

    def place(self, rank: int) -> Place:
        return Place(rank // self.tensor, rank % self.tensor)

    def rank(self, place: Place) -> int:
        return place.data * self.tensor + place.tensor

    def groups(self, field: str) -> Iterator[tuple[int, ...]]:
        """The ranks whose places differ in `field` alone, group by group."""
        for rank in range(self.ranks):
            place = self.place(rank)
            if not getattr(place, field):
                yield tuple(self.rank(place._replace(**{field: number})) for number in range(getattr(self, field)))

    def __str__(self) -> str:
        """What it adds to the batch arithmetic; empty where each copy has one rank."""
        return "" if self.each == 1 else f" (each a group of {self.each}: parallel.tensor)"


def count(job: Job, gpus: int, given: Optional[int]) -> int:
    """The ranks of a job; `given`: as the command line has them."""
    if given or job.ranks != "auto":
        return given or int(job.ranks)
    return max(job.parallel.each, gpus)


def undivided(job: Job, file: str) -> list[Problem]:
    """Why a job is none for commands that compare what ZeRO shards and offloads: plan, tune and bench."""
    if job.parallel.each == 1:
        return []
    return [Problem(file, "parallel", "this command compares ZeRO's stages, which a divided model has none of",
                    "remove it from a copy of the job to see what ZeRO alone needs; `debzero train` trains it as it "
                    "is")]


def problems(job: Job, config: Optional[dict[str, Any]], ranks: int, file: str) -> list[Problem]:
    """What a job has that does not go with its `parallel:`. `config`: its DeepSpeed JSON."""
    each, zero = job.parallel.each, job.zero
    if each == 1:
        return []
    found = []
    if ranks % each:
        found.append(Problem(file, "parallel.tensor", f"{count_text(ranks, 'rank')} cannot be divided into groups of "
                             f"{each}", f"use {nearest(ranks, each)} ranks"))
    if config is not None:
        found.append(Problem(file, "deepspeed", "debzero itself carries out parallel.tensor, and reads no DeepSpeed "
                             "JSON for it", "remove it, or remove parallel"))
    if zero.stage in (2, 3):
        found.append(Problem(file, "zero.stage", f"{zero.stage} does not go with parallel.tensor, which already leaves "
                             "each rank a part of the parameters and gradients", "use none or 1"))
    elif zero.stage == 1 and zero.engine != "native":
        found.append(Problem(file, "zero.engine", "DeepSpeed does not carry out parallel.tensor", "set it to native"))
    return found
