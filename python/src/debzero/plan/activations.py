"""Predicts the activation memory of a forward and a backward pass, by running the model on the meta device and tracking
each tensor from its creation until it is freed.

Korthikanti et al. 2022 ("Reducing Activation Recomputation in Large Transformer Models") count 34 s b h + 5 a s^2 b
bytes for a layer of GPT-3 in half precision (s: sequence length, b: samples, h: hidden size, a: heads). That is one
architecture, whose attention keeps its s x s matrices. A BERT layer takes 34 s b h here, as its fused attention keeps
none; other layers take up to twice that, because their code keeps more. A compiled layer takes 34 s b h whatever its
code, as torch's partitioner keeps only what matrix products and attention need.

Only four layers of each stack are run. The third layer's operations then stand for all those between (the second still
depends on the first, which is special). """
from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Callable, Optional

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from debzero.model.meta import autocast_accepts_meta
from debzero.plan.meta_device import CudaOnMeta, checkpointing

PRIME = 1009  # samples in the traced micro-batch: a large prime, so that sizes show which tensors grow with the batch
BLOCK = 512   # bytes: the CUDA allocator rounds up to multiples of this
KEPT_LAYERS = 4
PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "convolution"}


class LayersNotTrainedError(Exception):
    """Layers that run forward but get no gradient: the model's code does not use what they return."""

    def __init__(self) -> None:
        super().__init__("its layers take no part in the backward pass")


@dataclass(frozen=True)
class Curve:
    """A micro-batch's memory after each operation. The first `forward` operations are the forward pass."""

    fixed: np.ndarray      # bytes whatever the micro-batch
    sample: np.ndarray     # bytes per sample
    gradients: np.ndarray  # elements of the gradients that are complete
    forward: int

    def bytes(self, micro: int) -> np.ndarray:
        return self.fixed + self.sample * micro


@dataclass
class Layer:
    """One layer of a trace. Storages have numbers, in the order of their creation."""

    times: int = 1                                             # how many layers of the model it stands for
    forward: list[int] = field(default_factory=list)           # its first operation, and the one after its last
    backward: list[int] = field(default_factory=list)          # the same for its backward pass
    created: set[int] = field(default_factory=set)             # storages
    # (fixed, per sample) bytes of each storage that it would keep for its backward pass if it were compiled
    kept: dict[int, tuple[int, int]] = field(default_factory=dict)
    last_product: Optional[int] = None                         # the output of its last matrix product

    @property
    def complete(self) -> bool:
        return len(self.forward) == len(self.backward) == 2

    @property
    def kept_bytes(self) -> np.ndarray:
        """(fixed, per sample)"""
        return np.asarray(list(self.kept.values()) or [(0, 0)], dtype=np.float64).sum(0)


def stacks(model: Any) -> list[tuple[Any, str, Any]]:
    """The model's stacks of layers as (parent, name, ModuleList): the longest lists of modules of one class."""
    found = [(parent, name, child) for parent in model.modules() for name, child in parent.named_children()
             if isinstance(child, torch.nn.ModuleList) and len({type(item) for item in child}) == 1]
    longest = max((len(child) for _, _, child in found), default=0)
    return [item for item in found if len(item[2]) == longest > 1]


def shorten(model: Any) -> list[tuple[Any, int]]:
    """Remove all but four layers of each stack; returns those, each with how many layers it stands for now."""
    remaining = []
    for parent, name, layers in stacks(model):
        kept = list(layers) if len(layers) <= KEPT_LAYERS else [*layers[:KEPT_LAYERS - 1], layers[len(layers) - 1]]
        setattr(parent, name, torch.nn.ModuleList(kept))
        remaining += [(layer, len(layers) - len(kept) + 1 if number == KEPT_LAYERS - 2 else 1)
                      for number, layer in enumerate(kept)]
    return remaining


