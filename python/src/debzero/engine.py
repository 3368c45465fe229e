"""One optimizer step, in two ways with one interface: plain DDP (the baseline) and DeepSpeed ZeRO."""
from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ContextManager

import torch
import torch.distributed as dist

from debzero.data.stream import Micro
from debzero.model import compiled
from debzero.resolve import deepspeed_config
from debzero.resolve.resolve import Plan

HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}
STATE = "state.pt"


def to_device(batch: dict[str, Any], device: Any) -> dict[str, Any]:
    """Pinned tensors are copied while the device computes."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def _groups(model: Any, decay: float) -> list[dict[str, Any]]:
    """Parameters with weight decay, and those without: biases and norms, the ones of one dimension (or a sharded one)."""
    named = [(len(getattr(p, "ds_shape", p.shape)), p) for p in model.parameters() if p.requires_grad]
    groups = [{"params": [p for dim, p in named if dim > 1], "weight_decay": decay},
              {"params": [p for dim, p in named if dim <= 1], "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _on_host(state: dict[str, Any]) -> dict[str, Any]:
    """The tensors of a state dictionary on the host; tied ones once, under their first name (from_pretrained ties them again)."""
    first: dict[int, str] = {}
    for name, tensor in state.items():
        first.setdefault(tensor.data_ptr(), name)
    return {name: tensor.cpu() for name, tensor in state.items() if first[tensor.data_ptr()] == name}


class PlainEngine:
    """torch's AdamW, and DistributedDataParallel where there are several ranks; fp16 and bf16 by autocast."""

    def __init__(self, model: Any, plan: Plan, device: Any, task: Any) -> None:
        train = plan.job.train
        self.device, self.task, self.clip = device, task, train.gradient_clipping
        self.updating = False  # or the weights and the optimizer may be of two steps
        self.half = HALF.get(plan.precision)
        self.model = model.to(device)
        # Tensors, so that a recorded step reads what the host has written since.
        self.rate = torch.tensor(train.learning_rate, device=device)
        cuda = device.type == "cuda"
        best: dict[str, Any] = {}
        self.fused = cuda and "fused" in inspect.signature(torch.optim.AdamW).parameters
        if self.fused:
            best = {"fused": True, "capturable": True, "lr": self.rate}
        elif cuda:
            best = {"foreach": True}
        self.optimizer = torch.optim.AdamW(_groups(self.model, train.weight_decay), **{
            "lr": train.learning_rate, "betas": tuple(deepspeed_config.BETAS), "eps": deepspeed_config.EPS, **best})
        scaler = getattr(torch.amp, "GradScaler", None) or torch.cuda.amp.GradScaler  # it moved
        self.scaler = scaler(init_scale=2.0**deepspeed_config.LOSS_SCALE_POWER, enabled=plan.precision == "fp16")
        layers = train.compile == "auto" and compiled.can_compile(device) and compiled.compile_layers(self.model)
        self.ddp = torch.nn.parallel.DistributedDataParallel(
            self.model, device_ids=[device.index] if cuda else None) if plan.batch.ranks > 1 else self.model
        graphs = layers and plan.batch.ranks == plan.batch.accumulation == 1 and plan.precision != "fp16"
        self.graphs = None
        if graphs and not train.gradient_checkpointing:
            self.graphs = compiled.StepGraphs(self._whole_step, self.optimizer.zero_grad)

    def _autocast(self) -> ContextManager[Any]:
        return torch.autocast(self.device.type, self.half) if self.half else nullcontext()

    def forward(self, **inputs: Any) -> Any:
        """The model's output, for evaluation."""
        with self._autocast():
            return self.model(**inputs)

    def _loss(self, batch: dict[str, Any], weights: Any) -> Any:
        with self._autocast():
            losses = self.task.losses(self.ddp, batch)
        return (losses * weights).sum()

    def _update(self) -> None:
        self.updating = True
        if self.clip and self.fused and not self.scaler.is_enabled():
            # Clipping without a pass of its own over the gradients: the fused optimizer divides them by this as it reads them.
            gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
            self.optimizer.grad_scale = (norm / self.clip).clamp(min=1.0)
            self.optimizer.found_inf = torch.zeros((), device=self.device)
        elif self.clip:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def _whole_step(self, batch: dict[str, Any], weights: Any) -> Any:
        loss = self._loss(batch, weights)
        loss.backward()
        self._update()
        return loss.detach()

    @staticmethod
    def rate_of(rate: float) -> float:
        """The rate of the next step, for which debzero's schedule says `rate`."""
        return rate

    def step(self, micros: Sequence[Micro], rate: float) -> Any:
        """Train on one global batch; returns this rank's part of its mean loss (the ranks' mean is the whole). Where it fails with
        `updating` False, the step has changed nothing."""
        self.updating = False
        self.model.train()
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        if self.graphs:
            return self.graphs.step(to_device(micros[0].batch, self.device), micros[0].weights.to(self.device))
        total = torch.zeros((), device=self.device)
        for number, micro in enumerate(micros, 1):
            last = number == len(micros) or self.ddp is self.model
            with nullcontext() if last else self.ddp.no_sync():
                loss = self._loss(to_device(micro.batch, self.device), micro.weights.to(self.device)) / len(micros)
                self.scaler.scale(loss).backward()
            total += loss.detach()
        self._update()
        return total

    @property
    def loss_scale(self) -> float:
        return float(self.scaler.get_scale())

    @property
    def applied_steps(self) -> int:
        """Optimizer steps that were not skipped for an overflow; asking waits for the device."""
        states = self.optimizer.state.values()
        return int(next(iter(states))["step"]) if states else 0

    def save(self, root: Path, tag: str) -> None:
        if dist.get_rank() == 0:
            torch.save({"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
                        "scaler": self.scaler.state_dict()}, root / tag / STATE)

    def load(self, root: Path, tag: str) -> None:
        state = torch.load(root / tag / STATE, map_location="cpu")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if isinstance(self.optimizer.param_groups[0]["lr"], torch.Tensor):
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate
        self.scaler.load_state_dict(state["scaler"])

    def weights(self) -> dict[str, Any]:
        return _on_host(self.model.state_dict()) if dist.get_rank() == 0 else {}


