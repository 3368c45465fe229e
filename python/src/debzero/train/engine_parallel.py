"""Tensor parallelism on torch's own collectives, beside data parallelism and with the optimizer's states sharded if the
job says so (ZeRO stage 1).

Checkpoints have whole tensors and are plain data parallelism's: a run continues with any division, or with none.
"""
from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from debzero.model.parts import Part
from debzero.model.tensor_parallel import Divided
from debzero.resolve.native import BUCKET
from debzero.resolve.resolve import ResolvedJob
from debzero.run import tensor_file
from debzero.train.engine import on_host, parameter_groups
from debzero.train.engine_plain import STATE, PlainEngine
from debzero.train.groups import ranks_along

MOMENTS = ("exp_avg", "exp_avg_sq")


class ParallelEngine(PlainEngine):
    """`copies`: the ranks that have the same part of the model; `parts`: those that compute one copy together."""

    def __init__(self, model: Any, resolved: ResolvedJob, device: Any, task: Any) -> None:
        layout, self.stage, self.decay = resolved.layout, resolved.stage, resolved.job.train.weight_decay
        self.copies, self.parts = ranks_along(layout, "data"), ranks_along(layout, "tensor")
        # Built alike on all ranks: from the same files, or from the same seed.
        self.divided = Divided(model, Part(self.parts.own, layout.tensor, self.parts.group, device))
        super().__init__(model, resolved, device, task, print)
        # Tied parameters have several names in the state dictionary.
        self.first_name = {name: self.names[p] for name, p in self.model.state_dict(keep_vars=True).items()
                           if p in self.names}

    def _step_graphs(self, *_: Any) -> None:
        """Collectives within layers can neither be compiled by all releases of torch, nor be recorded."""

    def _updated(self, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """At stage 1 each copy updates some of the parameters: `owner`, by parameter. The others give it none."""
        self.owner = dict[Any, int]()
        self.names = {p: name for name, p in self.model.named_parameters()}
        loads = [0] * len(self.copies.members)
        for parameter in sorted((p for group in groups for p in group["params"]), key=lambda p: -p.numel()):
            self.owner[parameter] = loads.index(min(loads))
            loads[self.owner[parameter]] += parameter.numel()
        own = self.copies.own
        return [{**group, "params": [p for p in group["params"] if not self.stage or self.owner[p] == own]}
                for group in groups]

    def generate(self, **inputs: Any) -> Any:
        assert self.divided.head is not None, "who writes texts predicts tokens"
        self.divided.head.whole = True
        try:
            return super().generate(**inputs)
        finally:
            self.divided.head.whole = False

    def _update(self) -> None:
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
        for parameter in self.model.parameters():
            parameter.grad = None
        if self.stage:
            self._share_weights()

    def _clip(self) -> None:
        """As torch's clip_grad_norm_, with the norm of the whole model: every rank counts its share of what it
        updates."""
        updated = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        squares = torch.zeros((), device=self.device)
        for parameter in updated:
            holders = 1 if self.names[parameter] in self.divided.cuts else len(self.parts.members)
            holders *= 1 if self.stage else len(self.copies.members)
            squares += parameter.grad.float().square().sum() / holders
        dist.all_reduce(squares)
        factor = (self.clip / (squares.sqrt() + 1e-6)).clamp(max=1.0)
        for parameter in updated:
            parameter.grad.mul_(factor)

    def _share_weights(self) -> None:
        """Give each copy the weights that the others have updated."""
        for number, first in enumerate(self.copies.members):
            for part in _buckets(p.data for p, owner in self.owner.items() if owner == number):
                flat = _flatten_dense_tensors(part)
                dist.broadcast(flat, first, self.copies.group)
                for tensor, new in zip(part, _unflatten_dense_tensors(flat, part)):
                    tensor.copy_(new)

    def _whole(self, tensor: Any, name: str) -> Any:
        """On rank 0 the whole of a parameter, or of what has its shape, in the host's memory. The ranks of the first
        copy call this."""
        cut = self.divided.cuts.get(name)
        if cut is None:
            return tensor.detach().cpu()
        parts = []
        for number, rank in enumerate(self.parts.members):
            own = number == self.parts.own
            piece = tensor.detach().contiguous() if own else tensor.new_empty(
                cut.shape_of_part(number, len(self.parts.members)))
            dist.broadcast(piece, rank, self.parts.group)
            parts.append(piece.cpu() if dist.get_rank() == 0 else None)
        return cut.whole(parts) if dist.get_rank() == 0 else None

    def _state(self) -> dict[str, Any]:
        """The model's state dictionary with whole tensors, on rank 0. The ranks of the first copy call this."""
        whole: dict[str, Any] = {}
        found: dict[str, Any] = {}
        for name, tensor in self.model.state_dict().items():
            first = self.first_name.get(name, name)
            if first not in whole:
                whole[first] = self._whole(tensor, first)
            found[name] = whole[first]
        return found

    def weights(self) -> dict[str, Any]:
        state = self._state() if 0 in self.parts.members else {}
        return on_host(state) if dist.get_rank() == 0 else {}

    def _moments(self, parameter: Any) -> dict[str, Any]:
        """What Adam has for a parameter, on the ranks that have a copy of its owner's part: all call this."""
        state = self.optimizer.state.get(parameter, {})
        if self.stage:
            owner = self.copies.members[self.owner[parameter]]
            for name in MOMENTS:
                tensor = state[name] if name in state else torch.zeros_like(parameter)
                dist.broadcast(tensor, owner, self.copies.group)
                state = {**state, name: tensor}
        return {name: state[name] for name in MOMENTS if name in state}

    def save(self, root: Path, tag: str) -> None:
        first = 0 in self.parts.members
        model = self._state() if first else {}
        steps = torch.tensor(self.applied_steps, device=self.device)
        dist.all_reduce(steps, dist.ReduceOp.MAX)  # a rank may update nothing
        step, states, groups, number = int(steps), {}, [], 0
        for group in parameter_groups(self.model, self.decay):
            numbers = list(range(number, number := number + len(group["params"])))
            groups.append({"params": numbers, "weight_decay": group["weight_decay"]})
            for index, parameter in zip(numbers, group["params"]) if step else ():
                moments = self._moments(parameter)
                if first and moments:
                    whole = {name: self._whole(tensor, self.names[parameter]) for name, tensor in moments.items()}
                    states[index] = {"step": torch.tensor(float(step)), **whole}
        if dist.get_rank() == 0:
            shared = {key: value for key, value in self.optimizer.state_dict()["param_groups"][0].items()
                      if key not in ("params", "weight_decay")}
            tensor_file.write(root / tag / STATE, {
                "model": model, "optimizer": {"state": states, "param_groups": [{**shared, **g} for g in groups]},
                "scaler": self.scaler.state_dict()})

    def load(self, root: Path, tag: str) -> None:
        state = tensor_file.read(root / tag / STATE)
        named = {name: self._own(tensor, name) for name, tensor in state["model"].items()}
        self.model.load_state_dict(named)
        parameters = [p for group in parameter_groups(self.model, self.decay) for p in group["params"]]
        for index, moments in state["optimizer"]["state"].items():
            parameter = parameters[index]
            if not self.stage or self.owner[parameter] == self.copies.own:
                self.optimizer.state[parameter] = {
                    "step": moments["step"].to(self.device if self.fused else "cpu"),
                    **{name: self._own(moments[name], self.names[parameter]).to(self.device) for name in MOMENTS}}
        self.scaler.load_state_dict(state["scaler"])

    def _own(self, whole: Any, name: str) -> Any:
        """This rank's part of a whole tensor."""
        cut = self.divided.cuts.get(self.first_name.get(name, name))
        return whole if cut is None else cut.part(whole, self.parts.own, len(self.parts.members))


def _buckets(tensors: Iterable[Any]) -> Iterable[list[Any]]:
    """Up to BUCKET elements at a time, or one larger tensor."""
    bucket: list[Any] = []
    for tensor in tensors:
        if bucket and sum(t.numel() for t in bucket) + tensor.numel() > BUCKET:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
