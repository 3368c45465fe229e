#!/usr/bin/env python3
"""`make bench-fused`: is DeepSpeed's fused transformer layer equal to BERT's, and is it faster than what torch has?

Its kernels know fp32 and fp16, not bf16, and round GELU by a tanh. So here one BERT layer's output and gradients are
compared with the fused layer's, without dropout and with padded rows, each against the same layer in fp64; then a stack
of layers is timed, forward and backward, four ways in one run:

    eager     transformers' code with the attention that it has on torch 1.13
    sdpa      transformers' code with torch's fused attention (torch 2)
    compiled  the same, by torch.compile (torch 2.4)
    fused     DeepSpeed's kernels

Needs a GPU and the CUDA compiler. Exit code 1: it is not equal. A segmentation fault when its first layer is created
means that the process has a second C++ runtime: start it with the system's libstdc++.so.6 in LD_PRELOAD.
"""
from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import sys
import time
from pathlib import Path
from typing import Any, Callable

import common
import torch
import transformers
from transformers.models.bert.modeling_bert import BertLayer

from debzero.base.files import write_json
from debzero.train import torch_imports

HIDDEN, HEADS, INNER, LENGTH, ROWS, LAYERS = 1024, 16, 4096, 128, 32, 24
# Of the norm: how much worse than BERT's own code (against fp64) the fused layer may be and still be called equal.
WORSE = 2.0


def config(attention: str, dropout: float) -> Any:
    found = transformers.BertConfig(hidden_size=HIDDEN, num_attention_heads=HEADS, intermediate_size=INNER,
                                    num_hidden_layers=LAYERS, hidden_dropout_prob=dropout,
                                    attention_probs_dropout_prob=dropout)
    found._attn_implementation = attention
    return found


def fused_layer(number: int, layers: int, dropout: float, half: bool) -> Any:
    torch_imports.speed_up_imports()
    from deepspeed.ops.transformer import DeepSpeedTransformerConfig, DeepSpeedTransformerLayer

    with contextlib.redirect_stdout(io.StringIO()):  # it prints its settings
        return DeepSpeedTransformerLayer(DeepSpeedTransformerConfig(
            batch_size=ROWS, hidden_size=HIDDEN, intermediate_size=INNER, heads=HEADS, attn_dropout_ratio=dropout,
            hidden_dropout_ratio=dropout, num_hidden_layers=layers, initializer_range=0.02, layer_norm_eps=1e-12,
            seed=7 + number, fp16=half, pre_layer_norm=False, adjust_init_range=False)).cuda()


def parts(layer: Any) -> list[tuple[str, list[Any]]]:
    """The fused layer's parameters, and those of BERT's layer that each stands for."""
    own, out = layer.attention.self, layer.attention.output
    return [("attn_qkvw", [own.query.weight, own.key.weight, own.value.weight]),
            ("attn_qkvb", [own.query.bias, own.key.bias, own.value.bias]), ("attn_ow", [out.dense.weight]),
            ("attn_ob", [out.dense.bias]), ("attn_nw", [out.LayerNorm.weight]), ("attn_nb", [out.LayerNorm.bias]),
            ("inter_w", [layer.intermediate.dense.weight]), ("inter_b", [layer.intermediate.dense.bias]),
            ("output_w", [layer.output.dense.weight]), ("output_b", [layer.output.dense.bias]),
            ("norm_w", [layer.output.LayerNorm.weight]), ("norm_b", [layer.output.LayerNorm.bias])]


def first(output: Any) -> Any:
    return output[0] if isinstance(output, tuple) else output


def passes(layer: Any, named: Callable[[], dict[str, Any]], hidden: Any, mask: Any, gradient: Any) -> dict[str, Any]:
    """The output and all gradients, as fp64."""
    given = hidden.clone().requires_grad_()
    output = first(layer(given, mask))
    output.backward(gradient)
    return {name: tensor.double() for name, tensor in {"output": output.detach(), "input": given.grad,
                                                       **named()}.items()}


