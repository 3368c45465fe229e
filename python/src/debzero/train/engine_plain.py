"""Plain PyTorch: every rank holds the whole model, and the gradients are averaged."""
from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any, Callable, ContextManager

import torch

from debzero.resolve import deepspeed_config
from debzero.resolve.resolve import ResolvedJob
from debzero.run import tensor_file
from debzero.train import placement
from debzero.train.engine import HALF, parameter_groups
from debzero.train.engine_own import OwnEngine
from debzero.train.gradient_mean import GradientMean, broadcast
from debzero.train.groups import Ranks

STATE = "state.safetensors"


class PlainEngine(OwnEngine):
    """fp16 and bf16 by autocast. `say` gets what somebody should know about this rank."""

    copies = Ranks(None, ())  # the ranks that hold copies of this one's parameters

    def __init__(self, model: Any, resolved: ResolvedJob, device: Any, task: Any, say: Callable[[str], None]) -> None:
        super().__init__(resolved, device, task)
        train = resolved.job.train
        self.half = HALF.get(resolved.precision)
        self.model = model.to(device)
        self.optimizer = self._adamw(self._updated(parameter_groups(self.model, train.weight_decay)),
                                     train.learning_rate)
        scaler = getattr(torch.amp, "GradScaler", None) or torch.cuda.amp.GradScaler  # it moved
        self.scaler = scaler(init_scale=2.0**deepspeed_config.LOSS_SCALE_POWER, enabled=resolved.precision == "fp16")
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.mean = None
        if self.batch.ranks > 1:
            broadcast(self.model, self.copies.group, self.copies.first)
            self.mean = GradientMean(parameters, self.copies.group)
        self.graphs = self._step_graphs(resolved, parameters, say)

    def _updated(self, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Of the optimizer's groups of parameters what this rank updates."""
        return groups

    def _autocast(self) -> ContextManager[Any]:
        return torch.autocast(self.device.type, self.half) if self.half else nullcontext()

    def __call__(self, **inputs: Any) -> Any:
        with self._autocast():
            return self.model(**inputs)

    def generate(self, **inputs: Any) -> Any:
        with self._autocast():
            return self.model.generate(**inputs, synced_gpus=False)

    def _accumulate(self, batch: dict[str, Any], weights: Any, last: bool = False) -> Any:
        with self._autocast():
            losses = self.task.losses(self.model, batch)
        loss = (losses * weights).sum() / self.batch.accumulation
        if last and self.mean:
            self.mean.start()
        self.scaler.scale(loss / self.batch.ranks).backward()
        return loss.detach()

    def _finish(self, batch: dict[str, Any], weights: Any) -> Any:
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

    @property
    def loss_scale(self) -> float:
        return float(self.scaler.get_scale())

    def save(self, root: Path, tag: str) -> None:
        if placement.leads():
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
