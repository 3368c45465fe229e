"""What a forward and a backward pass hold on the device: the model's own code is run on the meta device, each tensor's
life followed.

Korthikanti et al. 2022 ("Reducing Activation Recomputation in Large Transformer Models") count 34 s b h + 5 a s^2 b
bytes for a layer of GPT-3 in half precision (s: sequence length, b: samples, h: hidden size, a: heads). That is one
architecture, with an attention that keeps its s x s matrices. A BERT layer comes to 34 s b h here, as its fused
attention keeps none; other layers to up to twice that, because their code keeps more. Compiled layers come to 34 s b h
whatever their code, for torch's partitioner keeps only what its products and its attention need.

Only four layers of each stack are run: the third's part is then repeated (the second still follows a special one, the
first). """
from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Callable, Optional

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from debzero.plan.meta_device import AsOnCuda, checkpointing, tolerant

# The micro-batch of the trace: a large prime, so that a tensor's size tells whether it grows with the batch.
PRIME = 1009
BLOCK = 512  # bytes: the CUDA allocator's rounding
KEPT_LAYERS = 4
PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "convolution"}


@dataclass(frozen=True)
class Curve:
    """One micro-batch, operation by operation: bytes that do not depend on its size, bytes for each sample, and how many elements
    of the gradients are complete. The first `forward` operations are the forward pass's."""

    fixed: np.ndarray
    sample: np.ndarray
    gradients: np.ndarray
    forward: int

    def bytes(self, micro: int) -> np.ndarray:
        return self.fixed + self.sample * micro


@dataclass
class Layer:
    """Where one layer's operations begin and end, and what of its tensors a compiled layer would keep for its backward
    pass."""

    times: int = 1
    forward: list[int] = field(default_factory=list)
    backward: list[int] = field(default_factory=list)
    born: set[int] = field(default_factory=set)
    kept: dict[int, tuple[int, int]] = field(default_factory=dict)
    last_product: Optional[int] = None

    @property
    def whole(self) -> bool:
        return len(self.forward) == len(self.backward) == 2

    @property
    def keeps(self) -> np.ndarray:
        return np.asarray(list(self.kept.values()) or [(0, 0)], dtype=np.float64).sum(0)


def stacks(model: Any) -> list[tuple[Any, str, Any]]:
    """The model's stacks of layers as (parent, name, ModuleList): the longest lists of modules of one class."""
    found = [(parent, name, child) for parent in model.modules() for name, child in parent.named_children()
             if isinstance(child, torch.nn.ModuleList) and len({type(item) for item in child}) == 1]
    longest = max((len(child) for _, _, child in found), default=0)
    return [item for item in found if len(item[2]) == longest > 1]


def shorten(model: Any) -> list[tuple[Any, int]]:
    """Keep four layers of each stack; returns them, each with how often it stands for itself and those that are
    gone."""
    made = []
    for parent, name, layers in stacks(model):
        kept = list(layers) if len(layers) <= KEPT_LAYERS else [*layers[:KEPT_LAYERS - 1], layers[len(layers) - 1]]
        setattr(parent, name, torch.nn.ModuleList(kept))
        made += [(layer, len(layers) - len(kept) + 1 if number == KEPT_LAYERS - 2 else 1)
                 for number, layer in enumerate(kept)]
    return made


