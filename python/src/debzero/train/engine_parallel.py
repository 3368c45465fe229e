"""Models that are divided over ranks, on torch's own collectives: by layers into pipeline stages, and each layer by
tensor parallelism. Beside them are copies of the model, over which ZeRO stage 1 can shard the optimizer's states.

Checkpoints have whole tensors and are plain data parallelism's: a run continues with any division, or with none.
"""
from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Optional

import torch
import torch.distributed as dist
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from debzero.data.stream import Micro
from debzero.model.parts import Part
from debzero.model.pipeline import PassedOn, Stage
from debzero.model.tensor_parallel import Divided
from debzero.resolve.resolve import ResolvedJob
from debzero.run import tensor_file
from debzero.train.engine import on_host, to_device
from debzero.train.engine_own import buckets
from debzero.train.engine_plain import STATE, PlainEngine
from debzero.train.groups import ranks_along, stage_groups
from debzero.train.neighbours import Neighbours
from debzero.train.whole import Whole

MOMENTS = ("exp_avg", "exp_avg_sq")


class ParallelEngine(PlainEngine):
    """`copies`: the ranks that have the same part of the model as this one."""

    def __init__(self, model: Any, resolved: ResolvedJob, device: Any, task: Any) -> None:
        layout, decay = resolved.layout, resolved.job.train.weight_decay
        place, self.shards = layout.place(dist.get_rank()), resolved.stage == 1
        self.copies, parts = ranks_along(layout, "data"), ranks_along(layout, "tensor")
        self.neighbours = Neighbours(layout, device)
        # Built alike on all ranks: from the same files, or from the same seed.
        divided = Divided(model, Part(place.tensor, layout.tensor, parts.group, device)) if layout.tensor > 1 else None
        self.head = divided.head if divided else None
        self.whole = Whole(model, divided.cuts if divided else {}, parts, layout, decay)
        self.stage = Stage(model, place.stage, layout.stage)
        self.whole.divided(model)
        super().__init__(model, resolved, device, task, print)
        self.names = {p: self.whole.names[p] for p in self.model.parameters()}
        self.tied = [(group, [p for p, name in self.names.items() if self.whole.stages[name] == stages])
                     for stages, group in stage_groups(layout, set(self.whole.stages.values()))]

    def _step_graphs(self, *_: Any) -> None:
        """Collectives within layers can neither be compiled by all releases of torch, nor be recorded."""

    def _updated(self, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """At ZeRO stage 1 each copy updates some of the parameters: `owner`, by parameter. The others give it none."""
        self.owner = dict[Any, int]()
        loads = [0] * len(self.copies.members)
        for parameter in sorted((p for group in groups for p in group["params"]), key=lambda p: -p.numel()):
            self.owner[parameter] = loads.index(min(loads))
            loads[self.owner[parameter]] += parameter.numel()
        return [{**group, "params": [p for p in group["params"] if self._updates(p)]} for group in groups]

    def _updates(self, parameter: Any) -> bool:
        return not self.shards or self.owner[parameter] == self.copies.own

    def __call__(self, **inputs: Any) -> Any:
        return self._answer(inputs) if self.stage.of > 1 else super().__call__(**inputs)

    def generate(self, **inputs: Any) -> Any:
        if self.head is None:
            return super().generate(**inputs)
        self.head.whole = True
        try:
            return super().generate(**inputs)
        finally:
            self.head.whole = False

    def step(self, micros: Sequence[Micro], rate: float) -> torch.Tensor:
        if self.stage.of == 1:
            return super().step(micros, rate)
        self._begin(rate)
        total = self._run(micros)
        self.updating = True
        self._update()
        return total

    def _run(self, micros: Sequence[Micro]) -> torch.Tensor:
        """All micro-batches forward and backward, one after the other as soon as enough are on their way to keep the
        later stages busy (1F1B; Narayanan et al., 2021, "Efficient Large-Scale Language Model Training on GPU Clusters
        Using Megatron-LM", section 2.2)."""
        ahead = min(self.stage.of - self.stage.number - 1, len(micros))
        flights, total = deque[tuple[Any, Any]](), torch.zeros((), device=self.device)
        for number, micro in enumerate(micros):
            received, sent = self._forward(micro)
            if self.stage.last:
                total += sent[0].detach()
            flights.append((received, sent))
            if number >= ahead:
                self._backward(*flights.popleft(), last=number - ahead == len(micros) - 1)
        while flights:
            self._backward(*flights.popleft(), last=len(flights) == 0)
        self.neighbours.wait()
        if self.mean:
            self.mean.finish()
        self.neighbours.from_last(total)
        return total

    def _forward(self, micro: Micro) -> tuple[Any, Any]:
        """What the stage has received for a micro-batch, and what it has sent on; the last stage's loss."""
        batch = to_device(micro.batch, self.device)
        received = [tensor.requires_grad_() for tensor in self.neighbours.receive_down(self._shapes(batch))]
        self.stage.received = tuple(received)
        try:
            with self._autocast():
                losses = self.task.losses(self.model, batch)
        except PassedOn as passed:
            sent = [hidden.float().view_as(hidden) for hidden in passed.hidden]
            self.neighbours.send_down(sent)
            return received, sent
        loss = (losses * micro.weights.to(self.device)).sum() / self.batch.accumulation
        return received, [loss]

    def _backward(self, received: Any, sent: Any, last: bool) -> None:
        """`last`: it completes the step's gradients."""
        if last and self.mean:
            self.mean.start()
        if self.stage.last:
            self.scaler.scale(sent[0] / self.batch.ranks).backward()
        else:
            self.scaler.scale(torch.zeros((), device=self.device))  # which makes its scale, as on the last stage
            torch.autograd.backward(sent, self.neighbours.receive_up([tuple(tensor.shape) for tensor in sent]))
        self.neighbours.send_up([tensor.grad for tensor in received])

    def _shapes(self, batch: dict[str, Any]) -> list[tuple[int, int, int]]:
        """Of the hidden states that come from the stage before."""
        answers = tuple(batch["labels"].shape) if "labels" in batch and batch["labels"].dim() > 1 else (0, 0)
        return self.stage.shapes(self._texts(batch), answers)

    @staticmethod
    def _texts(batch: dict[str, Any]) -> Any:
        encoded = batch.get("encoder_outputs")
        return tuple(batch["input_ids"].shape) if encoded is None else tuple(encoded[0].shape[:2])

    def _answer(self, inputs: dict[str, Any]) -> Any:
        """The whole model's logits, and T5's encoded texts, on all stages. No gradients."""
        encoded, output = inputs.get("encoder_outputs"), None
        if encoded is None or self.stage.decodes:
            behind = encoded is not None and self.stage.layers.start <= self.stage.encoders  # the first to decode
            self.stage.received = tuple(self.neighbours.receive_down([] if behind else self._shapes(inputs)))
            try:
                with self._autocast():
                    output = self.model(**inputs)
            except PassedOn as passed:
                self.neighbours.send_down([hidden.float() for hidden in passed.hidden])
                self.neighbours.wait()
        logits = states = None
        if output is not None:
            logits = output.logits if torch.is_tensor(output.logits) else output.logits.values
            states = getattr(output, "encoder_last_hidden_state", None)
        logits = self.neighbours.shared(None if logits is None else logits.float())
        if self.stage.family == "t5" and encoded is None:
            states = self.neighbours.shared(None if states is None else states.float())
        return SimpleNamespace(logits=self.head.divided(logits) if self.head else logits,
                               encoder_last_hidden_state=states)

    def _update(self) -> None:
        for group, parameters in self.tied:
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
            for parameter, gradient in zip(parameters, gradients):
                dist.all_reduce(gradient, group=group)
                parameter.grad = gradient
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)
            # All ranks skip a step in which any has an infinite gradient. (torch's scaler for this is FSDP's, which
            # release 1.13 cannot import with every Python.)
            for found in self.scaler._per_optimizer_states[id(self.optimizer)]["found_inf_per_device"].values():
                dist.all_reduce(found, dist.ReduceOp.MAX)
        if self.clip:
            self._clip()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        for parameter in self.names:
            parameter.grad = None
        if self.shards:
            self._share_weights()

    def _clip(self) -> None:
        """As torch's clip_grad_norm_, with the norm of the whole model: every rank counts its share of what it
        updates."""
        updated = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        squares = torch.zeros((), device=self.device)
        for parameter in updated:
            squares += parameter.grad.float().square().sum() / self._holders(parameter)
        dist.all_reduce(squares)
        factor = (self.clip / (squares.sqrt() + 1e-6)).clamp(max=1.0)
        for parameter in updated:
            parameter.grad.mul_(factor)

    def _holders(self, parameter: Any) -> int:
        """Ranks that update the same part of a parameter."""
        name = self.names[parameter]
        copies = 1 if self.shards else len(self.copies.members)
        return copies * len(self.whole.stages[name]) * (1 if name in self.whole.cuts else len(self.whole.parts.members))

    def _share_weights(self) -> None:
        """Give each copy the weights that the others have updated."""
        for number, first in enumerate(self.copies.members):
            for part in buckets(p.data for p, owner in self.owner.items() if owner == number):
                flat = _flatten_dense_tensors(part)
                dist.broadcast(flat, first, self.copies.group)
                for tensor, new in zip(part, _unflatten_dense_tensors(flat, part)):
                    tensor.copy_(new)

    def weights(self) -> dict[str, Any]:
        return on_host(self._state()) if dist.get_rank() == 0 else self._state()

    def _state(self) -> dict[str, Any]:
        """The model's state dictionary with whole tensors, on rank 0; empty elsewhere."""
        if self.copies.own:
            return {}
        own = {name: p for p, name in self.names.items()}
        whole = {name: self.whole.gathered(name, own.get(name), self.rate) for name in self.whole.shapes}
        if dist.get_rank():
            return {}
        return {**{name: whole[first] for name, first in self.whole.entries.items()}, **self.whole.buffers}

    def _moments(self, parameter: Any) -> dict[str, Any]:
        """What Adam has for a parameter, on all ranks that have it."""
        state = self.optimizer.state.get(parameter, {})
        found = {name: state[name] if name in state else torch.zeros_like(parameter) for name in MOMENTS}
        if self.shards:
            for tensor in found.values():
                dist.broadcast(tensor, self.copies.members[self.owner[parameter]], self.copies.group)
        return found

    def save(self, root: Path, tag: str) -> None:
        steps = torch.tensor(self.applied_steps, device=self.device)
        dist.all_reduce(steps, dist.ReduceOp.MAX)  # a rank may update nothing
        model, states, number = self._state(), dict[int, Any](), 0
        own: dict[str, Any] = {name: p for p, name in self.names.items()}
        for group in self.whole.groups if int(steps) else ():
            for index, name in enumerate(group["names"], number):
                moments: dict[str, Optional[Any]] = dict.fromkeys(MOMENTS)
                if name in own:
                    moments.update(self._moments(own[name]))
                if not self.copies.own:
                    states[index] = {"step": torch.tensor(float(steps)), **{
                        key: self.whole.gathered(name, tensor, self.rate) for key, tensor in moments.items()}}
            number += len(group["names"])
        if dist.get_rank() == 0:
            tensor_file.write(root / tag / STATE, {"model": model, "scaler": self.scaler.state_dict(), "optimizer": {
                "state": states, "param_groups": self._group_entries()}})

    def _group_entries(self) -> list[dict[str, Any]]:
        """The optimizer's groups, as plain data parallelism's checkpoints have them."""
        entries, number = [], 0
        shared = {key: value for key, value in self.optimizer.state_dict()["param_groups"][0].items()
                  if key not in ("params", "weight_decay")}
        for group in self.whole.groups:
            numbers = list(range(number, number := number + len(group["names"])))
            entries.append({**shared, "weight_decay": group["weight_decay"], "params": numbers})
        return entries

    def load(self, root: Path, tag: str) -> None:
        state = tensor_file.read(root / tag / STATE)
        numbers = {name: index for index, name in enumerate(
            name for group in self.whole.groups for name in group["names"])}
        with torch.no_grad():
            for parameter, name in self.names.items():
                parameter.copy_(self.whole.own(name, state["model"][name]))
                moments = state["optimizer"]["state"].get(numbers[name])
                if moments and self._updates(parameter):
                    self.optimizer.state[parameter] = {
                        "step": moments["step"].to(self.device if self.fused else "cpu"),
                        **{key: self.whole.own(name, moments[key]).to(self.device) for key in MOMENTS}}
        self.scaler.load_state_dict(state["scaler"])
