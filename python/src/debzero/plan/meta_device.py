"""Running a model on torch's meta device as CUDA would run it: shapes and types without data, the fused kernels,
autocast's casts."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Callable, Optional

import torch
from torch.overrides import TorchFunctionMode

# Autocast's lists, of what Transformers use (torch's documentation of autocast names all).
TO_HALF = {"linear", "matmul", "__matmul__", "__rmatmul__", "bmm", "addmm", "baddbmm", "conv1d", "conv2d", "einsum",
           "scaled_dot_product_attention"}
TO_FLOAT = {"softmax", "log_softmax", "layer_norm", "group_norm", "rms_norm", "pow", "__pow__", "rsqrt", "exp", "log",
            "sum", "norm", "cumsum", "cross_entropy_loss", "nll_loss", "mse_loss"}
FACTORIES = {torch.empty, torch.zeros, torch.ones, torch.full, torch.arange, torch.tensor, torch.rand, torch.randn,
             torch.linspace, torch.eye, torch.as_tensor, torch.scalar_tensor}


class OnMeta(TorchFunctionMode):
    """New tensors come without data, whatever device is asked for; what would read data gets "no"."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function in FACTORIES:
            kwargs["device"] = "meta"
        if getattr(function, "__name__", "") in ("item", "__bool__",
                                                 "__contains__") and args and args[0].device.type == "meta":
            # does the mask hide nothing, are there tokens of padding: no, the rows are full and the mask is used
            return False
        return function(*args, **kwargs)


class _Attention(torch.autograd.Function):
    """What CUDA's fused kernels keep: query, key, value, output, and the logarithm of each row's sum in fp32; nothing of s x s
    (Dao 2023, "FlashAttention-2")."""

    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, mask: Any) -> Any:
        output = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, output, query.new_empty(query.shape[:-1], dtype=torch.float32), mask)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        query, key, value, _, rows, mask = ctx.saved_tensors
        # Each row's product with its gradient, and the query's gradient, which is summed up in fp32.
        working = [torch.empty_like(rows), torch.empty_like(query, dtype=torch.float32)]
        bias = torch.empty_like(mask) if mask is not None and ctx.needs_input_grad[3] else None
        made = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), bias
        del working
        return made


def _unfused(query: Any, key: Any, value: Any, mask: Any, dropout: float) -> Any:
    """What torch does where no fused kernel takes the mask's strides: two products in fp32, with all that is s x s in
    between."""
    scale = query.shape[-1] ** -0.25  # of each
    scores = torch.matmul(query.float() * scale, (key.float() * scale).transpose(-2, -1)).add_(mask)
    weights = torch.softmax(scores, -1)
    if dropout:
        weights = torch.native_dropout(weights, dropout, True)[0]
    return torch.matmul(weights, value.float()).to(query.dtype)


class AsOnCuda(OnMeta):
    """The kernels that CUDA uses, and with `half` autocast's casts; weights are cast once a pass, as autocast remembers them.
    `attended` is told the tensors that an attention kernel keeps."""

    def __init__(self, half: Optional[torch.dtype], attended: Callable[[list[Any]], None],
                 remember: bool = True) -> None:
        super().__init__()
        self.half, self.attended, self.remember = half, attended, remember
        self.cast: dict[int, Any] = {}

    def _to(self, value: Any, dtype: torch.dtype) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(self._to(item, dtype) for item in value)
        if not isinstance(value, torch.Tensor) or not value.is_floating_point() or value.dtype == dtype:
            return value
        if not (self.remember and value.is_leaf and value.requires_grad):
            return value.to(dtype)
        if id(value) not in self.cast:
            self.cast[id(value)] = value.to(dtype)
        return self.cast[id(value)]

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tuple(args), dict(kwargs or {})
        name = getattr(function, "__name__", "")
        if self.half is not None and (name in TO_HALF or name in TO_FLOAT):
            dtype = self.half if name in TO_HALF else torch.float32
            args, kwargs = self._to(args, dtype), {key: self._to(value, dtype) for key, value in kwargs.items()}
        if name == "scaled_dot_product_attention":
            query, key, value = (*args, *(kwargs[word] for word in ("query", "key", "value")[len(args):]))[:3]
            mask = args[3] if len(args) > 3 else kwargs.get("attn_mask")
            if mask is not None and mask.dtype != query.dtype:
                mask = mask.to(query.dtype)  # the kernels take a bias
            if mask is not None and mask.shape[-1] > 1 and mask.stride(-1) != 1:
                return _unfused(query, key, value, mask, args[4] if len(args) > 4 else kwargs.get("dropout_p", 0.0))
            output = _Attention.apply(query, key, value, mask)
            self.attended([query, key, value, output, *([] if mask is None else [mask])])
            return output
        if name == "dropout" and function is not torch.native_dropout:
            given = {**dict(zip(("input", "p", "training"), args)), **kwargs}
            on = given.get("training", given.get("train", True)) and given.get("p", 0.5)
            return torch.native_dropout(given["input"], on, True)[0] if on else given["input"]
        return super().__torch_function__(function, types, args, kwargs)


@contextmanager
def tolerant() -> Iterator[None]:
    """Models that turn autocast off around a computation name the device for it, and torch 1.13 does not know meta's
    name."""
    real = torch.autocast

    def autocast(device_type: str, *args: Any, **kwargs: Any) -> Any:
        return nullcontext() if device_type == "meta" else real(device_type, *args, **kwargs)

    torch.autocast = autocast
    try:
        yield
    finally:
        torch.autocast = real


def checkpointing(mode: Callable[[], OnMeta]) -> Callable[..., Any]:
    """What transformers calls to checkpoint a layer. Each computation of it has a mode of its own: no mode reaches the second one, in
    the middle of the backward pass. (The meta device has no random state to keep.)"""
    from torch.utils.checkpoint import checkpoint

    def compute(layer: Callable[..., Any]) -> Callable[..., Any]:
        def inside(*args: Any, **kwargs: Any) -> Any:
            with mode():
                return layer(*args, **kwargs)
        return inside

    def run(layer: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return checkpoint(compute(layer), *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return run
