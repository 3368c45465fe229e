"""What the engines without DeepSpeed share: torch's AdamW, and steps whose parts are recorded as CUDA graphs."""
from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Callable, Optional

import torch

from debzero.data.stream import Micro
from debzero.model import compiled
from debzero.resolve import deepspeed_config
from debzero.resolve.native import BUCKET
from debzero.resolve.resolve import ResolvedJob
from debzero.train import placement
from debzero.train.engine import Engine, on_host, to_device


class OwnEngine(Engine):
    """`optimizer` and `graphs` (None: nothing is recorded) are the subclass's to set, with _adamw and _step_graphs."""

    optimizer: Any
    graphs: Optional[compiled.StepGraphs]

    def __init__(self, resolved: ResolvedJob, device: Any, task: Any) -> None:
        train, self.batch = resolved.job.train, resolved.batch
        self.device, self.task, self.clip = device, task, train.gradient_clipping
        self.updating = False
        # A tensor, so that a recorded step reads what the host has written since.
        self.rate = torch.tensor(train.learning_rate, device=device)
        self.fused = device.type == "cuda" and "fused" in inspect.signature(torch.optim.AdamW).parameters

    def _adamw(self, groups: list[dict[str, Any]], rate: float) -> Any:
        """AdamW in the fastest way that this torch has on the device."""
        options: dict[str, Any] = {"lr": rate, "betas": tuple(deepspeed_config.BETAS), "eps": deepspeed_config.EPS}
        if self.fused:
            options.update(fused=True, capturable=True, lr=self.rate)
        elif self.device.type == "cuda":
            options["foreach"] = True
        return torch.optim.AdamW(groups, **options)

    def _step_graphs(self, resolved: ResolvedJob, parameters: Sequence[Any],
                     say: Callable[[str], None]) -> Optional[compiled.StepGraphs]:
        """Compile the layers, where this torch can; what records the steps of a model with compiled layers."""
        train = resolved.job.train
        layers = train.compile == "auto" and compiled.can_compile(self.device) and self._compile_layers()
        possible = layers and not train.gradient_checkpointing and not resolved.shares_gpus
        return compiled.StepGraphs(parameters, say) if possible else None

    def _compile_layers(self) -> int:
        """How many there are."""
        return compiled.compile_layers(self.model)

    def _accumulate(self, batch: dict[str, Any], weights: Any) -> Any:
        """Add a micro-batch to the gradients; its part of the step's loss."""
        raise NotImplementedError

    def _finish(self, batch: dict[str, Any], weights: Any) -> Any:
        """Add the step's last micro-batch, exchange the gradients and update the weights; as _accumulate."""
        raise NotImplementedError

    def rate_of(self, rate: float) -> float:
        return rate

    def _begin(self, rate: float) -> None:
        """A step with this learning rate."""
        self.updating = False
        self.model.train()
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def step(self, micros: Sequence[Micro], rate: float) -> torch.Tensor:
        self._begin(rate)
        total = torch.zeros((), device=self.device)
        for number, micro in enumerate(micros, 1):
            work = self._finish if number == len(micros) else self._accumulate
            batch, weights = to_device(micro.batch, self.device), micro.weights.to(self.device)
            total += self.graphs.run(work, batch, weights) if self.graphs else work(batch, weights)
        return total

    @property
    def applied_steps(self) -> int:
        states = self.optimizer.state.values()
        return int(next(iter(states))["step"]) if states else 0

    def weights(self) -> dict[str, Any]:
        return on_host(self.model.state_dict()) if placement.leads() else {}


def buckets(tensors: Iterable[Any]) -> Iterator[list[Any]]:
    """Tensors to exchange at once, in their order: up to BUCKET elements together, or one larger tensor."""
    bucket: list[Any] = []
    elements = 0
    for tensor in tensors:
        if bucket and elements + tensor.numel() > BUCKET:
            yield bucket
            bucket, elements = [], 0
        bucket.append(tensor)
        elements += tensor.numel()
    if bucket:
        yield bucket
