"""Plain PyTorch: every rank holds the whole model, and the gradients are averaged."""
from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Callable, ContextManager

import torch
import torch.distributed as dist

from debzero.data.stream import Micro
from debzero.model import compiled
from debzero.resolve import deepspeed_config
from debzero.resolve.resolve import ResolvedJob
from debzero.run import tensor_file
from debzero.train.engine import HALF, Engine, on_host, parameter_groups, to_device
from debzero.train.gradient_mean import GradientMean, broadcast

STATE = "state.safetensors"


class PlainEngine(Engine):
    """torch's AdamW; fp16 and bf16 by autocast. `say` gets what somebody should know about this rank."""

    def __init__(self, model: Any, resolved: ResolvedJob, device: Any, task: Any, say: Callable[[str], None]) -> None:
        train, self.batch = resolved.job.train, resolved.batch
        self.device, self.task, self.clip = device, task, train.gradient_clipping
        self.updating = False
        self.half = HALF.get(resolved.precision)
        self.model = model.to(device)
        # A tensor, so that a recorded step reads what the host has written since.
        self.rate = torch.tensor(train.learning_rate, device=device)
        cuda = device.type == "cuda"
        self.fused = cuda and "fused" in inspect.signature(torch.optim.AdamW).parameters
        self.optimizer = self._optimizer(train.learning_rate, train.weight_decay)
        scaler = getattr(torch.amp, "GradScaler", None) or torch.cuda.amp.GradScaler  # it moved
        self.scaler = scaler(init_scale=2.0**deepspeed_config.LOSS_SCALE_POWER, enabled=resolved.precision == "fp16")
        layers = train.compile == "auto" and compiled.can_compile(device) and compiled.compile_layers(self.model)
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.mean = None
        if self.batch.ranks > 1:
            broadcast(self.model)
            self.mean = GradientMean(parameters)
        self.graphs = None
        if layers and not train.gradient_checkpointing and not resolved.shares_gpus:
            self.graphs = compiled.StepGraphs(parameters, say)

    def _optimizer(self, rate: float, decay: float) -> Any:
        """AdamW in the fastest way that this torch has on the device."""
        options: dict[str, Any] = {"lr": rate, "betas": tuple(deepspeed_config.BETAS), "eps": deepspeed_config.EPS}
        if self.fused:
            options.update(fused=True, capturable=True, lr=self.rate)
        elif self.device.type == "cuda":
            options["foreach"] = True
        return torch.optim.AdamW(parameter_groups(self.model, decay), **options)

    def _autocast(self) -> ContextManager[Any]:
        return torch.autocast(self.device.type, self.half) if self.half else nullcontext()

    def __call__(self, **inputs: Any) -> Any:
        with self._autocast():
            return self.model(**inputs)

    def generate(self, **inputs: Any) -> Any:
        with self._autocast():
            return self.model.generate(**inputs, synced_gpus=False)

    def _accumulate(self, batch: dict[str, Any], weights: Any, last: bool = False) -> Any:
        """Add a micro-batch to the gradients; its part of the step's loss."""
        with self._autocast():
            losses = self.task.losses(self.model, batch)
        loss = (losses * weights).sum() / self.batch.accumulation
        if last and self.mean:
            self.mean.start()
        self.scaler.scale(loss / self.batch.ranks).backward()
        return loss.detach()

    def _finish(self, batch: dict[str, Any], weights: Any) -> Any:
        """Add the step's last micro-batch, average the gradients and update the weights."""
        loss = self._accumulate(batch, weights, last=True)
        if self.mean:
            self.mean.finish()
        self.updating = True
        self._update()
        return loss

    def _update(self) -> None:
        if self.clip and self.fused and not self.scaler.is_enabled():
            # This saves a pass over the gradients: the fused optimizer divides them by grad_scale as it reads them.
            gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
            self.optimizer.grad_scale = (norm / self.clip).clamp(min=1.0)
            self.optimizer.found_inf = torch.zeros((), device=self.device)
        elif self.clip:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        # A graph that adds to gradients needs them where they were.
        self.optimizer.zero_grad(set_to_none=self.batch.accumulation == 1)

    def rate_of(self, rate: float) -> float:
        return rate

    def step(self, micros: Sequence[Micro], rate: float) -> torch.Tensor:
        self.updating = False
        self.model.train()
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        total = torch.zeros((), device=self.device)
        for number, micro in enumerate(micros, 1):
            work = self._finish if number == len(micros) else self._accumulate
            batch, weights = to_device(micro.batch, self.device), micro.weights.to(self.device)
            total += self.graphs.run(work, batch, weights) if self.graphs else work(batch, weights)
        return total

    @property
    def loss_scale(self) -> float:
        return float(self.scaler.get_scale())

    @property
    def applied_steps(self) -> int:
        states = self.optimizer.state.values()
        return int(next(iter(states))["step"]) if states else 0

    def save(self, root: Path, tag: str) -> None:
        if dist.get_rank() == 0:
            tensor_file.write(root / tag / STATE, {
                "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict()})

    def load(self, root: Path, tag: str) -> None:
        state = tensor_file.read(root / tag / STATE)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if isinstance(self.optimizer.param_groups[0]["lr"], torch.Tensor):
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate
        self.scaler.load_state_dict(state["scaler"])

    def weights(self) -> dict[str, Any]:
        return on_host(self.model.state_dict()) if dist.get_rank() == 0 else {}
