"""Whether a tokenizer suits the model beside it and the job."""
from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Optional

import numpy as np

from debzero.base.errors import Problem, UserError
from debzero.base.text import count_text
from debzero.job.schema import Job
from debzero.model import tasks
from debzero.model.folder import no_code
from debzero.model.tokenizer import Model, end_token, highest

TEXT = "The cat sat. ☃ 0"  # letters, digits, signs, and one character that few vocabularies have
# Types that classify at the end-of-text token, of which each sample must have as many.
AT_END = {"bart", "bigbird_pegasus", "led", "mbart", "mt5", "mvp", "plbart", "t5", "umt5"}
OWN = "use the tokenizer that belongs to the model, and save both into one folder"


def token_problems(job: Job, file: str, config: Any, tokenizer: Any) -> Iterator[Problem]:
    """What is wrong with the model's own tokenizer."""
    place, most = str(job.model), highest(tokenizer)
    size = getattr(config, "vocab_size", None)
    if most < 0:
        yield Problem(file, "model", f"{place}: its tokenizer has no tokens", OWN)
        return
    if isinstance(size, int) and most >= size:
        yield Problem(file, "model", f"{place}: its tokenizer has tokens up to number {most}, but the model's "
                      f"embedding holds {size}", f"{OWN}, or enlarge the embedding (resize_token_embeddings)")
        return
    for name in ("decoder_start_token_id", "eos_token_id"):
        number = getattr(config, name, None)
        if config.is_encoder_decoder and isinstance(size, int) and type(number) is int and not 0 <= number < size:
            yield Problem(file, "model", f"{place}: its config.json says {name}: {number}, which is no token of {size}",
                          f"correct {name} in config.json; for T5 the start is the padding token, 0")
    try:
        ids, added = tokenizer(TEXT)["input_ids"], tokenizer("")["input_ids"]
        tokenizer(*[TEXT] * len(job.data.text), truncation=True, max_length=job.data.max_length)
    except BaseException as error:  # what is written in Rust panics
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        yield Problem(file, "model", f"{place}: its tokenizer cannot encode {TEXT!r}: {error}",
                      "give it an unknown token (unk_token) that is in its vocabulary, or " + OWN)
        return
    yield from _special(job, file, config, tokenizer, (ids, added))


def _special(job: Job, file: str, config: Any, tokenizer: Any, tried: tuple[list[int], list[int]]) -> Iterator[Problem]:
    """`tried`: the tokens of TEXT, and those of an empty text."""
    place, task, (ids, added) = str(job.model), tasks.TASKS[job.task], tried
    if task is tasks.CausalLM:
        if end_token(tokenizer) is None:
            yield Problem(file, "model", f"{place}: its tokenizer has no end-of-text token (eos_token), which ends "
                          "each text of task causal-lm", "set eos_token in its tokenizer_config.json to a token of "
                          "its vocabulary")
        return
    count = tokenizer.num_special_tokens_to_add(len(job.data.text) > 1 and not job.data.prefix)
    if count >= job.data.max_length:
        yield Problem(file, "data.max_length", f"{job.data.max_length} tokens leave no room for text: the tokenizer "
                      f"adds {count} of its own", "use a larger number")
    if task is tasks.TextToText:
        return
    if config.model_type in AT_END:
        if config.eos_token_id not in added:
            yield Problem(file, "model", f"{place}: its tokenizer does not end texts with the model's end-of-text "
                          f"token (eos_token_id {config.eos_token_id}), where {config.model_type} models classify", OWN)
    elif tasks.suits(tasks.CausalLM, config.model_type) and tokenizer.pad_token_id in ids and (
            tokenizer.cls_token_id is None):  # such a model, and not BERT
        yield Problem(file, "model", f"{place}: its tokenizer pads with {tokenizer.pad_token!r}, which it also puts "
                      f"into texts: {config.model_type} models classify at the token before the first one",
                      "set pad_token in its tokenizer_config.json to a token that texts do not have")


def class_token(model: Model, tokenizer: Any) -> Optional[int]:
    """The token at which the model, a folder or the settings of one from scratch, classifies, if that is the end of the
    text; else None."""
    from transformers import AutoConfig

    if isinstance(model, dict):
        return tokenizer.eos_token_id if model["type"] in AT_END else None
    config = AutoConfig.from_pretrained(model, local_files_only=True, **no_code())
    return config.eos_token_id if config.model_type in AT_END else None


def refuse_ends(tokenizer: Any, end: int, ids: np.ndarray, lengths: np.ndarray) -> None:
    """Raises a UserError where a sample has the token `end`, at which the model classifies, more often than others.
    `ids`: the samples' tokens, one after the other; `lengths`: how many each has, one at least."""
    first = np.cumsum(lengths, dtype=np.int64) - lengths
    counts = np.add.reduceat((ids == end).astype(np.int64), first)
    other = np.flatnonzero(counts != np.bincount(counts).argmax())
    if len(other):
        text = tokenizer.decode(ids[first[other[0]] :][: lengths[other[0]]])
        name = tokenizer.convert_ids_to_tokens(end)
        raise UserError(f"the text {text[:80]!r} has the token {name} {count_text(int(counts[other[0]]), 'time')}, "
                        "other than most texts: models of this type classify there, so all need as many",
                        f"remove {name} from the texts")
