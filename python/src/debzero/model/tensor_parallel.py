"""Tensor parallelism for models of transformers: each rank computes a part of every layer.

A layer is two products. The first is divided by columns, so that each rank has some of the attention heads, or of the
feed-forward layer's inner values; the second by rows, so that the ranks' results are terms of a sum. Between the two
nothing passes between ranks. Modules, and so parameters, keep their names.
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import wraps
from typing import Any, Callable, Optional

import torch
import torch.nn.functional as F

from debzero.model.divisible import FAMILIES
from debzero.model.parts import Cut, Part
from debzero.model.vocabulary import Head, divide_embedding


@dataclass(frozen=True)
class Pair:
    """Two products: from the entrance of `module` through `columns` to `row`. `sections`: of each of the columns;
    `counts`: the module's attributes that count heads or what is in them."""

    module: Any
    columns: list[Any]
    row: Any
    sections: int = 1
    counts: tuple[str, ...] = ()


def _of_bert(model: Any) -> Iterator[Pair]:
    for layer in model.base_model.encoder.layer:
        inner = layer.attention.self
        yield Pair(inner, [inner.query, inner.key, inner.value], layer.attention.output.dense,
                   counts=("num_attention_heads", "all_head_size"))
        yield Pair(layer.intermediate, [layer.intermediate.dense], layer.output.dense)


def _of_gpt2(model: Any) -> Iterator[Pair]:
    for block in model.base_model.h:
        yield Pair(block.attn, [block.attn.c_attn], block.attn.c_proj, 3, ("num_heads", "split_size", "embed_dim"))
        yield Pair(block.mlp, [block.mlp.c_fc], block.mlp.c_proj)


def _of_t5(model: Any) -> Iterator[Pair]:
    for stack in (model.encoder, model.decoder):
        for block in stack.block:
            *attentions, forward = block.layer
            for layer in attentions:
                inner = getattr(layer, "SelfAttention", None) or layer.EncDecAttention
                yield Pair(inner, [inner.q, inner.k, inner.v], inner.o, counts=("n_heads", "inner_dim"))
            dense = forward.DenseReluDense
            yield Pair(dense, [dense.wi] if hasattr(dense, "wi") else [dense.wi_0, dense.wi_1], dense.wo)


PAIRS: dict[str, Callable[[Any], Iterable[Pair]]] = {"bert": _of_bert, "gpt2": _of_gpt2, "t5": _of_t5}


class Divided:
    """A model of which this rank keeps its part. `cuts`: of each divided parameter, by its first name."""

    def __init__(self, model: Any, part: Part) -> None:
        cuts: dict[Any, Cut] = {}
        for pair in PAIRS[FAMILIES[model.config.model_type]](model):
            cuts.update(_cuts(pair))
            _divide(pair, part)
        self.head, of_vocabulary = _divide_vocabulary(model, part)
        cuts.update(of_vocabulary)
        self.cuts = {name: cuts[p] for name, p in model.named_parameters() if p in cuts}
        parts: dict[Any, Any] = {}
        for module in model.modules():
            for name, parameter in list(module._parameters.items()):
                if parameter in cuts:  # a tied one is the same part wherever it is
                    if parameter not in parts:
                        own = cuts[parameter].part(parameter.detach(), part.number, part.of)
                        parts[parameter] = torch.nn.Parameter(own, parameter.requires_grad)
                    module._parameters[name] = parts[parameter]


def _divide_vocabulary(model: Any, part: Part) -> tuple[Optional[Head], dict[Any, Cut]]:
    """Divide the embedding of tokens, wherever it is used, and the head that predicts them, if there is one."""
    weight, linear = model.get_input_embeddings().weight, model.get_output_embeddings()
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding) and module.weight is weight:
            divide_embedding(module, len(weight), part)
    divided = [weight, *(linear.parameters() if linear is not None else ())]
    head = None if linear is None else Head(model, len(linear.weight), part)
    return head, {parameter: Cut(0, 1, tuple(parameter.shape)) for parameter in divided}


def _turned(module: Any) -> bool:
    """Whether a module keeps its weight as [inputs, outputs], as transformers' Conv1D does for GPT-2."""
    return hasattr(module, "nf")


def _cuts(pair: Pair) -> Iterator[tuple[Any, Cut]]:
    for column in pair.columns:
        yield column.weight, Cut(1 if _turned(column) else 0, pair.sections, tuple(column.weight.shape))
        if column.bias is not None:
            yield column.bias, Cut(0, pair.sections, tuple(column.bias.shape))
    yield pair.row.weight, Cut(0 if _turned(pair.row) else 1, 1, tuple(pair.row.weight.shape))
    bias = getattr(pair.module, "relative_attention_bias", None)  # T5's, which has a column for each head
    if bias is not None:
        yield bias.weight, Cut(1, 1, tuple(bias.weight.shape))


def _divide(pair: Pair, part: Part) -> None:
    """Let the pair's modules compute with this rank's parts of the weights."""
    module, row, enter = pair.module, pair.row, pair.module.forward
    for count in pair.counts:
        setattr(module, count, getattr(module, count) // part.of)
    for column in filter(_turned, pair.columns):
        column.nf //= part.of

    @wraps(enter)
    def forward(hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("key_value_states") is not None:  # T5's decoder looks at the encoder's output
            kwargs["key_value_states"] = part.spread(kwargs["key_value_states"])
        hidden_states = part.spread(hidden_states)
        if module.training:
            part.own_numbers()
        return enter(hidden_states, *args, **kwargs)

    def product(values: Any) -> Any:
        term = torch.matmul(values, row.weight) if _turned(row) else F.linear(values, row.weight)
        part.shared_numbers()
        total = part.sum(term)
        return total if row.bias is None else total + row.bias.to(total.dtype)

    module.forward, row.forward = forward, product
