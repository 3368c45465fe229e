"""One optimizer step, in two ways with one interface: plain DDP (the baseline) and DeepSpeed ZeRO."""
from __future__ import annotations

from typing import Any

import torch

HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}


def to_device(batch: dict[str, Any], device: Any) -> dict[str, Any]:
    """Pinned tensors are copied while the device computes."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def parameter_groups(model: Any, decay: float) -> list[dict[str, Any]]:
    """Parameters with weight decay, and those without: biases and norms, the ones of one dimension (or a sharded
    one)."""
    named = [(len(getattr(p, "ds_shape", p.shape)), p) for p in model.parameters() if p.requires_grad]
    groups = [{"params": [p for dim, p in named if dim > 1], "weight_decay": decay},
              {"params": [p for dim, p in named if dim <= 1], "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def on_host(state: dict[str, Any]) -> dict[str, Any]:
    """The tensors of a state dictionary on the host; tied ones once, under their first name (from_pretrained ties them
    again)."""
    first: dict[int, str] = {}
    for name, tensor in state.items():
        first.setdefault(tensor.data_ptr(), name)
    return {name: tensor.cpu() for name, tensor in state.items() if first[tensor.data_ptr()] == name}


def rate_at(step: int, steps: int, peak: float, warmup: float) -> float:
    """The learning rate of step `step` (from 0) of `steps`: linear up over a share `warmup`, then linear down to
    zero."""
    rising = round(warmup * steps)
    if step < rising:
        return peak * (step + 1) / rising
    return peak * (steps - step) / max(1, steps - rising)
