"""ZeRO stages 1 and 2 on torch's own collectives (Rajbhandari et al., 2020, sections 5 and 7).

The arithmetic is DeepSpeed's: half-precision weights and gradients, and for each rank a share of the fp32 weights and
of Adam's moments. The files of its checkpoints are DeepSpeed's, too, so that either engine resumes from the other's.
But nothing stands between the kernels that a CUDA graph cannot record.
"""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable

import torch
import torch.distributed as dist

from debzero.resolve import deepspeed_config
from debzero.resolve.native import IN_FLIGHT
from debzero.resolve.resolve import ResolvedJob
from debzero.train import gloo, native_checkpoint
from debzero.train.engine import HALF, parameter_groups
from debzero.train.engine_own import OwnEngine, buckets
from debzero.train.gradient_mean import listen
from debzero.train.units import Flat

GROWTH, BACKOFF, WINDOW = 2.0, 0.5, 2000  # of fp16's loss scale, as torch's GradScaler has them


class Bucket(Flat):
    """Parameters whose weights are whole on all ranks, and of which each rank updates an equal share."""

    def __init__(self, parameters: Sequence[Any], device: Any, half: Any, keeps_gradients: bool) -> None:
        super().__init__(parameters, device, half)
        self.own, self.missing = self.weights[self.held], 0
        self.gradients = torch.zeros_like(self.weights) if keeps_gradients else None
        for parameter, part in self.parts():
            parameter.grad = None if self.gradients is None else self.gradients[part].view_as(parameter)

    def take_gradients(self) -> Any:
        """The gradients of all parameters in one tensor; the parameters have none any more, unless they are kept."""
        return super().take_gradients() if self.gradients is None else self.gradients


