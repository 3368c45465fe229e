"""The layouts over many GPUs that are worth comparing, and which ranks talk in them over which links."""
from __future__ import annotations

from debzero.plan.collectives import Cluster, Group
from debzero.resolve.layout import Layout
from debzero.resolve.sharding import Sharding


def label(stage: int, layout: Layout) -> str:
    """For people: plain DDP, ZeRO-2, tensor 8 x pipeline 4. `stage`: ZeRO's, among the copies."""
    words = [f"tensor {layout.tensor}"] * (layout.tensor > 1) + [f"pipeline {layout.stage}"] * (layout.stage > 1)
    return " x ".join(words) or Sharding(stage).label


def data_group(layout: Layout, cluster: Cluster) -> Group:
    """The ranks that average the gradients of one part of the model."""
    each = min(layout.data, max(1, cluster.gpus // layout.tensor))  # of one host
    hosts = -(-layout.data // each)
    return Group(cluster, layout.data, hosts, cluster.gpus // each if hosts > 1 else 1)


def tensor_group(layout: Layout, cluster: Cluster) -> Group:
    return Group(cluster, layout.tensor, 1)


def next_stage(layout: Layout, cluster: Cluster) -> Group:
    """A rank and the one of the next pipeline stage that it sends to. The busiest link counts: if a stage ends within a
    host, other stages end at its border."""
    return Group(cluster, 2, 2 if cluster.hosts > 1 else 1, min(layout.data * layout.tensor, cluster.gpus))


def layouts(cluster: Cluster, layers: int, heads: int) -> list[tuple[int, Layout]]:
    """What is worth comparing, each with ZeRO's stage among its copies: ZeRO over all ranks; tensor parallelism within
    a host and pipelines of equal stages, alone and together, with ZeRO-1."""
    sizes = [size for size in (2, 4, 8, 16) if cluster.ranks % size == 0]
    tensors = [size for size in sizes if cluster.gpus % size == 0 and heads % size == 0]
    pipelines = [size for size in sizes if layers % size == 0]
    divided = [(size, 1) for size in tensors] + [(1, size) for size in pipelines]
    if tensors:
        divided += [(tensors[-1], size) for size in pipelines if cluster.ranks % (tensors[-1] * size) == 0]
    return [*((stage, Layout(cluster.ranks)) for stage in range(4)),
            *((1, Layout(cluster.ranks // (tensor * pipeline), tensor, pipeline)) for tensor, pipeline in divided)]
