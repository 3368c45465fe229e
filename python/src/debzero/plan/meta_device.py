"""Runs a model on torch's meta device (shapes and types without data) as CUDA would run it: with fused kernels and
autocast's casts."""
from __future__ import annotations

from typing import Any, Callable, Optional

import torch

from debzero.model.meta import OnMeta

# Autocast's lists, as far as Transformers use them (torch's documentation of autocast has them all).
TO_HALF = {"linear", "matmul", "__matmul__", "__rmatmul__", "bmm", "addmm", "baddbmm", "conv1d", "conv2d", "einsum",
           "scaled_dot_product_attention"}
TO_FLOAT = {"softmax", "log_softmax", "layer_norm", "group_norm", "rms_norm", "pow", "__pow__", "rsqrt", "exp", "log",
            "sum", "norm", "cumsum", "cross_entropy_loss", "nll_loss", "mse_loss"}


class _Attention(torch.autograd.Function):
    """Keeps what CUDA's fused kernels keep: query, key, value, output, and in fp32 the logarithm of each row's sum, but
    no s x s matrix (Dao 2023, "FlashAttention-2")."""

    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, mask: Any) -> Any:
        output = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, output, query.new_empty(query.shape[:-1], dtype=torch.float32), mask)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        query, key, value, _, rows, mask = ctx.saved_tensors
        # Each row's product with its gradient, and the query's gradient, summed in fp32.
        working = [torch.empty_like(rows), torch.empty_like(query, dtype=torch.float32)]
        bias = torch.empty_like(mask) if mask is not None and ctx.needs_input_grad[3] else None
        found = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), bias
        del working
        return found


def _unfused(query: Any, key: Any, value: Any, mask: Any, dropout: float) -> Any:
    """Attention where no fused kernel takes the mask's strides: two products in fp32, and s x s matrices in between."""
    scale = query.shape[-1] ** -0.25  # of each
    scores = torch.matmul(query.float() * scale, (key.float() * scale).transpose(-2, -1)).add_(mask)
    weights = torch.softmax(scores, -1)
    if dropout:
        weights = torch.native_dropout(weights, dropout, True)[0]
    return torch.matmul(weights, value.float()).to(query.dtype)


class CudaOnMeta(OnMeta):
    """Runs CUDA's kernels, and with `half` autocast's casts to that type. Weights are cast once per pass, as in
    autocast's cache."""

    def __init__(self, half: Optional[torch.dtype], on_attention: Callable[[list[Any]], None],
                 cache: bool = True) -> None:
        """`on_attention` is called with the tensors that an attention kernel keeps; `cache`: cast weights once."""
        super().__init__()
        self.half, self.on_attention, self.cache = half, on_attention, cache
        self.casts: dict[int, Any] = {}

    def _cast(self, value: Any, dtype: torch.dtype) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(self._cast(item, dtype) for item in value)
        if not isinstance(value, torch.Tensor) or not value.is_floating_point() or value.dtype == dtype:
            return value
        if not (self.cache and value.is_leaf and value.requires_grad):
            return value.to(dtype)
        if id(value) not in self.casts:
            self.casts[id(value)] = value.to(dtype)
        return self.casts[id(value)]

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tuple(args), dict(kwargs or {})
        name = getattr(function, "__name__", "")
        if self.half is not None and (name in TO_HALF or name in TO_FLOAT):
            dtype = self.half if name in TO_HALF else torch.float32
            args, kwargs = self._cast(args, dtype), {key: self._cast(value, dtype) for key, value in kwargs.items()}
        if name == "scaled_dot_product_attention":
            query, key, value = (*args, *(kwargs[each] for each in ("query", "key", "value")[len(args):]))[:3]
            mask = args[3] if len(args) > 3 else kwargs.get("attn_mask")
            if mask is not None and mask.dtype != query.dtype:
                mask = mask.to(query.dtype)  # the kernels take it as a bias
            if mask is not None and mask.shape[-1] > 1 and mask.stride(-1) != 1:
                return _unfused(query, key, value, mask, args[4] if len(args) > 4 else kwargs.get("dropout_p", 0.0))
            output = _Attention.apply(query, key, value, mask)
            self.on_attention([query, key, value, output, *([] if mask is None else [mask])])
            return output
        if name == "dropout" and function is not torch.native_dropout:
            given = {**dict(zip(("input", "p", "training"), args)), **kwargs}
            p = given.get("training", given.get("train", True)) and given.get("p", 0.5)
            return torch.native_dropout(given["input"], p, True)[0] if p else given["input"]
        return super().__torch_function__(function, types, args, kwargs)


def checkpointing(mode: Callable[[], OnMeta]) -> Callable[..., Any]:
    """A function for transformers that checkpoints a layer. Each computation enters a `mode` of its own, as none is
    active when the backward pass computes the layer again. (The meta device has no random state to preserve.)"""
    from torch.utils.checkpoint import checkpoint

    def compute(layer: Callable[..., Any]) -> Callable[..., Any]:
        def inside(*args: Any, **kwargs: Any) -> Any:
            with mode():
                return layer(*args, **kwargs)
        return inside

    def run(layer: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return checkpoint(compute(layer), *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return run
