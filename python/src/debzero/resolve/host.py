"""This host's GPUs, as far as a job depends on them."""
from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class HostGpus:
    """A host's GPUs. `bf16`: all of them compute in bfloat16 in hardware."""

    gpus: int
    bf16: bool


def this_host() -> HostGpus:
    import torch

    gpus = torch.cuda.device_count()
    # torch's own is_bf16_supported also counts GPUs that merely emulate it.
    bf16 = all(torch.cuda.get_device_capability(number) >= (8, 0) for number in range(gpus))
    return HostGpus(gpus, bool(gpus) and bf16)
