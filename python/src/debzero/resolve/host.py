"""What the arithmetic needs to know of this host's GPUs."""
from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Host:
    """What the arithmetic needs to know of this host's GPUs."""

    gpus: int
    bf16: bool


def this_host() -> Host:
    import torch

    gpus = torch.cuda.device_count()
    # torch's own is_bf16_supported also counts GPUs that merely emulate it.
    return Host(gpus, bool(gpus) and all(torch.cuda.get_device_capability(number) >= (8, 0) for number in range(gpus)))
