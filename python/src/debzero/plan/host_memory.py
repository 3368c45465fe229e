"""Predicts what a job takes of the host's RAM.

Each rank takes its process and the larger of two things that follow each other: the model while it is loaded, and what
is offloaded then. Besides, the system itself needs some."""
from __future__ import annotations

from dataclasses import asdict, dataclass

from debzero.plan.memory import FLOAT

# A rank's Python, libraries, CUDA's and NCCL's host memory and data. The most beyond what is loaded or offloaded in
# docs/benchmarks, whose `host_bytes` are how far a host's available memory fell, is 2.9 GiB a rank.
PROCESS = 3 * 2**30  # bytes
# At DeepSpeed's stage 3 a rank reads one file of weights after the other; save_pretrained splits them at 5 GB.
LARGEST_FILE = 5 * 10**9  # bytes
# What the system keeps for itself: shares of the first 4 GiB of RAM, the next 4, and so on. Source: Google Kubernetes
# Engine's "Plan GKE Standard node sizes", memory reservations; Huawei's Cloud Container Engine reserves alike.
GIB = 2**30
SYSTEM = ((4 * GIB, 0.25), (4 * GIB, 0.2), (8 * GIB, 0.1), (112 * GIB, 0.06), (2**63, 0.02))


@dataclass(frozen=True)
class HostMemory:
    """RAM in bytes, of all ranks of the host together."""

    offloaded: int
    loading: int    # the weights while they are loaded, before anything is offloaded
    processes: int
    system: int

    @property
    def total(self) -> int:
        return max(self.offloaded, self.loading) + self.processes + self.system

    def parts(self) -> dict[str, int]:
        return asdict(self)


def host_memory(offloaded: int, parameters: int, in_parts: bool, ranks: int, from_scratch: bool,
                ram: int) -> HostMemory:
    """`offloaded`: bytes of one rank; `parameters`: of the whole model; `ram`: bytes of the host. Each rank builds the
    whole model in fp32 in RAM (model/build.py), unless it does so `in_parts`, as DeepSpeed's stage 3 does: a layer at a
    time from scratch, a file of weights at a time otherwise."""
    loading = FLOAT * parameters
    if in_parts:
        loading = 0 if from_scratch else min(loading, LARGEST_FILE)
    return HostMemory(ranks * offloaded, ranks * loading, ranks * PROCESS, system_bytes(ram))


def system_bytes(ram: int) -> int:
    """What a host with so many bytes of RAM keeps for its system."""
    kept, left = 0.0, ram
    for size, share in SYSTEM:
        kept += share * min(size, left)
        left -= min(size, left)
    return int(kept)
