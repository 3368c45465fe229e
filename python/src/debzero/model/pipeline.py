"""Pipeline parallelism for models of transformers: each stage has some consecutive layers.

A stage runs the model's own forward(), which makes masks and positions from the batch that every stage has. Only its
layers are left in it; what comes before them gives the hidden states that the stage before has sent, and what comes
after them ends the pass.
"""
from __future__ import annotations

from functools import wraps
from typing import Any, Callable, NoReturn

import torch

from debzero.model.divisible import FAMILIES, stage_layers


class PassedOn(Exception):  # noqa: N818 - no error: the next stage continues
    """The stage's layers are done; `hidden` is for the next stage."""

    def __init__(self, *hidden: Any) -> None:
        super().__init__()
        self.hidden = hidden


class _Instead(torch.nn.Module):
    """Takes the place of a module that another stage has."""

    def __init__(self, give: Callable[..., Any] = lambda *_, **__: None) -> None:
        super().__init__()
        self.give = give

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.give(*args, **kwargs)


def _pass_on(hidden: Any) -> NoReturn:
    raise PassedOn(hidden)


class Stage:
    """Stage `number` (from 0) `of` so many, which `model` becomes. `received`: set before each pass to the hidden
    states from the stage before."""

    def __init__(self, model: Any, number: int, of: int) -> None:
        self.number, self.of, self.received = number, of, tuple[Any, ...]()
        self.first, self.last = number == 0, number == of - 1
        self.width: int = model.config.hidden_size
        self.family = FAMILIES[model.config.model_type]
        self.layers = stage_layers(model.config, of)[number]
        self.encoders = len(model.encoder.block) if self.family == "t5" else 0
        if of > 1:
            {"bert": self._of_bert, "gpt2": self._of_gpt2, "t5": self._of_t5}[self.family](model)
            if not self.last:  # its heads
                for name, child in model.named_children():
                    if child is not model.base_model and name not in ("encoder", "decoder"):
                        setattr(model, name, _Instead())

    @property
    def decodes(self) -> bool:
        """Whether the stage has layers that run for a text whose encoder has run already."""
        return self.family != "t5" or self.layers.stop > self.encoders

    def shapes(self, texts: tuple[int, int], answers: tuple[int, int]) -> list[tuple[int, int, int]]:
        """Of the hidden states that the stage receives. `texts`, `answers`: rows and tokens of the inputs, and of what
        a decoder reads."""
        sizes = [texts]
        if self.family == "t5" and self.layers.start > self.encoders:
            sizes.append(answers)
        return [] if self.first else [(*size, self.width) for size in sizes]

    def _keep(self, layers: Any, own: range) -> Any:
        return torch.nn.ModuleList([layers[number] for number in own])

    def _of_bert(self, model: Any) -> None:
        base = model.base_model
        base.encoder.layer = self._keep(base.encoder.layer, self.layers)
        if not self.first:
            base.embeddings = _Instead(lambda *_, **__: self.received[0])
        if not self.last:
            run = base.encoder.forward
            base.encoder.forward = wraps(run)(lambda *args, **kwargs: _pass_on(run(*args, **kwargs)[0]))
            base.pooler = None

    def _of_gpt2(self, model: Any) -> None:
        base = model.base_model
        base.h = self._keep(base.h, self.layers)
        if not self.first:
            base.wte = _Instead(lambda *_, **__: self.received[0])
            base.wpe = _Instead(lambda *_, **__: self.received[0].new_zeros(()))
            base.drop = _Instead(lambda hidden: hidden)
        if not self.last:
            base.ln_f = _Instead(_pass_on)

    def _of_t5(self, model: Any) -> None:
        from transformers.modeling_outputs import BaseModelOutput

        count = self.encoders
        encoded = range(self.layers.start, min(self.layers.stop, count))
        decoded = range(max(0, self.layers.start - count), self.layers.stop - count)
        model.shared = _Instead()  # both stacks have it, where they need it
        if encoded:
            self._of_stack(model.encoder, encoded, 0, lambda hidden: _pass_on(hidden))
        else:
            model.encoder = _Instead(lambda *_, **__: BaseModelOutput(self.received[0]))
        if not decoded:
            model.decoder = _Instead(lambda *_, encoder_hidden_states, **__: _pass_on(encoder_hidden_states))
            return
        run, encoder_output = model.decoder.forward, list[Any]()

        @wraps(run)
        def forward(*args: Any, **kwargs: Any) -> Any:
            encoder_output[:] = [kwargs["encoder_hidden_states"]]
            return run(*args, **kwargs)

        def pass_both(hidden: Any) -> NoReturn:
            raise PassedOn(*encoder_output, hidden)

        model.decoder.forward = forward
        self._of_stack(model.decoder, decoded, 1, pass_both)

    def _of_stack(self, stack: Any, own: range, number: int, pass_on: Callable[[Any], NoReturn]) -> None:
        """T5's encoder or decoder. `number`: its hidden states' among those received."""
        whole, bias = len(stack.block), stack.block[0].layer[0].SelfAttention.relative_attention_bias
        stack.block = self._keep(stack.block, own)
        if own.start:
            # The first layer computes the bias of relative positions for all of them.
            attention = stack.block[0].layer[0].SelfAttention
            attention.has_relative_attention_bias, attention.relative_attention_bias = True, bias
            drop = stack.dropout.forward  # before the first layer and after the last
            stack.embed_tokens = _Instead(lambda *_, **__: self.received[number])
            stack.dropout.forward = lambda hidden: hidden if any(hidden is r for r in self.received) else drop(hidden)
        if own.stop < whole:
            stack.final_layer_norm = _Instead(pass_on)
