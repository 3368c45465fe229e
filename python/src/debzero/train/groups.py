"""Process groups for ranks that differ in one respect: which copy of the model they belong to, or which part they
have."""
from __future__ import annotations

from typing import Any, NamedTuple

import torch.distributed as dist

from debzero.resolve.layout import Layout


class Ranks(NamedTuple):
    """Some ranks, in order, and their process group; None and () for all ranks of the job."""

    group: Any
    members: tuple[int, ...]

    @property
    def first(self) -> int:
        return self.members[0] if self.members else 0

    @property
    def own(self) -> int:
        """This rank's number among them."""
        return self.members.index(dist.get_rank())


def ranks_along(layout: Layout, field: str) -> Ranks:
    """The ranks whose places differ from this one's in `field` alone. All ranks of the job call this."""
    made = [Ranks(dist.new_group(list(members)), members) for members in layout.groups(field)]
    return next(ranks for ranks in made if dist.get_rank() in ranks.members)


def stage_groups(layout: Layout, wanted: set[tuple[int, ...]]) -> list[tuple[tuple[int, ...], Any]]:
    """For each of the sets of stages (in which some parameters are tied) that this rank's is in: the set, and the
    process group of those with its place. All ranks of the job call this."""
    own, found = layout.place(dist.get_rank()), []
    for stages in sorted(wanted):
        for place in map(layout.place, range(layout.data * layout.tensor)) if len(stages) > 1 else ():
            group = dist.new_group([layout.rank(place._replace(stage=stage)) for stage in stages])
            if own.stage in stages and own._replace(stage=0) == place:
                found.append((stages, group))
    return found
