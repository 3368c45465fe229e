"""ZeRO stage 3 on torch's own collectives (Rajbhandari et al., 2020, section 5.3), in steps that a CUDA graph can hold.

Each repeated layer is a unit, and everything else is one more, the root. A layer's weights are gathered while the layer
before computes, and freed after it; in the backward pass they are gathered again, in the other order. The root is there
for the whole micro-batch.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Callable

import torch
import torch.distributed as dist

from debzero.model import compiled
from debzero.train import native_checkpoint, placement
from debzero.train.engine_native import NativeEngine
from debzero.train.units import Unit


class ShardedEngine(NativeEngine):
    """Each micro-batch's gradients are reduced to the shares, layer by layer.

    All ranks send the same in the same order, whatever gradients they have: a layer's are complete when the backward
    pass comes to the layer before. autograd computes all that it can of a layer before it goes further back.
    """

    root: Unit
    units: list[Unit]

    def _divide(self, model: Any, half: Any) -> list[dict[str, Any]]:
        trained = [parameter for group in self.groups for parameter in group["params"]]
        decayed = {parameter for group in self.groups if group["weight_decay"] for parameter in group["params"]}
        owned = [(layer, owned) for layer, owned in _owned(model, set(trained)) if owned]
        rest = set(trained).difference(*(parameters for _, parameters in owned))
        self.layers = [layer for layer, _ in owned]
        self.root = Unit([p for p in trained if p in rest], decayed, self.device, half)
        self.units = [Unit(parameters, decayed, self.device, half) for _, parameters in owned]
        self.buckets = [self.root, *self.units]
        decay = max(group["weight_decay"] for group in self.groups)
        return [{"params": [pieces for pieces in part if len(pieces)], "weight_decay": rate}
                for part, rate in zip(zip(*(unit.pieces for unit in self.buckets)), (decay, 0.0))
                if any(map(len, part))]

    def _attach(self) -> None:
        self.phase, self.unsent = "evaluation", 0  # or forward, backward
        self.forwards: dict[type, Callable[..., Any]] = {type(layer): type(layer).forward for layer in self.layers}
        for number, layer in enumerate(self.layers):
            layer.forward = self._surrounded(number, layer)

    def _compile_layers(self) -> int:
        """Once for each class of layers. Gathering stays outside of the compiled code."""
        self.forwards = {kind: torch.compile(forward, dynamic=True) for kind, forward in self.forwards.items()}
        return len(self.layers)

    def _surrounded(self, number: int, layer: Any) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            self._enter(number)
            training = self.phase == "forward"
            given = {(id(tensor), tensor._version) for tensor in _tensors((args, kwargs)) if training}
            output = self.forwards[type(layer)](layer, *args, **kwargs)
            for tensor in _tensors(output) if training else ():
                # What a layer only passes on, such as T5's position bias, says nothing of its own backward pass.
                if tensor.grad_fn is not None and (id(tensor), tensor._version) not in given:
                    tensor.register_hook(lambda gradient: self._enter(number))
            # The backward pass begins with the last layer, and frees the others itself.
            if self.phase == "evaluation" or training and number + 1 < len(self.units):
                self.units[number].free()
            return output

        return forward

    def _enter(self, number: int) -> None:
        """Before a layer computes: forward, backward, or forward once more within the backward pass (gradient
        checkpointing)."""
        backward = self.phase == "backward"
        if backward:
            self._send_after(number)
        self.units[number].wait()
        following = number - 1 if backward else number + 1
        if 0 <= following < len(self.units):
            self.units[following].start()

    def _send_after(self, number: int) -> None:
        """Send the gradients of the layers after this one."""
        while self.unsent > number + 1:
            self.unsent -= 1
            self._send(self.units[self.unsent])

    def _send(self, bucket: Any) -> None:
        bucket.free()
        super()._send(bucket)

    def _accumulate(self, batch: dict[str, Any], weights: Any, last: bool = False) -> Any:
        self._release()
        self.phase, self.unsent, self.works = "forward", len(self.units), []
        self.root.start()
        if self.units:
            self.units[0].start()
        self.root.wait()
        losses = self.task.losses(self.model, batch)
        loss = (losses * weights).sum() / self.batch.accumulation
        self.phase = "backward"
        (loss * (self.scale / self.batch.ranks)).backward()
        self.phase = "evaluation"
        self._send_after(-1)
        self._send(self.root)
        self._add(0)
        if any(parameter.grad is not None for unit in self.units for parameter in unit.parameters):
            raise RuntimeError("a layer got a gradient after the backward pass had left it: use DeepSpeed for this "
                               "model (zero.engine: deepspeed)")
        self._release()
        return loss.detach()

    def _release(self) -> None:
        """Free what a pass has left, also one that failed."""
        self.phase = "evaluation"
        for unit in self.buckets:
            unit.free()
            for parameter in unit.parameters:
                parameter.grad = None

    def _share_weights(self) -> None:
        for unit in self.buckets:
            unit.renew()

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        self._release()
        self.root.wait()
        try:
            yield
        finally:
            self._release()

    def __call__(self, **inputs: Any) -> Any:
        with self._evaluating():
            return self.model(**inputs)

    def generate(self, **inputs: Any) -> Any:
        """A rank whose texts have ended passes on with the others, which gather in each forward pass."""
        with self._evaluating():
            return self.model.generate(**inputs, synced_gpus=dist.get_world_size() > 1)

    def weights(self) -> dict[str, Any]:
        """One unit at a time: all of them may not fit on the device."""
        first, persistent = placement.leads(), self.model.state_dict().keys()
        whole = {name: tensor.cpu() for name, tensor in self.model.named_buffers() if first and name in persistent}
        name_of = {parameter: name for name, parameter in self.model.named_parameters()}  # tied ones appear once
        for unit in self.buckets:
            unit.wait()
            for parameter in unit.parameters if first else ():
                whole[name_of.pop(parameter)] = parameter.detach().to("cpu", copy=True)
            unit.free()
        whole.update({name: p.detach().cpu() for p, name in name_of.items() if first and not p.requires_grad})
        return whole

    @property
    def places(self) -> Sequence[native_checkpoint.Places]:
        return [native_checkpoint.Stage3(group["params"]) for group in self.groups]

    def _moments(self, bucket: Any) -> dict[str, Any]:
        states = [state for piece in bucket.pieces if (state := self.optimizer.state.get(piece))]
        return {"step": states[0]["step"], **{name: torch.cat([state[name] for state in states]) for name in
                                              native_checkpoint.MOMENTS}} if states else {}

    def _set_moments(self, bucket: Any, step: int, moments: dict[str, Any]) -> None:
        start = 0
        for piece in filter(len, bucket.pieces):
            part = slice(start, start := start + len(piece))
            self.optimizer.state[piece] = {"step": self._steps(step), **{
                name: tensor[part].clone() for name, tensor in moments.items()}}


def _owned(model: Any, trained: set[Any]) -> Iterator[tuple[Any, list[Any]]]:
    """The repeated layers, each with the trained parameters that it alone has."""
    layers = compiled.blocks(model)
    of_layer = {module: layer for layer in layers for module in layer.modules()}
    owners: dict[Any, set[Any]] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            owners.setdefault(parameter, set()).add(of_layer.get(module))
    for layer in layers:
        yield layer, [p for p in layer.parameters() if p in trained and owners[p] == {layer}]


def _tensors(value: Any) -> Iterator[Any]:
    """The tensors in nested tuples, lists and mappings."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from _tensors(each)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
