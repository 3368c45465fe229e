"""First weights for a model that is sharded while it is built."""
from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def whole_initialisation(kind: type, scratch: bool) -> Iterator[None]:
    """While a model of this class of transformers is built sharded (ZeRO-3), its _init_weights finds the weights
    whole, in main memory and in fp32. `scratch`: all weights are new, not the head's alone.

    DeepSpeed gathers those of the one module that the method is called for. T5's and others' reach for those of the
    modules in it, too (`module.q.weight`): sharded ones are empty, and would silently keep torch's own first values.
    Of a model with saved weights, transformers has gathered whatever is new. A GPU has random numbers of its own, and
    so has each precision: drawn there or in bf16, a new head would start otherwise than at the other stages.
    """
    import deepspeed

    # Parts of a model that are models themselves, such as T5's stacks, have it from the same class.
    owner: Any = next(base for base in kind.__mro__ if "_init_weights" in vars(base))
    original = owner._init_weights

    def init(self: Any, module: Any) -> None:
        inner = [p for child in module.children() for p in child.parameters(recurse=False)]
        with deepspeed.zero.GatheredParameters(inner if scratch else [], modifier_rank=0), \
                in_main_memory([*module.parameters(recurse=False), *inner]):
            original(self, module)

    owner._init_weights = init
    try:
        yield
    finally:
        owner._init_weights = original


@contextmanager
def in_main_memory(parameters: Iterable[Any]) -> Iterator[None]:
    """What the block does to these parameters, it does on the processor and in fp32. Sharded ones are empty and stay
    as they are."""
    elsewhere = [(parameter, parameter.data) for parameter in dict.fromkeys(parameters) if parameter.numel()
                 and (parameter.device.type, parameter.element_size()) != ("cpu", 4)]
    for parameter, data in elsewhere:
        parameter.data = data.cpu().float()
    try:
        yield
    finally:
        for parameter, data in elsewhere:
            data.copy_(parameter.data)
            parameter.data = data
