"""Builds models on torch's meta device: shapes and types without data, whatever the model's size."""
from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

FACTORIES = {torch.empty, torch.zeros, torch.ones, torch.full, torch.arange, torch.tensor, torch.rand, torch.randn,
             torch.linspace, torch.eye, torch.as_tensor, torch.scalar_tensor}


class OnMeta(TorchFunctionMode):
    """Puts new tensors on the meta device, whatever device is asked for. Code that would read data gets False. After
    `seconds` a NotImplementedError ends what is built."""

    def __init__(self, seconds: float = math.inf) -> None:
        super().__init__()
        self.end = time.monotonic() + seconds

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if time.monotonic() > self.end:
            raise NotImplementedError("the model takes too long to build")
        if function in FACTORIES:
            kwargs["device"] = "meta"
        reads_data = getattr(function, "__name__", "") in ("item", "__bool__", "__contains__")
        if reads_data and args and args[0].device.type == "meta":
            # Models ask whether a mask hides nothing and whether there is padding. False: use the mask, rows are full
            return False
        if getattr(function, "__name__", "") == "repeat_interleave" and not kwargs.get("output_size"):
            kwargs.update(_repeated_size(*args, **kwargs))
        return function(*args, **kwargs)


def _repeated_size(tensor: Any, repeats: Any = None, dim: Any = None, **more: Any) -> dict[str, int]:
    """The `output_size` of torch.repeat_interleave, which releases before 2 do not compute on the meta device."""
    size = tensor.numel() if dim is None else tensor.shape[dim]
    return {"output_size": size * repeats} if isinstance(repeats, int) else {}


@contextmanager
def autocast_accepts_meta() -> Iterator[None]:
    """Lets models turn autocast off around a computation on the meta device, whose name torch 1.13 refuses there."""
    real = torch.autocast

    def autocast(device_type: str, *args: Any, **kwargs: Any) -> Any:
        return nullcontext() if device_type == "meta" else real(device_type, *args, **kwargs)

    torch.autocast = autocast
    try:
        yield
    finally:
        torch.autocast = real