class StorageTracker(TorchDispatchMode):
    """Counts the bytes of every storage, from the operation that creates it until nothing refers to it. Tensors that
    autograd saves are tracked by pack()."""

    def __init__(self, excluded: Sequence[Any]) -> None:
        """`excluded`: tensors that are counted elsewhere."""
        super().__init__()
        self.excluded = {_storage(tensor) for tensor in excluded}
        self.sizes: dict[int, tuple[int, int]] = {}  # by storage: (fixed, per sample) bytes
        self.numbers: dict[int, int] = {}            # by storage; a clone has its original's
        self.users: dict[int, int] = {}              # by storage: how many tensors use it
        self.references: dict[int, Any] = {}
        self.fixed = self.sample = self.gradients = self.created = 0
        self.curve: list[tuple[int, int, int]] = [(0, 0, 0)]
        self.layer: Optional[Layer] = None           # that runs forward now

    def track(self, tensor: Any) -> None:
        storage, key = _storage(tensor), id(tensor)
        if key in self.references or storage in self.excluded:
            return
        if storage not in self.sizes:
            self.sizes[storage] = size = _size(tensor)
            self.fixed, self.sample = self.fixed + size[0], self.sample + size[1]
            self.users[storage] = 0
            self.numbers[storage] = self.created = self.created + 1
            if self.layer:
                self.layer.created.add(self.created)
        self.users[storage] += 1

        def freed(_: Any) -> None:
            self.references.pop(key, None)
            self._release(storage)

        self.references[key] = weakref.ref(tensor, freed)

    def _release(self, storage: int) -> None:
        self.users[storage] -= 1
        if not self.users[storage]:
            del self.users[storage], self.numbers[storage]
            size = self.sizes.pop(storage)
            self.fixed, self.sample = self.fixed - size[0], self.sample - size[1]

    def complete_gradient(self, tensor: Any) -> None:
        """Count a parameter's gradient, which is complete, as the engine's from now on."""
        self.gradients += tensor.numel()
        storage = _storage(tensor)
        fixed, sample = self.sizes.get(storage, (0, 0))
        if storage in self.sizes:
            self.sizes[storage] = 0, 0
        self.fixed, self.sample = self.fixed - fixed, self.sample - sample

    def number(self, tensor: Any) -> Optional[int]:
        """The number of the tensor's storage; None for one that is counted elsewhere."""
        return self.numbers.get(_storage(tensor))

    def keep(self, tensors: Sequence[Any]) -> None:
        """Note that the layer would keep these for its backward pass if it were compiled."""
        for tensor in tensors:
            number = self.number(tensor) if isinstance(tensor, torch.Tensor) else None
            if self.layer and number in self.layer.created:
                self.layer.kept[number] = _size(tensor)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # torch 1.13 saves the number of a division as a Python number, and wants a tensor back.
        detaches = function is torch.ops.aten.detach.default
        result = args[0] if detaches and not isinstance(args[0], torch.Tensor) else function(*args, **(kwargs or {}))
        if detaches and not isinstance(result, torch.Tensor):
            return torch.tensor(result)
        results = result if isinstance(result, (tuple, list)) else (result,)
        for item in results:
            if isinstance(item, torch.Tensor):
                self.track(item)
        if self.layer:
            self._keep_as_compiled(function._schema.name.split("::")[-1], args, results)
        self.curve.append((self.fixed, self.sample, self.gradients))
        return result

    def _keep_as_compiled(self, name: str, args: Any, results: Sequence[Any]) -> None:
        """torch's min-cut partitioner keeps inputs and outputs of matrix products, and random masks; the rest is
        computed again."""
        assert self.layer
        if name in PRODUCTS:
            self.keep([*args, results[0]])
            self.layer.last_product = self.number(results[0])
        elif name == "native_dropout":
            self.keep([results[1]])
        elif name == "clone":
            original = self.number(args[0])
            if original is not None:
                self.numbers[_storage(results[0])] = original
        elif name == "relu" and (number := self.number(args[0])) in self.layer.kept:  # one byte for its sign is enough
            self.layer.kept[number] = tuple(size // args[0].element_size() for size in self.layer.kept[number])

    def pack(self, tensor: Any) -> Any:
        """For saved_tensors_hooks."""
        self.track(tensor)
        return tensor


def _untyped_storage(tensor: Any) -> Any:
    return getattr(tensor, "untyped_storage", tensor.storage)()  # torch 2; torch 1.13


def _storage(tensor: Any) -> int:
    """The address of the tensor's storage."""
    return int(_untyped_storage(tensor)._cdata)


def _size(tensor: Any) -> tuple[int, int]:
    """The bytes of the tensor's storage: (fixed, per sample), one of which is 0."""
    size = int(_untyped_storage(tensor).nbytes())
    return (0, size // PRIME) if size % PRIME == 0 else (-(-size // BLOCK) * BLOCK, 0)


@contextmanager
def _observed(layers: list[tuple[Any, Layer]], tracker: StorageTracker) -> Iterator[None]:
    """Let each layer note where its operations begin and end. Their forward() is replaced, as module hooks miss models
    that checkpoint `layer.forward` (the T5 family) instead of calling the layer."""
    def first_tensor(values: Any) -> Any:
        return next((v for v in values if isinstance(v, torch.Tensor)), None)

    def mark(places: list[int]) -> Callable[[Any], None]:
        return lambda _: places.append(len(tracker.curve)) if len(places) < 2 else None

    def observed(forward: Callable[..., Any], layer: Layer) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            if layer.forward:  # gradient checkpointing runs it again
                return forward(*args, **kwargs)
            layer.forward.append(len(tracker.curve))
            tracker.layer = layer
            output = forward(*args, **kwargs)
            tracker.layer = None
            layer.forward.append(len(tracker.curve))
            result = first_tensor(output if isinstance(output, (tuple, list)) else (output,))
            given = first_tensor((*args, *kwargs.values()))
            layer.kept.pop(layer.last_product or 0, None)  # the layer's output, computed from it, is kept in its place
            if result is not None and (number := tracker.number(result)) is not None:
                layer.kept[number] = _size(result)
            for tensor in (result, given):
                if tensor is not None and tensor.requires_grad:
                    tensor.register_hook(mark(layer.backward))
            return output
        return run

    for module, layer in layers:
        module.forward = observed(module.forward, layer)
    try:
        yield
    finally:
        for module, _ in layers:
            del module.forward


def trace(model: Any, stack: list[tuple[Any, int]], losses: Callable[[Any, dict[str, Any]], Any], batch: dict[str, Any],
          half: Optional[torch.dtype], compiled: bool) -> Curve:
    """The memory of one micro-batch of PRIME samples, through both passes. `stack`: what shorten(model) returned;
    `losses(forward, batch)`: the task's, or a list of what is passed on, whose gradients come from elsewhere; `half`:
    autocast's type, if it is on; `compiled`: torch.compile each layer."""
    model.train()
    layers = [(layer, Layer(times)) for layer, times in stack]
    tracker = StorageTracker([*model.parameters(), *model.buffers()])
    done: list[Any] = []

    def complete(parameter: Any) -> Callable[[Any], None]:
        def hook(gradient: Any) -> None:
            tracker.complete_gradient(gradient)
            while done:
                done.pop().grad = None
            done.append(parameter)
        return hook

    handles = [p.register_hook(complete(p)) for p in model.parameters() if p.requires_grad]
    for tensor in batch.values():
        tracker.track(tensor)
    checkpointed = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    for module in checkpointed:
        module._gradient_checkpointing_func = checkpointing(lambda: CudaOnMeta(half, tracker.keep, cache=False))
    saved = torch.autograd.graph.saved_tensors_hooks(tracker.pack, lambda tensor: tensor)
    with autocast_accepts_meta(), _observed(layers, tracker), tracker, saved:
        with CudaOnMeta(half, tracker.keep):
            found = losses(model, batch)
            ends = found if isinstance(found, list) else [found.sum()]
        forward = len(tracker.curve)
        torch.autograd.backward(ends, [torch.empty_like(end) for end in ends])
    for handle in handles:
        handle.remove()
    for parameter in model.parameters():
        parameter.grad = None
    return _repeated(np.asarray(tracker.curve, dtype=np.float64), forward, [layer for _, layer in layers],
                     compiled and not checkpointed)


def _repeated(curve: np.ndarray, forward: int, layers: list[Layer], compiled: bool) -> Curve:
    """The curve with each layer as often as it stands for, and if layers are compiled with what those keep."""
    edits = []
    for layer in layers:
        if not layer.complete:
            raise LayersNotTrainedError
        (start, end), back = layer.forward, layer.backward
        less = np.zeros(3)
        if compiled:
            less[:2] = layer.kept_bytes - (curve[end - 1] - curve[start - 1])[:2]
        edits += [(start, end, layer.times, less), (back[0], back[1], layer.times, -less)]
    pieces, offset, place, ahead = [], np.zeros(3), 0, forward
    for start, end, times, change in sorted(edits, key=lambda edit: edit[0]):
        pieces.append(curve[place:start] + offset)
        part = curve[start:end] + np.outer(np.arange(1, end - start + 1) / max(1, end - start), change)
        for number in range(times):
            pieces.append(part + offset)
            offset = offset + (change if number == times - 1 else part[-1] - curve[start - 1])
        place = end
        ahead += (times - 1) * (end - start) if start < forward else 0
    whole = np.concatenate([*pieces, curve[place:] + offset])
    return Curve(whole[:, 0], whole[:, 1], whole[:, 2], ahead)
