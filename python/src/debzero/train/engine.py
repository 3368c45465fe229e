"""One optimizer step, in three ways with one interface: plain data parallelism, ZeRO by DeepSpeed, and ZeRO without
it."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from debzero.data.stream import Micro

HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}


class Engine(Protocol):
    """The model with its optimizer, on one rank. All ranks call the same methods in the same order."""

    model: Any       # the module, as evaluation and save_pretrained need it
    updating: bool   # the optimizer may be changing the weights: a checkpoint now might mix two steps

    def __call__(self, **inputs: Any) -> Any:
        """The model's output, for evaluation."""

    def generate(self, **inputs: Any) -> Any:
        """What the model's decoder writes, for evaluation."""

    def step(self, micros: Sequence[Micro], rate: float) -> torch.Tensor:
        """Train on one global batch with this learning rate; returns this rank's part of its mean loss, on the device
        (the ranks' mean is the whole). Where it fails with `updating` False, the step has changed nothing."""

    def rate_of(self, rate: float) -> float:
        """The learning rate of the next step, for which debzero's schedule has `rate`."""

    @property
    def loss_scale(self) -> float:
        """fp16's; 1 otherwise."""

    @property
    def applied_steps(self) -> int:
        """Optimizer steps that were not skipped for an overflow. Asking waits for the device."""

    def save(self, root: Path, tag: str) -> None:
        """Write this rank's part of a checkpoint into the folder root/tag, which is there."""

    def load(self, root: Path, tag: str) -> None:
        """Continue from what `save` wrote."""

    def weights(self) -> dict[str, Any]:
        """All weights as host tensors on the first rank of each host, empty elsewhere."""


def to_device(batch: dict[str, Any], device: Any) -> dict[str, Any]:
    """Pinned tensors are copied while the device computes."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def parameter_groups(model: Any, decay: float) -> list[dict[str, Any]]:
    """Parameters with weight decay, and those without: biases and norms, the ones of one dimension. A sharded parameter
    has its own dimensions in `ds_shape`."""
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
