"""What the installed torch offers beyond eager execution: compiled layers, and whole optimizer steps as CUDA graphs.

Neither needs a setting, and neither is used on a CPU or with torch before 2.4. DeepSpeed's fused transformer layer is
not used: `make bench-fused` measures why (docs/benchmarks). """
from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Callable, ContextManager, Hashable, Optional

import torch

# Shapes that are worth a graph: buckets come in multiples of 8 tokens. A graph costs a second and its working memory.
MOST_GRAPHS = 32
WITHOUT_GRAPHS = "runs without CUDA graphs"  # how a rank says that it gives them up
MASKS = ("transformers.masking_utils", "transformers.modeling_attn_mask_utils")


def _release() -> tuple[int, int]:
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile makes faster code for `device` here."""
    return (device.type == "cuda" and _release() >= (2, 4) and torch.cuda.get_device_capability(device) >= (7, 0)
            and importlib.util.find_spec("triton") is not None)


def blocks(model: Any) -> list[Any]:
    """The model's repeated layers: the longest lists of modules of one class. Every Transformer has one or two."""
    lists = [list(m) for m in model.modules() if isinstance(m, torch.nn.ModuleList)
             and len({type(child) for child in m}) == 1]
    longest = max(map(len, lists), default=0)
    return [block for found in lists if len(found) == longest > 1 for block in found]


def compile_layers(model: Any) -> int:
    """Compile each repeated layer, once for all of them and for all lengths; returns the number of layers. That is much
    less code than the whole model, for nearly the same gain."""
    layers = blocks(model)
    for layer in layers:
        layer.compile(dynamic=True)
    return len(layers)


def eager() -> ContextManager[Any]:
    """A context without compiled code. To compile for evaluation (no gradients, no dropout) takes longer than it
    saves."""
    stance = getattr(torch.compiler, "set_stance", None) if _release() >= (2, 6) else None
    return stance("force_eager") if stance else nullcontext()


@contextmanager
def one_kind_of_mask() -> Iterator[None]:
    """Let transformers build its attention masks in a recording as outside of one.

    It leaves out a mask that hides nothing, unless a graph is recorded, in which it can look at no values. The layers
    would then get a mask that they were not compiled for. Inside this context it looks at none: there is a mask
    wherever the batch has one. Training packs no samples into one row, so it need not look for those either.
    """
    found = [(module, name, new) for module in filter(None, map(sys.modules.get, MASKS))
             for name, new in (("is_tracing", lambda tensor=None: tensor is not None),
                               ("find_packed_sequence_indices", lambda position_ids: None)) if hasattr(module, name)]
    before = [getattr(module, name) for module, name, _ in found]
    for module, name, new in found:
        setattr(module, name, new)
    try:
        yield
    finally:
        for (module, name, _), old in zip(found, before):
            setattr(module, name, old)


class StepGraphs:
    """The parts of an optimizer step, recorded once for each shape of the batch and replayed. The CPU then launches one
    graph instead of thousands of kernels.

    A shape is recorded when it comes for the second time. The first step runs as usual and creates what a recording may
    not: compiled code, the optimizer's state, the libraries' workspaces.
    """

    def __init__(self, parameters: Sequence[Any], say: Callable[[str], None]) -> None:
        """`parameters`: those that are trained; `say` gets why no more is recorded, once."""
        self.parameters, self.say, self.seen = parameters, say, Counter[Hashable]()
        self.off = False
        self.graphs: dict[Hashable, tuple[Any, dict[str, Any], Any, Any]] = {}
        self.pool: Optional[Any] = None

    def run(self, work: Callable[[dict[str, Any], Any], Any], batch: dict[str, Any], weights: Any) -> Any:
        """What work(batch, weights) returns, a tensor of the device. All tensors are on the device."""
        with one_kind_of_mask():
            return self._run(work, batch, weights)

    def _run(self, work: Callable[[dict[str, Any], Any], Any], batch: dict[str, Any], weights: Any) -> Any:
        key = (work.__name__, *((name, tuple(tensor.shape)) for name, tensor in batch.items()))
        self.seen[key] += 1
        if self.off or (key not in self.graphs and (self.seen[key] < 2 or len(self.graphs) >= MOST_GRAPHS)):
            return work(batch, weights)
        if key not in self.graphs:
            gradients = [parameter.grad for parameter in self.parameters]
            try:
                self._record(key, work, batch, weights)
            except RuntimeError as error:  # the model waits for the device, which a recording cannot
                self._give_up(error, gradients)
                return work(batch, weights)
        graph, inputs, factors, result = self.graphs[key]
        for name, tensor in batch.items():
            inputs[name].copy_(tensor, non_blocking=True)
        factors.copy_(weights)
        graph.replay()
        return result.clone()

    def _record(self, key: Hashable, work: Callable[[dict[str, Any], Any], Any], batch: dict[str, Any],
                weights: Any) -> None:
        # First, so that what the step before sent is free again: no memory comes back while a graph is recorded.
        torch.cuda.synchronize()
        inputs = {name: tensor.clone() for name, tensor in batch.items()}
        factors, graph = weights.clone(), torch.cuda.CUDAGraph()
        # thread_local: NCCL's watchdog asks for events meanwhile.
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            result = work(inputs, factors)
        self.pool = graph.pool()
        self.graphs[key] = graph, inputs, factors, result

    def _give_up(self, error: Exception, gradients: Sequence[Any]) -> None:
        self.off = True
        torch.cuda.synchronize()
        # The generator still takes itself for a part of the recording that has failed; its copy does not.
        for generator in torch.cuda.default_generators:
            if hasattr(generator, "graphsafe_set_state"):
                generator.graphsafe_set_state(generator.clone_state())
        for parameter, gradient in zip(self.parameters, gradients):  # what was recorded was not computed
            parameter.grad = gradient
        self.graphs.clear()
        self.pool = None
        self.say(f"{WITHOUT_GRAPHS} from here on, which is slower: {' '.join(str(error).split())[:300]}")
