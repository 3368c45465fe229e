"""How long a collective takes: the bytes that it moves over each link, and the hops that it waits for.

NCCL's rings move (n-1)/n of the data past each rank for a reduce-scatter or an all-gather, and twice as much for an
all-reduce (nccl-tests, doc/PERFORMANCE.md; Rajbhandari et al. 2020, section 7). Across hosts, NCCL all-reduces over two
binary trees of hosts instead: each host's link then carries 2(h-1)/h of the data, whatever number of GPUs it has, and
the number of hops grows with log2(h) alone (NCCL 2.4's release notes; src/graph/tuning.cc). gloo has rings only, and
debzero builds its reduce-scatter of an all-reduce (train/gloo). Chunks are pipelined, so the slowest link counts.
"""
from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Cluster:
    """Equal hosts on one switch. Rates are those of one direction, in bytes per second that a transfer reaches; a hop
    is the latency of one message, in seconds."""

    hosts: int
    gpus: int           # ranks of a host
    link: float         # of a host to the others, all its interfaces together
    local: float        # of a GPU to the others of its host
    hop: float
    local_hop: float
    gloo: bool = False  # between processors, not NCCL between GPUs

    @property
    def ranks(self) -> int:
        return self.hosts * self.gpus


@dataclass(frozen=True)
class Group:
    """The ranks of one collective, as many on each of the hosts that they lie on. `sharing`: the groups that use the
    link of a host at the same time."""

    cluster: Cluster
    ranks: int
    hosts: int
    sharing: int = 1

    @property
    def link(self) -> float:
        return self.cluster.link / self.sharing

    def all_reduce(self, size: float) -> float:
        """Seconds to sum `size` bytes on every rank."""
        cluster, each = self.cluster, self.ranks // self.hosts
        if cluster.gloo or self.hosts == 1:
            return 2 * self._ring(size)
        inside, between = 2 * (each - 1) / each * size, 2 * (self.hosts - 1) / self.hosts * size
        hops = 2 * ((each - 1) * cluster.local_hop + math.log2(self.hosts) * cluster.hop)
        return max(inside / cluster.local, between / self.link) + hops

    def reduce_scatter(self, size: float) -> float:
        """Seconds to sum `size` bytes, of which each rank gets an equal part."""
        return self.all_reduce(size) if self.cluster.gloo else self._ring(size)

    def all_gather(self, size: float) -> float:
        """Seconds to bring equal parts, of `size` bytes together, to every rank."""
        return self._ring(size)

    def send(self, size: float) -> float:
        """Seconds for one message of each rank to a rank of the next stage."""
        cluster = self.cluster
        return size / self.link + cluster.hop if self.hosts > 1 else size / cluster.local + cluster.local_hop

    def _ring(self, size: float) -> float:
        """One way round: every rank passes on all parts but one."""
        cluster = self.cluster
        rates = [self.link] * (self.hosts > 1) + [cluster.local] * (self.ranks > self.hosts)
        between = self.hosts if self.hosts > 1 else 0  # of the ring's links; one link is not used in each round
        steps = self.ranks - 1
        hops = steps * (between * cluster.hop + (self.ranks - between) * cluster.local_hop) / self.ranks
        return steps / self.ranks * size / min(rates) + hops if rates else 0.0


def exposed(transfer: float, window: float, pieces: int) -> float:
    """Seconds of `transfer` that computing for `window` seconds does not hide.

    Both come in `pieces` equal parts; a part is sent when it is computed and the one before it is through (Li et al.
    2020, "PyTorch Distributed", section 3.2.3). So the last part never hides.
    """
    return max(transfer / pieces, window / pieces + transfer - window)
