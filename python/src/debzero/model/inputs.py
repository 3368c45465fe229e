"""What a model's forward() takes of that which a tokenizer makes: one answer for check and training."""
from __future__ import annotations

import inspect
from typing import Any

POSSIBLE = ("input_ids", "token_type_ids", "attention_mask")
# Types that tell segments apart without a number of them in their configuration.
SEGMENTS = {"funnel", "xlnet"}


def input_names(config: Any) -> list[str]:
    """The inputs for a model of this configuration. Others have token types in their signature, as GPT-2 and XLM, and
    would add the embedding of token 0 or 1 everywhere."""
    import transformers

    model = transformers.MODEL_MAPPING.get(type(config), None)
    model = model[0] if isinstance(model, (tuple, list)) else model
    taken = {"input_ids", *(inspect.signature(model.forward).parameters if model else POSSIBLE)}
    segments = getattr(config, "type_vocab_size", 0)
    if not (isinstance(segments, int) and segments > 1 or config.model_type in SEGMENTS):
        taken -= {"token_type_ids"}
    return [name for name in POSSIBLE if name in taken]


def restrict(tokenizer: Any, config: Any) -> None:
    """Let the tokenizer make no other inputs; whoever loads it after it was saved finds them there. Padding always
    needs its mask, but token types are the tokenizer's choice."""
    known = {*tokenizer.model_input_names, "attention_mask"}
    names = [name for name in input_names(config) if name in known]
    tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = names


def needs_more(model: type) -> list[str]:
    """What the forward() of a model's class asks for that no tokenizer of texts makes."""
    parameters = list(inspect.signature(model.forward).parameters.values())[1:]  # type: ignore[attr-defined]
    needed = [p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    known = {p.name for p in parameters}
    return [name for name in needed if name not in POSSIBLE] + ([] if "input_ids" in known else ["no input_ids"])
