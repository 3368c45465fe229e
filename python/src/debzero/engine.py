"""One optimizer step, in two ways with one interface: plain DDP (the baseline) and DeepSpeed ZeRO."""
from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from debzero import dsconfig, tasks
from debzero.plan import Plan


class Micro(NamedTuple):
    """One micro-batch. `scale` turns its summed loss into its part of the global batch's mean."""

    batch: dict[str, Any]
    scale: float


def _groups(model: Any, decay: float) -> list[dict[str, Any]]:
    """Parameters with weight decay, and those without: biases and norms, the ones of one dimension (or a sharded one)."""
    named = [(len(getattr(p, "ds_shape", p.shape)), p) for p in model.parameters() if p.requires_grad]
    groups = [{"params": [p for dim, p in named if dim > 1], "weight_decay": decay},
              {"params": [p for dim, p in named if dim <= 1], "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


class PlainEngine:
    """torch's DistributedDataParallel and AdamW; fp16 and bf16 by autocast."""

    def __init__(self, model: Any, plan: Plan, device: Any) -> None:
        train = plan.job.train
        self.plan, self.device, self.clip = plan, device, train.gradient_clipping
        self.task = tasks.of(plan.job)
        self.model = model.to(device)
        self.ddp = torch.nn.parallel.DistributedDataParallel(
            self.model, device_ids=[device.index] if device.type == "cuda" else None)
        self.optimizer = torch.optim.AdamW(_groups(self.model, train.weight_decay), lr=train.learning_rate,
                                           betas=tuple(dsconfig.BETAS), eps=dsconfig.EPS)
        self.scaler = torch.cuda.amp.GradScaler(init_scale=2.0**12, enabled=plan.precision == "fp16")

    def forward(self, **inputs: Any) -> Any:
        half = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(self.plan.precision)
        with torch.autocast(self.device.type, half) if half else nullcontext():
            return (self.ddp if self.model.training else self.model)(**inputs)

    def step(self, micros: Sequence[Micro], rate: float) -> Any:
        """Train on one global batch; returns this rank's part of its mean loss (the ranks' mean is the whole)."""
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        total = torch.zeros((), device=self.device)
        for number, micro in enumerate(micros, 1):
            with nullcontext() if number == len(micros) else self.ddp.no_sync():
                loss = self.task.losses(self.forward, micro.batch).sum() * micro.scale / len(micros)
                self.scaler.scale(loss).backward()
            total += loss.detach()
        if self.clip:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return total

    def save(self, root: Path, tag: str) -> None:
        if dist.get_rank() == 0:
            state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}
            torch.save(state, root / tag / "state.pt")

    def load(self, root: Path, tag: str) -> None:
        state = torch.load(root / tag / "state.pt", map_location="cpu")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])

    def weights(self) -> dict[str, Any]:
        return {name: tensor.cpu() for name, tensor in self.model.state_dict().items()}


class ZeroEngine:
    """DeepSpeed; what it shards is the configuration's matter."""

    def __init__(self, model: Any, plan: Plan, device: Any, config: dict[str, Any]) -> None:
        import deepspeed

        self.device, self.task = device, tasks.of(plan.job)
        self.stage3 = config["zero_optimization"]["stage"] == 3
        self.engine, _, _, self.own_schedule = deepspeed.initialize(
            model=model, model_parameters=_groups(model, plan.job.train.weight_decay), config=config)
        half = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(plan.precision)
        self.half = half

    @property
    def model(self) -> Any:
        return self.engine.module

    def forward(self, **inputs: Any) -> Any:
        return self.engine(**inputs)

    def step(self, micros: Sequence[Micro], rate: float) -> Any:
        """As PlainEngine.step. The rate is debzero's, unless the user's JSON brings a scheduler."""
        self.engine.train()
        if self.own_schedule is None:
            for group in self.engine.optimizer.param_groups:
                group["lr"] = rate
        total = torch.zeros((), device=self.device)
        for micro in micros:
            loss = self.task.losses(self.forward, micro.batch).sum() * micro.scale
            self.engine.backward(loss)  # divides by the accumulation steps
            self.engine.step()
            total += loss.detach() / len(micros)
        return total

    def save(self, root: Path, tag: str) -> None:
        self.engine.save_checkpoint(str(root), tag=tag, save_latest=False)

    def load(self, root: Path, tag: str) -> None:
        self.engine.load_checkpoint(str(root), tag=tag)

    def weights(self) -> dict[str, Any]:
        """All weights, on rank 0's CPU (elsewhere empty). Stage 3 gathers one parameter at a time: the whole may not fit."""
        import deepspeed

        first = dist.get_rank() == 0
        if not self.stage3:
            return {name: tensor.cpu() for name, tensor in self.model.state_dict().items()} if first else {}
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
