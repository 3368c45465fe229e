"""First weights for a model that is sharded while it is built."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def whole_initialisation(kind: type) -> Iterator[None]:
    """While a model of this class of transformers is built sharded (ZeRO-3), its _init_weights finds the weights whole.

    DeepSpeed gathers those of the one module that the method is called for. T5's and others' reach for those of the
    modules in it, too (`module.q.weight`): sharded ones are empty, and would silently keep torch's own first values.
    """
    import deepspeed

    # Parts of a model that are models themselves, such as T5's stacks, have it from the same class.
    owner: Any = next(base for base in kind.__mro__ if "_init_weights" in vars(base))
    original = owner._init_weights

    def init(self: Any, module: Any) -> None:
        inner = [p for child in module.children() for p in child.parameters(recurse=False)]
        with deepspeed.zero.GatheredParameters(inner, modifier_rank=0):
            original(self, module)

    owner._init_weights = init
    try:
        yield
    finally:
        owner._init_weights = original
