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
