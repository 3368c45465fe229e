"""The model's tokenizer: its own, or for a model from scratch one trained on the training texts."""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, Callable, Union

from debzero.base.errors import UserError

Model = Union[str, "dict[str, Any]"]
ALPHABET = 1000  # characters a tokenizer from scratch knows


def load_tokenizer(model: Model, texts: Callable[[], Iterable[str]], max_length: int) -> Any:
    """The model's own tokenizer, or for a model from scratch a WordPiece one trained on the training texts."""
    import transformers

    transformers.logging.set_verbosity_error()  # "longer than the model's maximum" is what blocks are cut from
    if isinstance(model, dict):
        # Only models that tell segments apart take their numbers (GPT-2 would add word 0 or 1 to each place).
        segments = getattr(transformers.CONFIG_MAPPING[model["type"]](), "type_vocab_size", 0) > 1
        names = ["input_ids", *(["token_type_ids"] if segments else []), "attention_mask"]
        return transformers.PreTrainedTokenizerFast(
            tokenizer_object=_wordpiece(list(texts()), model["vocab_size"]), model_max_length=max_length,
            model_input_names=names, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
            mask_token="[MASK]", bos_token="[CLS]", eos_token="[SEP]")
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
    """Refuse samples longer than the model has positions for; on a GPU they would end the run with an unreadable
    assertion."""
    from transformers import AutoConfig

    if isinstance(model, dict):
        return  # `debzero check` has seen to it
    positions = getattr(AutoConfig.from_pretrained(model), "max_position_embeddings", None)
    if isinstance(positions, int) and positions > 0:
        longest = min(positions, tokens.model_max_length)  # RoBERTa has two positions that no token takes
        if max_length > longest:
            raise UserError(f"data.max_length is {max_length}, but {model} has positions for {longest} tokens",
                            f"set data.max_length: {longest} or less")