def equality(half: bool) -> dict[str, Any]:
    """How far BERT's own code and the fused layer each are from BERT's in fp64, as shares of the norm."""
    torch.manual_seed(7)
    dtype = torch.float16 if half else torch.float32
    plain = BertLayer(config("eager", 0.0)).cuda().train()
    for parameter in plain.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    exact, plain = BertLayer(config("eager", 0.0)).cuda().double().train(), plain.to(dtype)
    exact.load_state_dict(plain.state_dict())
    fused = fused_layer(0, 1, 0.0, half).to(dtype).train()
    for name, values in parts(plain):
        getattr(fused, name).data.copy_(torch.cat([value.data for value in values]))
    hidden, gradient = (torch.randn(ROWS, LENGTH, HIDDEN, device="cuda").to(dtype) for _ in range(2))
    mask = torch.zeros(ROWS, 1, 1, LENGTH, device="cuda", dtype=dtype)
    for row in range(ROWS):
        mask[row, ..., LENGTH - 3 * (row % 16):] = -10000.0

    def of_bert(layer: Any) -> Callable[[], dict[str, Any]]:
        return lambda: {name: torch.cat([value.grad for value in values]) for name, values in parts(layer)}

    true = passes(exact, of_bert(exact), hidden.double(), mask.double(), gradient.double())
    own = passes(plain, of_bert(plain), hidden, mask, gradient)
    theirs = passes(fused, lambda: {name: getattr(fused, name).grad for name, _ in parts(plain)}, hidden, mask,
                     gradient)

    def error(found: dict[str, Any]) -> dict[str, float]:
        return {name: float((found[name] - true[name]).norm() / true[name].norm()) for name in true}

    errors = {"bert": error(own), "fused": error(theirs)}
    worst = max(errors["fused"][name] / max(errors["bert"][name], 1e-7) for name in true)
    return {**errors, "times_as_far": worst, "equal": worst <= WORSE}


def speed(way: str, half: bool, steps: int) -> dict[str, float]:
    """Milliseconds of a forward and a backward pass through all layers, with dropout, after a warm-up; and its peak
    memory."""
    dtype = torch.float16 if half else torch.float32
    if way == "fused":
        layers = [fused_layer(number, LAYERS, 0.1, half).to(dtype).train() for number in range(LAYERS)]
    else:
        layers = [BertLayer(config("eager" if way == "eager" else "sdpa", 0.1)).cuda().to(dtype).train()
                  for _ in range(LAYERS)]
        if way == "compiled":
            for layer in layers:
                layer.compile()
    hidden = torch.randn(ROWS, LENGTH, HIDDEN, device="cuda").to(dtype)
    mask = torch.zeros(ROWS, 1, 1, LENGTH, device="cuda", dtype=dtype)

    def step() -> None:
        now = hidden
        for layer in layers:
            now = first(layer(now, mask))
        now.float().mean().backward()

    torch.cuda.reset_peak_memory_stats()
    for _ in range(5):
        step()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(steps):
        step()
    torch.cuda.synchronize()
    return {"ms": 1000 * (time.perf_counter() - started) / steps, "gib": torch.cuda.max_memory_allocated() / 2**30}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=common.ROOT / ".cache" / "bench" / "fused.json",
                        help="the JSON to write")
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    found: dict[str, Any] = {"device": torch.cuda.get_device_name(0), "versions": common.versions(
        sys.executable, "torch", "transformers", "deepspeed"), "shape": [ROWS, LENGTH, HIDDEN, LAYERS]}
    for precision in ("fp32", "fp16"):
        half = precision == "fp16"
        found[precision] = {"equality": equality(half)}
        for way in ("eager", "sdpa", "compiled", "fused"):
            gc.collect()  # compiled layers hold themselves
            torch.cuda.empty_cache()
            try:
                found[precision][way] = speed(way, half, options.steps)
            # an older torch has no sdpa, or nothing to compile with
            except (RuntimeError, AttributeError, ValueError) as error:
                found[precision][way] = {"failed": str(error).splitlines()[0]}
        options.results.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.results, found)
    print(json.dumps(found, indent=2))
    return 0 if all(found[precision]["equality"]["equal"] for precision in ("fp32", "fp16")) else 1


if __name__ == "__main__":
    sys.exit(main())
