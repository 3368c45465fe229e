"""How a job's ranks are divided: into copies of the model, and each copy over ranks that compute it together."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Optional, Union

from debzero.base.errors import Problem
from debzero.base.text import count_text
from debzero.job.batch import LARGEST_AUTO_MICRO, divisors, nearest
from debzero.job.schema import Job

FULL = 4  # micro-batches a stage, from which on a pipeline waits little (Huang et al. 2019, "GPipe", section 2.3)


class Place(NamedTuple):
    """A rank's: which copy of the model it belongs to, and which part of that it has."""

    data: int
    tensor: int
    stage: int


@dataclass(frozen=True)
class Layout:
    """`data` copies of the model, each in `stage` pipeline stages, each of these on `tensor` ranks. Ranks that follow
    each other compute layers together: they talk most, and are on one host."""

    data: int
    tensor: int = 1
    stage: int = 1

    @property
    def each(self) -> int:
        """Ranks of one copy."""
        return self.tensor * self.stage

    @property
    def ranks(self) -> int:
        return self.data * self.each

    def place(self, rank: int) -> Place:
        return Place(rank // self.tensor % self.data, rank % self.tensor, rank // self.tensor // self.data)

    def rank(self, place: Place) -> int:
        return (place.stage * self.data + place.data) * self.tensor + place.tensor

    def dropout_stream(self, rank: int) -> int:
        """Ranks with the same number drop alike: those that compute layers together, of what they all have."""
        return rank // self.tensor

    def groups(self, field: str) -> Iterator[tuple[int, ...]]:
        """The ranks whose places differ in `field` alone, group by group."""
        for rank in range(self.ranks):
            place = self.place(rank)
            if not getattr(place, field):
                yield tuple(self.rank(place._replace(**{field: number})) for number in range(getattr(self, field)))

    def __str__(self) -> str:
        """What it adds to the batch arithmetic; empty where each copy has one rank."""
        keys = [f"parallel.{key}" for key, size in (("pipeline", self.stage), ("tensor", self.tensor)) if size > 1]
        return f" (each a group of {self.each}: {' x '.join(keys)})" if keys else ""


def count(job: Job, gpus: int, given: Optional[int]) -> int:
    """The ranks of a job; `given`: as the command line has them."""
    if given or job.ranks != "auto":
        return given or int(job.ranks)
    return max(job.parallel.each, gpus)


def micro_batch(job: Job, copies: int) -> Union[int, str]:
    """train.micro_batch; for a pipeline `auto` is the largest that leaves each stage FULL micro-batches a step."""
    wanted, layout = job.train.micro_batch, Layout(copies, job.parallel.tensor, job.parallel.pipeline)
    if wanted != "auto" or layout.stage == 1 or job.train.global_batch % copies:
        return wanted
    return busy(layout, job.train.global_batch, LARGEST_AUTO_MICRO)


def busy(layout: Layout, total: int, most: int) -> int:
    """The largest micro-batch of at most `most` samples that leaves each pipeline stage FULL of them a step; 1 where
    none does. `total`: the global batch, which the copies divide equally."""
    share, least = total // layout.data, FULL * layout.stage if layout.stage > 1 else 1
    return max((size for size in divisors(share) if share // size >= least and size <= most), default=1)


def problems(job: Job, config: Optional[dict[str, Any]], ranks: int, hosts: int,
             file: str) -> list[Problem]:
    """What a job has that does not go with its `parallel:`. `config`: its DeepSpeed JSON; `ranks`: on all `hosts`."""
    each, zero = job.parallel.each, job.zero
    if each == 1:
        return []
    found = []
    if ranks % each:
        found.append(Problem(file, "parallel", f"{count_text(ranks, 'rank')} cannot be divided into groups of "
                             f"{each}", f"use {nearest(ranks, each)} ranks"))
    if hosts > 1:
        found.append(Problem(file, "parallel", f"a divided model trains on one host, not on {hosts}",
                             "remove it, or take the job from the other hosts"))
    if config is not None:
        found.append(Problem(file, "deepspeed", "debzero itself trains divided models, and reads no DeepSpeed JSON "
                             "for them", "remove it, or remove parallel"))
    if zero.stage in (2, 3):
        found.append(Problem(file, "zero.stage", f"{zero.stage} does not go with parallel, which already leaves each "
                             "rank a part of the parameters and gradients", "use none or 1"))
    elif zero.stage == 1 and zero.engine == "deepspeed":
        found.append(Problem(file, "zero.engine", "DeepSpeed does not train divided models here",
                             "remove it"))
    for key in ("offload_optimizer", "offload_param"):
        if getattr(zero, key) != "none" and zero.engine != "native":  # of which native.problems says the same
            found.append(Problem(file, f"zero.{key}", "debzero itself trains divided models, and offloads nothing",
                                 "remove it, or remove parallel"))
    if job.parallel.pipeline > 1 and job.data.answers == "text":
        found.append(Problem(file, "parallel.pipeline", "a model in stages cannot write the texts of an evaluation",
                             "use parallel.tensor instead, or answers: classes"))
    return found
