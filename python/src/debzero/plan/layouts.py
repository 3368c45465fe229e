"""How a model and its batch may be laid out over many GPUs: one type, with its names."""
from __future__ import annotations

from dataclasses import dataclass

from debzero.plan.collectives import Cluster, Group
from debzero.resolve.sharding import Sharding


@dataclass(frozen=True)
class Layout:
    """`stage` of ZeRO in each group of data-parallel ranks; `tensor` ranks share each layer; `pipeline` stages share
    the layers. Ranks are numbered as Megatron-LM does: tensor innermost, then data, then pipeline (Narayanan et al.
    2021, section 3)."""

    stage: int
    tensor: int = 1
    pipeline: int = 1

    @property
    def parts(self) -> int:
        """Ranks that hold one copy of the model together."""
        return self.tensor * self.pipeline

    @property
    def label(self) -> str:
        """For people: plain DDP, ZeRO-2, tensor 8 x pipeline 4."""
        words = [f"tensor {self.tensor}"] * (self.tensor > 1) + [f"pipeline {self.pipeline}"] * (self.pipeline > 1)
        return " x ".join(words) or Sharding(self.stage).label

    def copies(self, cluster: Cluster) -> int:
        """Of the model: the data-parallel ranks."""
        return cluster.ranks // self.parts

    def data_group(self, cluster: Cluster) -> Group:
        """Those that average the gradients of one part of the model."""
        copies = self.copies(cluster)
        each = min(copies, max(1, cluster.gpus // self.tensor))  # of one host
        hosts = -(-copies // each)
        return Group(cluster, copies, hosts, cluster.gpus // each if hosts > 1 else 1)

    def tensor_group(self, cluster: Cluster) -> Group:
        return Group(cluster, self.tensor, 1)

    def next_stage(self, cluster: Cluster) -> Group:
        """A rank and the one of the next pipeline stage that it sends to. The busiest link counts: if a stage ends
        within a host, other stages end at its border."""
        hosts = 2 if cluster.hosts > 1 else 1
        stage = self.copies(cluster) * self.tensor  # ranks
        return Group(cluster, 2, hosts, min(stage, cluster.gpus))


def layouts(cluster: Cluster, layers: int, heads: int) -> list[Layout]:
    """What is worth comparing: ZeRO over all ranks; tensor parallelism within a host and pipelines of equal stages,
    alone and together, with ZeRO-1 among their copies."""
    sizes = [size for size in (2, 4, 8, 16) if cluster.ranks % size == 0]
    tensors = [size for size in sizes if cluster.gpus % size == 0 and heads % size == 0]
    pipelines = [size for size in sizes if layers % size == 0]
    found = [Layout(stage) for stage in range(4)]
    found += [Layout(1, tensor=size) for size in tensors]
    found += [Layout(1, pipeline=size) for size in pipelines]
    if tensors:
        found += [Layout(1, tensors[-1], size) for size in pipelines if cluster.ranks % (tensors[-1] * size) == 0]
    return found
