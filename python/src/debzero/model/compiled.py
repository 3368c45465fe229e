"""What the installed torch offers beyond eager execution: compiled layers, and whole optimizer steps as CUDA graphs.

Both need no setting and are left out where they do not apply: on the processor, and with the releases before torch 2.4.
DeepSpeed's fused transformer layer is no third: docs/benchmarks tells what it was found to be (`make bench-fused`). """
from __future__ import annotations

import importlib.util
from collections import Counter
from contextlib import nullcontext
from typing import Any, Callable, ContextManager, Hashable, Optional

import torch

# Shapes that are worth a graph: buckets come in multiples of 8 tokens. A graph costs a second and its working memory.
MOST_GRAPHS = 32


def _release() -> tuple[int, int]:
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile makes faster code for `device` here."""
    return (device.type == "cuda" and _release() >= (2, 4) and torch.cuda.get_device_capability(device) >= (7, 0)
            and importlib.util.find_spec("triton") is not None)


def blocks(model: Any) -> list[Any]:
    """The model's repeated layers: the longest lists of modules of one class, as every Transformer has one or two
    of."""
    lists = [list(m) for m in model.modules() if isinstance(m, torch.nn.ModuleList)
             and len({type(child) for child in m}) == 1]
    longest = max(map(len, lists), default=0)
    return [block for found in lists if len(found) == longest > 1 for block in found]


def compile_layers(model: Any) -> int:
    """Compile each repeated layer, once for all of them and for all lengths; the number of layers. Much less code to compile than
    the whole model, for nearly the same gain."""
    found = blocks(model)
    for block in found:
        block.compile(dynamic=True)
    return len(found)


def eager() -> ContextManager[Any]:
    """Without compiled code, whose compilation for evaluation (no gradients, no dropout) would take longer than it
    saves."""
    stance = getattr(torch.compiler, "set_stance", None) if _release() >= (2, 6) else None
    return stance("force_eager") if stance else nullcontext()


class StepGraphs:
    """Whole optimizer steps (forward, backward, clipping, update), recorded once for each shape of the batch and replayed: the
    processor then starts one thing a step instead of thousands. For one rank, one micro-batch a step, and fp32 or bf16.

    A shape is recorded when it comes for the second time: the first step runs as usual and makes what a recording may not
    (compiled code, the optimizer's state, the libraries' workspaces).
    """

    def __init__(self, work: Callable[[dict[str, Any], Any], Any], forget: Callable[[], None]) -> None:
        """`work(batch, weights)` is one optimizer step on tensors of the device; it returns the loss. `forget()` drops
        the gradients."""
        self.work, self.forget, self.seen, self.off = work, forget, Counter[Hashable](), ""
        self.made: dict[Hashable, tuple[Any, dict[str, Any], Any, Any]] = {}
        self.pool: Optional[Any] = None

    def step(self, batch: dict[str, Any], weights: Any) -> Any:
        shape = tuple((name, tuple(tensor.shape)) for name, tensor in batch.items())
        self.seen[shape] += 1
        if self.off or (shape not in self.made and (self.seen[shape] < 2 or len(self.made) >= MOST_GRAPHS)):
            return self.work(batch, weights)
        if shape not in self.made:
            try:
                self._record(shape, batch, weights)
            except RuntimeError as error:  # something in the model waits for the device, which a recording cannot
                self.off = str(error).splitlines()[0]
                torch.cuda.synchronize()
                self.forget()  # those that are there were recorded, not computed
                self.made.clear()
                self.pool = None
                return self.work(batch, weights)
        graph, inputs, factors, loss = self.made[shape]
        for name, tensor in batch.items():
            inputs[name].copy_(tensor, non_blocking=True)
        factors.copy_(weights)
        graph.replay()
        return loss.clone()

    def _record(self, shape: Hashable, batch: dict[str, Any], weights: Any) -> None:
        inputs = {name: tensor.clone() for name, tensor in batch.items()}
        factors, graph = weights.clone(), torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, pool=self.pool):
            loss = self.work(inputs, factors)
        self.pool = graph.pool()
        self.made[shape] = graph, inputs, factors, loss
