"""Which ranks are on which host."""
from __future__ import annotations

from functools import cache
from pathlib import Path

from debzero.base.environment import environment
from debzero.hosts import cluster


def hosts() -> list[str]:
    """The names of the hosts whose ranks these are, in the order of the ranks; one name without a cluster."""
    file = environment().cluster_file
    return _names(file) if file else ["this host"]


@cache
def _names(file: Path) -> list[str]:
    return cluster.read(file).names


def local_ranks() -> int:
    """On each host."""
    import torch.distributed as dist

    return dist.get_world_size() // len(hosts())


def host() -> int:
    """The number of this rank's host."""
    import torch.distributed as dist

    return dist.get_rank() // local_ranks()


def leads() -> bool:
    """Whether this rank is the first of its host: it does what is done once a host."""
    import torch.distributed as dist

    return dist.get_rank() % local_ranks() == 0
