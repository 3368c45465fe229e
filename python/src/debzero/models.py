"""The model and its tokenizer: from the hub, from a folder, or from scratch; for transformers 4 and 5 alike."""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, Callable, Union

from debzero import tasks
from debzero.base.errors import UserError
from debzero.resolve.resolve import Plan

Model = Union[str, "dict[str, Any]"]
ALPHABET = 1000  # characters a tokenizer from scratch knows


def tokenizer(model: Model, texts: Callable[[], Iterable[str]], max_length: int) -> Any:
    """The model's own tokenizer, or for a model from scratch a WordPiece one trained on the training texts."""
    import transformers

    transformers.logging.set_verbosity_error()  # "longer than the model's maximum" is what blocks are cut from
    if isinstance(model, dict):
        # Only models that tell segments apart take their numbers (GPT-2 would add word 0 or 1 to each place).
        segments = getattr(transformers.CONFIG_MAPPING[model["type"]](), "type_vocab_size", 0) > 1
        names = ["input_ids", *(["token_type_ids"] if segments else []), "attention_mask"]
        return transformers.PreTrainedTokenizerFast(
            tokenizer_object=_wordpiece(list(texts()), model["vocab_size"]), model_max_length=max_length, model_input_names=names,
            pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]",
            bos_token="[CLS]", eos_token="[SEP]")
    made = transformers.AutoTokenizer.from_pretrained(model)
    if made.pad_token is None:
        # GPT-2 was trained without padding. A token of its own would be one more than the embedding holds.
        made.pad_token = made.eos_token or made.unk_token
    if made.pad_token is None:
        raise UserError(f"the tokenizer of {model} has neither a padding nor an end-of-text token",
                        "give it a pad_token and save it beside the model, then name that folder in `model:`")
    return made


def _wordpiece(texts: list[str], size: int) -> Any:
    """A lower-case WordPiece tokenizer trained on `texts`, the same each time.

    The library numbers the inner characters ("##a") in the order of a randomly seeded hash table and breaks ties by these
    numbers, so two trainings differ. Given first, as special tokens, they have fixed numbers; the vocabulary alone is kept.
    """
    from tokenizers import BertWordPieceTokenizer

    pieces = BertWordPieceTokenizer(lowercase=True)
    normalise = pieces._tokenizer.normalizer.normalize_str
    common = Counter(char for text in texts for char in normalise(text) if not char.isspace())
    alphabet = sorted(char for char, _ in sorted(common.items(), key=lambda item: (-item[1], item[0]))[:ALPHABET])
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces.train_from_iterator(texts, vocab_size=size, min_frequency=2, limit_alphabet=ALPHABET, show_progress=False,
                               special_tokens=special + [f"##{char}" for char in alphabet])
    return BertWordPieceTokenizer(vocab=pieces.get_vocab(), lowercase=True)._tokenizer


def check_length(model: Model, tokens: Any, max_length: int) -> None:
    """Refuse samples longer than the model has positions for; on a GPU they would end the run with an unreadable assertion."""
    from transformers import AutoConfig

    if isinstance(model, dict):
        return  # `debzero check` has seen to it
    positions = getattr(AutoConfig.from_pretrained(model), "max_position_embeddings", None)
    if isinstance(positions, int) and positions > 0:
        longest = min(positions, tokens.model_max_length)  # RoBERTa has two positions that no token takes
        if max_length > longest:
            raise UserError(f"data.max_length is {max_length}, but {model} has positions for {longest} tokens",
                            f"set data.max_length: {longest} or less")


def from_scratch(model: dict[str, Any]) -> Any:
    """The configuration of a job's `model:` that is no name: its type, and settings of that."""
    from transformers import AutoConfig

    return AutoConfig.for_model(model["type"], **{key: value for key, value in model.items() if key != "type"})


def config(model: Model, labels: list[str], tokens: Any) -> Any:
    """The model's configuration, with the real class names in it."""
    from transformers import AutoConfig

    names = {"id2label": dict(enumerate(labels)), "label2id": {name: number for number, name in enumerate(labels)}} if labels else {}
    if isinstance(model, str):
        made = AutoConfig.from_pretrained(model, **names)
    else:
        made = from_scratch({**model, "vocab_size": len(tokens), "bos_token_id": tokens.bos_token_id,
                             "eos_token_id": tokens.eos_token_id, **names})
        if made.is_encoder_decoder and getattr(made, "decoder_start_token_id", None) is None:
            made.decoder_start_token_id = tokens.pad_token_id  # T5's own choice
    if len(tokens) > getattr(made, "vocab_size", len(tokens)):
        raise UserError(f"the tokenizer knows {len(tokens)} tokens, but the model's embedding holds {made.vocab_size}",
                        "use the tokenizer that belongs to the model, or enlarge the embedding and save both into one folder")
    made.pad_token_id = tokens.pad_token_id
    made.use_cache = False  # keys and values of earlier tokens are for generating text
    return made


def build(plan: Plan, settings: Any, deepspeed: dict[str, Any]) -> Any:
    """The model with the task's head, in fp32. For stage 3 it is born sharded: no rank ever holds it whole."""
    import torch
    import transformers
    from transformers.utils import logging

    logging.set_verbosity_error()  # "some weights are newly initialized" is what fine-tuning is
    logging.disable_progress_bar()
    task, job = tasks.of(plan.job), plan.job
    if not tasks.suits(type(task), settings.model_type):
        raise UserError(f"{settings.model_type} models cannot do the task {job.task}", "choose another model, or another task")
    if isinstance(task, tasks.CausalLM) and hasattr(settings, "is_decoder"):
        settings.is_decoder = True  # a BERT would otherwise see the tokens it is asked for
    stage3 = deepspeed.get("zero_optimization", {}).get("stage") == 3
    alive = None
    if stage3:
        from transformers.integrations import HfDeepSpeedConfig

        alive = HfDeepSpeedConfig(deepspeed)  # transformers itself holds only a weak reference
    # transformers 5 loads weights as they were saved, in half precision often: the optimizer needs them whole.
    dtype = {"dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype": torch.float32}
    auto, name = getattr(transformers, task.auto), job.model
    model = auto.from_pretrained(name, config=settings, **dtype) if isinstance(name, str) else auto.from_config(settings, **dtype)
    del alive
    straighten(model)
    if job.train.gradient_checkpointing:
        # A sharded parameter is empty when the recomputation is compared with what was saved, which only reentrant
        # checkpointing does not do.
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": stage3})
    return model


def straighten(model: Any) -> None:
    """Give T5's bias of relative positions the strides that torch's fused attention takes. It comes from a permutation, and for such
    a mask torch falls back to products in fp32 that keep all of their s x s matrices."""
    for module in model.modules():
        made = getattr(module, "compute_bias", None)
        if made:
            module.compute_bias = lambda *given, made=made, **named: made(*given, **named).contiguous()