class ZeroEngine:
    """DeepSpeed; what it shards is the configuration's matter."""

    def __init__(self, model: Any, plan: Plan, device: Any, task: Any, config: dict[str, Any]) -> None:
        import deepspeed

        self.device, self.task, self.updating = device, task, False
        self.stage3 = config["zero_optimization"]["stage"] == 3
        if not self.stage3 and plan.job.train.compile == "auto" and compiled.can_compile(device):
            compiled.compile_layers(model)  # stage 3 gathers a layer's weights in hooks, which would break its code into pieces
        self.engine, _, _, self.own_schedule = deepspeed.initialize(
            model=model, model_parameters=_groups(model, plan.job.train.weight_decay), config=config)

    @property
    def model(self) -> Any:
        return self.engine.module

    def forward(self, **inputs: Any) -> Any:
        return self.engine(**inputs)

    def rate_of(self, rate: float) -> float:
        """As PlainEngine.rate_of. The user's JSON may bring a scheduler."""
        return rate if self.own_schedule is None else float(self.engine.optimizer.param_groups[0]["lr"])

    def step(self, micros: Sequence[Micro], rate: float) -> Any:
        """As PlainEngine.step."""
        self.updating = False
        self.engine.train()
        if self.own_schedule is None:
            for group in self.engine.optimizer.param_groups:
                group["lr"] = rate
        total = torch.zeros((), device=self.device)
        for number, micro in enumerate(micros, 1):
            losses = self.task.losses(self.engine, to_device(micro.batch, self.device))
            loss = (losses * micro.weights.to(self.device)).sum()
            self.engine.backward(loss)  # divides by the accumulation steps
            self.updating = number == len(micros)
            self.engine.step()
            total += loss.detach() / len(micros)
        return total

    @property
    def loss_scale(self) -> float:
        optimizer = self.engine.optimizer  # which of the two it has depends on the stage
        return float(getattr(optimizer, "cur_scale", getattr(optimizer, "loss_scale", 1.0)))

    @property
    def applied_steps(self) -> int:
        return int(self.engine.global_steps - self.engine.skipped_steps)

    def save(self, root: Path, tag: str) -> None:
        self.engine.save_checkpoint(str(root), tag=tag, save_latest=False)

    def load(self, root: Path, tag: str) -> None:
        self.engine.load_checkpoint(str(root), tag=tag)

    def weights(self) -> dict[str, Any]:
        """All weights, on rank 0's CPU (elsewhere empty). Stage 3 gathers one parameter at a time: the whole may not fit."""
        import deepspeed

        first = dist.get_rank() == 0
        if not self.stage3:
            return _on_host(self.model.state_dict()) if first else {}
        made: dict[str, Any] = {}
        for name, parameter in self.model.named_parameters():  # tied weights appear once; from_pretrained ties them again
            with deepspeed.zero.GatheredParameters([parameter]):
                if first:
                    made[name] = parameter.detach().cpu().clone()
        persistent = set(self.model.state_dict())
        made.update({name: b.cpu() for name, b in self.model.named_buffers() if first and name in persistent})
        return made


def rate_at(step: int, steps: int, peak: float, warmup: float) -> float:
    """The learning rate of step `step` (from 0) of `steps`: linear up over a share `warmup`, then linear down to zero."""
    rising = round(warmup * steps)
    if step < rising:
        return peak * (step + 1) / rising
    return peak * (steps - step) / max(1, steps - rising)
