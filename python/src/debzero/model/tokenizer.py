"""The model's tokenizer."""
from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from itertools import chain
from typing import Any, Callable, Optional, Union

from debzero.base.errors import UserError
from debzero.base.failures import as_user_error
from debzero.model.folder import no_code
from debzero.model.inputs import input_names, restrict
from debzero.model.settings import from_scratch
from debzero.model.tokenizer_files import refuse_foreign_files

Model = Union[str, "dict[str, Any]"]
TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
ALPHABET = 1000  # characters a tokenizer from scratch knows


def load_tokenizer(model: Model, texts: Callable[[], Iterable[str]], max_length: int, continues: bool = False) -> Any:
    """The model's own tokenizer; for a model from scratch, a WordPiece tokenizer trained on the training texts.

    `continues`: the model is to continue texts, so a new tokenizer adds no tokens to a prompt. After one that ends with
    the end token the model would begin another text.
    """
    import transformers

    transformers.logging.set_verbosity_error()  # of texts too long for the model, which are cut later
    if isinstance(model, dict):
        names = input_names(from_scratch(model))
        return transformers.PreTrainedTokenizerFast(
            tokenizer_object=_wordpiece(list(texts()), model["vocab_size"], continues), model_max_length=max_length,
            model_input_names=names, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
            mask_token="[MASK]", bos_token="[CLS]", eos_token="[SEP]")
    tokenizer = _loaded(model)
    tokenizer.init_kwargs.pop("auto_map", None)  # code that was not run does not belong to the result
    if tokenizer.pad_token is None:
        # GPT-2 was trained without padding. A new token would be one more than the embedding holds.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.sep_token or tokenizer.unk_token
    if tokenizer.pad_token_id is None:
        raise UserError(f"the tokenizer of {model} has neither a padding nor an end-of-text token",
                        "give it a pad_token and save it beside the model, then name that folder in `model:`")
    restrict(tokenizer, transformers.AutoConfig.from_pretrained(model, **no_code()))
    return tokenizer


def _loaded(model: str) -> Any:
    """The tokenizer in a folder. Raises a UserError for whatever is wrong with it."""
    import transformers

    try:
        refuse_foreign_files(model)
        tokenizer = transformers.AutoTokenizer.from_pretrained(model, **no_code())
        tokenizer.get_vocab()
    except BaseException as error:  # of all types; those written in Rust panic
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        if known := as_user_error(error, model):
            raise known from error
        files = [name for name in TOKENIZERS if os.path.exists(os.path.join(model, name))]
        if not files:
            raise UserError(f"{model} has no tokenizer (such as tokenizer.json)",
                            "save the model's tokenizer into that folder, with its save_pretrained") from error
        first = next(iter(str(error).splitlines()), "")[:200]
        raise UserError(f"{model}: its tokenizer ({', '.join(files)}) cannot be loaded: {type(error).__name__}: "
                        f"{first}", "copy its files again, or save it there with save_pretrained") from error
    return tokenizer


def end_token(tokenizer: Any) -> Optional[int]:
    """The token that ends a text; None where the tokenizer marks no end."""
    found: Optional[int] = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    return found


def highest(tokenizer: Any) -> int:
    """The largest token id; -1 for an empty vocabulary. Vocabularies have gaps: it is not their length."""
    return max(tokenizer.get_vocab().values(), default=-1)


def _wordpiece(texts: list[str], size: int, bare: bool) -> Any:
    """A lower-case WordPiece tokenizer with `size` tokens, trained on `texts`. The same texts give the same tokenizer.
    `bare`: it adds no [CLS] and [SEP].

    The library numbers the inner characters ("##a") in the order of a randomly seeded hash table and breaks ties by
    these numbers, so that two trainings differ. Passed as special tokens they get fixed numbers; only the vocabulary is
    kept.
    """
    from tokenizers import BertWordPieceTokenizer
    from tokenizers.processors import TemplateProcessing

    pieces = BertWordPieceTokenizer(lowercase=True)
    normalise = pieces._tokenizer.normalizer.normalize_str
    counts = Counter(chain.from_iterable(map(normalise, texts)))
    common = sorted((-count, char) for char, count in counts.items() if not char.isspace())
    alphabet = sorted(char for _, char in common[:ALPHABET])
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces.train_from_iterator(texts, vocab_size=size, min_frequency=2, limit_alphabet=ALPHABET, show_progress=False,
                               special_tokens=special + [f"##{char}" for char in alphabet])
    made = BertWordPieceTokenizer(vocab=pieces.get_vocab(), lowercase=True)._tokenizer
    if bare:
        made.post_processor = TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    return made
