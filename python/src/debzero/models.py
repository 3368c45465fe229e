"""The model and its tokenizer: from the hub, from a folder, or from scratch."""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, Union

from debzero.plan import Plan

Model = Union[str, "dict[str, Any]"]
ALPHABET = 1000  # characters a tokenizer from scratch knows


def tokenizer(model: Model, texts: Iterable[str], max_length: int) -> Any:
    """The model's own tokenizer, or for a model from scratch a WordPiece one trained on the training texts."""
    from transformers import AutoTokenizer, BertTokenizerFast

    if isinstance(model, str):
        made = AutoTokenizer.from_pretrained(model)
        if made.pad_token is None:
            made.pad_token = made.eos_token  # GPT-2 was trained without padding; the attention mask hides it
        return made
    return BertTokenizerFast(tokenizer_object=_wordpiece(list(texts), model["vocab_size"]), model_max_length=max_length)


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


def config(model: Model, labels: list[str], tokens: Any) -> Any:
    """The model's configuration, with the real class names in it."""
    from transformers import AutoConfig

    names = {"id2label": dict(enumerate(labels)), "label2id": {name: number for number, name in enumerate(labels)}}
    if isinstance(model, str):
        made = AutoConfig.from_pretrained(model, num_labels=len(labels), **names)
    else:
        rest = {key: value for key, value in model.items() if key not in ("type", "vocab_size")}
        made = AutoConfig.for_model(model["type"], vocab_size=len(tokens), num_labels=len(labels), **names, **rest)
    made.pad_token_id = tokens.pad_token_id
    made.use_cache = False  # keys and values of earlier tokens are for generating text
    return made


def build(plan: Plan, settings: Any, deepspeed: dict[str, Any]) -> Any:
    """The model with a classification head, in fp32. For stage 3 it is born sharded: no rank ever holds it whole."""
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging

    logging.set_verbosity_error()  # "some weights are newly initialized" is what fine-tuning is
    logging.disable_progress_bar()
    alive = None
    if deepspeed.get("zero_optimization", {}).get("stage") == 3:
        from transformers.integrations import HfDeepSpeedConfig

        alive = HfDeepSpeedConfig(deepspeed)  # transformers itself holds only a weak reference
    if isinstance(plan.job.model, str):
        model = AutoModelForSequenceClassification.from_pretrained(plan.job.model, config=settings)
    else:
        model = AutoModelForSequenceClassification.from_config(settings)
    del alive
    return model
