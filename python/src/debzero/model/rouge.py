"""ROUGE-L: how much of a text's wording another one has in the same order.

Source: Lin, ROUGE: A Package for Automatic Evaluation of Summaries, 2004, section 3.1, with as much weight on recall
as on precision (beta = 1), as the package rouge-score has it. That package and what it needs (nltk, absl) is not worth
these lines; its stemming is left out.
"""
from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any


@cache
def _splitter() -> Any:
    """BERT's: lower case; spaces and punctuation separate words; each Chinese character is a word."""
    from tokenizers import normalizers, pre_tokenizers

    normalise = normalizers.BertNormalizer(strip_accents=False)
    split = pre_tokenizers.BertPreTokenizer()
    return lambda text: [word for word, _ in split.pre_tokenize_str(normalise.normalize_str(text))]


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    return [word for word in _splitter()(text) if any(char.isalnum() for char in word)]


def common(first: Sequence[str], second: Sequence[str]) -> int:
    """The length of the longest common subsequence, with one bit for each word of `first` (Hyyro, Bit-Parallel
    LCS-Length Computation Revisited, 2004)."""
    places: dict[str, int] = {}
    for place, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << place
    every = row = (1 << len(first)) - 1
    for word in second:
        matches = row & places.get(word, 0)
        row = (row + matches | row - matches) & every
    return len(first) - bin(row).count("1")


def rouge_l(answer: str, target: str) -> float:
    """F1 of the longest common subsequence of words, 0 to 1. Two texts without words are alike."""
    given, wanted = words(answer), words(target)
    if not given and not wanted:
        return 1.0
    return 2 * common(given, wanted) / (len(given) + len(wanted))