class Lives(TorchDispatchMode):
    """Follows every storage from the operation that makes it until nothing refers to it, the graph's saved tensors
    included."""

    def __init__(self, known: Sequence[Any]) -> None:
        """`known`: tensors that are counted elsewhere."""
        super().__init__()
        self.known = {_storage(tensor) for tensor in known}
        self.sizes: dict[int, tuple[int, int]] = {}
        # which of all storages this is, for addresses are used again; a copy counts as its original
        self.births: dict[int, int] = {}
        self.users: dict[int, int] = {}
        self.references: dict[int, Any] = {}
        self.fixed = self.sample = self.gradients = self.born = 0
        self.curve: list[tuple[int, int, int]] = [(0, 0, 0)]
        self.layer: Optional[Layer] = None

    def watch(self, tensor: Any) -> None:
        storage = _storage(tensor)
        if id(tensor) in self.references or storage in self.known:
            return
        if storage not in self.sizes:
            self.sizes[storage] = size = _size(tensor)
            self.fixed, self.sample = self.fixed + size[0], self.sample + size[1]
            self.users[storage] = 0
            self.births[storage] = self.born = self.born + 1
            if self.layer:
                self.layer.born.add(self.born)
        self.users[storage] += 1
        key = id(tensor)

        def gone(_: Any) -> None:
            self.references.pop(key, None)
            self._less(storage)

        self.references[key] = weakref.ref(tensor, gone)

    def _less(self, storage: int) -> None:
        self.users[storage] -= 1
        if not self.users[storage]:
            del self.users[storage], self.births[storage]
            size = self.sizes.pop(storage)
            self.fixed, self.sample = self.fixed - size[0], self.sample - size[1]

    def is_gradient(self, tensor: Any) -> None:
        """A parameter's gradient is complete: from now on it is the engine's."""
        self.gradients += tensor.numel()
        storage = _storage(tensor)
        fixed, sample = self.sizes.get(storage, (0, 0))
        if storage in self.sizes:
            self.sizes[storage] = 0, 0
        self.fixed, self.sample = self.fixed - fixed, self.sample - sample

    def birth(self, tensor: Any) -> Optional[int]:
        """The number of the tensor's storage among all that were made so far; None for one that is counted
        elsewhere."""
        return self.births.get(_storage(tensor))

    def keep(self, tensors: Sequence[Any]) -> None:
        """A compiled layer would keep these."""
        for tensor in tensors:
            if self.layer and isinstance(tensor, torch.Tensor) and (birth := self.birth(tensor)) in self.layer.born:
                self.layer.kept[birth] = _size(tensor)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # torch 1.13 hands a number that a division saves to Python as a number, and wants it back as a tensor.
        number = function is torch.ops.aten.detach.default and not isinstance(args[0], torch.Tensor)
        made = args[0] if number else function(*args, **(kwargs or {}))
        if function is torch.ops.aten.detach.default and not isinstance(made, torch.Tensor):
            return torch.tensor(made)
        several = made if isinstance(made, (tuple, list)) else (made,)
        for item in several:
            if isinstance(item, torch.Tensor):
                self.watch(item)
        if self.layer:
            self._would_keep(function._schema.name.split("::")[-1], args, several)
        self.curve.append((self.fixed, self.sample, self.gradients))
        return made

    def _would_keep(self, name: str, args: Any, made: Sequence[Any]) -> None:
        """torch's min-cut partitioner keeps the products' inputs and outputs and the random masks; all else is made
        again."""
        assert self.layer
        if name in PRODUCTS:
            self.keep([*args, made[0]])
            self.layer.last_product = self.birth(made[0])
        elif name == "native_dropout":
            self.keep([made[1]])
        elif name == "clone":
            original = self.births.get(_storage(args[0]))
            if original is not None:
                self.births[_storage(made[0])] = original
        elif name == "relu" and (birth := self.birth(args[0])) in self.layer.kept:  # its sign is enough
            self.layer.kept[birth] = tuple(size // args[0].element_size() for size in self.layer.kept[birth])

    def pack(self, tensor: Any) -> Any:
        self.watch(tensor)
        return tensor


def _storage(tensor: Any) -> int:
    found = getattr(tensor, "untyped_storage", None) or tensor.storage
    return int(found()._cdata)


def _size(tensor: Any) -> tuple[int, int]:
    """(bytes whatever the batch, bytes for each of its samples) of the tensor's storage."""
    found = getattr(tensor, "untyped_storage", None)
    size = int(found().nbytes()) if found else int(tensor.storage().nbytes())
    return (0, size // PRIME) if size % PRIME == 0 else (-(-size // BLOCK) * BLOCK, 0)


def _hooks(layers: list[tuple[Any, Layer]], lives: Lives) -> list[Any]:
    """Let each layer write down where its operations begin and end."""
    def first_tensor(values: Any) -> Any:
        return next((v for v in values if isinstance(v, torch.Tensor)), None)

    def mark(places: list[int]) -> Callable[[Any], None]:
        return lambda _: places.append(len(lives.curve)) if len(places) < 2 else None

    def before(module: Any, args: Any, layer: Layer) -> None:
        if layer.forward:  # a checkpointed layer is computed again
            return
        layer.forward.append(len(lives.curve))
        lives.layer = layer

    def after(module: Any, args: Any, output: Any, layer: Layer) -> None:
        if len(layer.forward) != 1:
            return
        lives.layer = None
        layer.forward.append(len(lives.curve))
        made, given = first_tensor(output if isinstance(output, tuple) else (output,)), first_tensor(args)
        layer.kept.pop(layer.last_product or 0, None)  # what was made of it, the layer's output, is kept
        if made is not None and (birth := lives.birth(made)) is not None:
            layer.kept[birth] = _size(made)
        for tensor in (made, given):
            if tensor is not None and tensor.requires_grad:
                tensor.register_hook(mark(layer.backward))

    return [handle for module, layer in layers for handle in (
        module.register_forward_pre_hook(lambda m, a, layer=layer: before(m, a, layer)),
        module.register_forward_hook(lambda m, a, o, layer=layer: after(m, a, o, layer)))]


def trace(model: Any, stack: list[tuple[Any, int]], losses: Callable[[Any, dict[str, Any]], Any], batch: dict[str, Any],
          half: Optional[torch.dtype], compiled: bool) -> Curve:
    """The curve of one micro-batch of PRIME samples. `stack`: what shorten(model) returned; `losses(forward, batch)`: the task's;
    `half`: autocast's type, where it is on; `compiled`: each layer by torch.compile."""
    model.train()
    layers = [(layer, Layer(times)) for layer, times in stack]
    lives = Lives([*model.parameters(), *model.buffers()])
    done: list[Any] = []

    def complete(parameter: Any) -> Callable[[Any], None]:
        def hook(gradient: Any) -> None:
            lives.is_gradient(gradient)
            while done:
                done.pop().grad = None
            done.append(parameter)
        return hook

    handles = _hooks(layers, lives) + [p.register_hook(complete(p)) for p in model.parameters() if p.requires_grad]
    for tensor in batch.values():
        lives.watch(tensor)
    checkpointed = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    for module in checkpointed:
        module._gradient_checkpointing_func = checkpointing(lambda: AsOnCuda(half, lives.keep, remember=False))
    with tolerant(), lives, torch.autograd.graph.saved_tensors_hooks(lives.pack, lambda tensor: tensor):
        with AsOnCuda(half, lives.keep):
            loss = losses(model, batch).sum()
        forward = len(lives.curve)
        loss.backward()
    for handle in handles:
        handle.remove()
    for parameter in model.parameters():
        parameter.grad = None
    return _repeated(np.asarray(lives.curve, dtype=np.float64), forward, [layer for _, layer in layers],
                     compiled and not checkpointed)


def _repeated(curve: np.ndarray, forward: int, layers: list[Layer], compiled: bool) -> Curve:
    """The curve with the third layers as often as they are in the model and, where layers are compiled, with what these
    keep."""
    edits = []
    for layer in layers:
        assert layer.whole, "each layer runs once forward and once backward"
        (start, end), back = layer.forward, layer.backward
        less = np.zeros(3)
        if compiled:
            less[:2] = layer.keeps - (curve[end - 1] - curve[start - 1])[:2]
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