class NativeEngine(OwnEngine):
    """Each rank updates its share of every bucket. At stage 1 gradients accumulate on every rank; at stage 2 each
    micro-batch's are reduced to the shares at once."""

    def __init__(self, model: Any, resolved: ResolvedJob, device: Any, task: Any, say: Callable[[str], None]) -> None:
        super().__init__(resolved, device, task)
        train = resolved.job.train
        self.fp16 = resolved.precision == "fp16"
        half = HALF.get(resolved.precision, torch.float32)
        self.sends_each = resolved.stage == 2
        self.keeps = not self.sends_each and self.batch.accumulation > 1
        self.groups = parameter_groups(model, train.weight_decay)
        self.buckets = list[Any]()
        shares = self._divide(model, half)
        self.model = model.to(device, half)
        self.works = list[tuple[Any, Any, Any, Any]]()
        self._attach()
        self.optimizer = self._adamw(shares, train.learning_rate)
        self.scale = torch.full((), 2.0**deepspeed_config.LOSS_SCALE_POWER if self.fp16 else 1.0, device=device)
        self.good_steps = torch.zeros((), dtype=torch.int32, device=device)
        self.graphs = self._step_graphs(resolved, [p for bucket in self.buckets for p in bucket.parameters], say)

    def _divide(self, model: Any, half: Any) -> list[dict[str, Any]]:
        """Share out the model's parameters; AdamW's groups of what this rank updates."""
        shares = []
        for group in self.groups:
            parts = [Bucket(part, self.device, half, self.keeps) for part in buckets(reversed(group["params"]))]
            self.buckets += parts
            shares.append({"params": [bucket.master for bucket in parts], "weight_decay": group["weight_decay"]})
        return shares

    def _attach(self) -> None:
        """Have the backward pass say which gradients are complete."""
        self.bucket_of = {p: bucket for bucket in self.buckets for p in bucket.parameters}
        self.nodes = [listen(parameter, self._ready) for parameter in self.bucket_of]
        self.sending, self.sent = False, 0

    def __call__(self, **inputs: Any) -> Any:
        return self.model(**inputs)

    def generate(self, **inputs: Any) -> Any:
        return self.model.generate(**inputs, synced_gpus=False)

    def _ready(self, parameter: Any) -> None:
        if self.sending:
            self.bucket_of[parameter].missing -= 1
            while self.sent < len(self.buckets) and not self.buckets[self.sent].missing:
                self._send_next()

    def _send_next(self) -> None:
        self.sent += 1
        self._send(self.buckets[self.sent - 1])

    def _send(self, bucket: Any) -> None:
        """Reduce the gradients of a bucket to the shares."""
        self._add(IN_FLIGHT - 1)
        whole, share = bucket.take_gradients(), torch.empty_like(bucket.own)
        scatter = dist.reduce_scatter_tensor if self.device.type == "cuda" else gloo.reduce_scatter_tensor
        self.works.append((scatter(share, whole, async_op=True), bucket, share, whole))

    def _add(self, most: int) -> None:
        """Wait until at most so many buckets are on their way, and add the others to the shares' gradients."""
        while len(self.works) > most:
            work, bucket, share, _ = self.works.pop(0)
            work.wait()
            bucket.master.grad += share

    def _accumulate(self, batch: dict[str, Any], weights: Any, last: bool = False) -> Any:
        losses = self.task.losses(self.model, batch)
        loss = (losses * weights).sum() / self.batch.accumulation
        self.sending, self.sent, self.works = last or self.sends_each, 0, []
        for bucket in self.buckets:
            bucket.missing = len(bucket.parameters)
        (loss * (self.scale / self.batch.ranks)).backward()
        while self.sending and self.sent < len(self.buckets):  # of parameters that the task does not use
            self._send_next()
        self._add(0)
        return loss.detach()

    def _finish(self, batch: dict[str, Any], weights: Any) -> Any:
        loss = self._accumulate(batch, weights, last=True)
        self.updating = True
        self._update()
        return loss

    def _update(self) -> None:
        gradients = [bucket.master.grad for bucket in self.buckets]
        norm = torch.stack(torch._foreach_norm(gradients)).square().sum()
        dist.all_reduce(norm)
        norm = norm.sqrt()
        factor = self.scale * (norm / self.scale / self.clip).clamp(min=1.0) if self.clip else self.scale.clone()
        overflow = (~torch.isfinite(norm)).float() if self.fp16 else torch.zeros((), device=self.device)
        if self.fused:  # it divides by grad_scale as it reads them, and does nothing where found_inf is 1
            self.optimizer.grad_scale, self.optimizer.found_inf = factor, overflow
            self.optimizer.step()
        elif not overflow:
            torch._foreach_div_(gradients, float(factor))
            self.optimizer.step()
        if self.fp16:
            torch._amp_update_scale_(self.scale, self.good_steps, overflow, GROWTH, BACKOFF, WINDOW)
        torch._foreach_zero_([*gradients, *(b.gradients for b in self.buckets if b.gradients is not None)])
        self._share_weights()

    def _share_weights(self) -> None:
        """Give every rank the weights that each has updated."""
        gather = dist.all_gather_into_tensor if self.device.type == "cuda" else gloo.all_gather_into_tensor
        works = []
        for bucket in self.buckets:
            bucket.own.copy_(bucket.master)
            works.append(gather(bucket.weights, bucket.own, async_op=True))
        for work in works:
            work.wait()

    def _moments(self, bucket: Any) -> dict[str, Any]:
        """What Adam keeps for this rank's share of a bucket; {} before the first step."""
        return self.optimizer.state.get(bucket.master, {})

    def _set_moments(self, bucket: Any, step: int, moments: dict[str, Any]) -> None:
        self.optimizer.state[bucket.master] = {"step": self._steps(step), **moments}

    def _steps(self, count: int) -> Any:
        return torch.tensor(float(count), device=self.device if self.fused else "cpu")

    @property
    def loss_scale(self) -> float:
        return float(self.scale)

    @property
    def places(self) -> Sequence[native_checkpoint.Places]:
        """Where the parameters of each group lie in the files of a checkpoint."""
        return [native_checkpoint.Places(group["params"]) for group in self.groups]

    def save(self, root: Path, tag: str) -> None:
        states = [(bucket, self._moments(bucket)) for bucket in self.buckets]
        scale = (float(self.scale), int(self.good_steps)) if self.fp16 else None
        native_checkpoint.save(root / tag, self.model, self.places, states, scale)

    def load(self, root: Path, tag: str) -> None:
        read = native_checkpoint.load(root / tag, self.model, self.places, self.buckets)
        for bucket, state in read.states.items():
            self._set_moments(bucket, read.step, state)
        if self.fp16 and read.scale:
            self.scale.fill_(read.scale[0])
            self.good_steps.fill_(read.scale[1])
        self._share_weights()
