"""How long the rows are in tokens, and how many of them data.max_length cuts."""
from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, Protocol

import numpy as np

from debzero.job.schema import Data

KEPT = 0.99  # of the rows: the length that keeps as many whole is worth knowing


class Prefixed(Protocol):
    @property
    def prefix(self) -> list[str]: ...


def joined(columns: list[list[str]], data: Prefixed) -> list[list[str]]:
    """The tokenizer's input: the columns, or with prefixes one text joined from them."""
    if not data.prefix:
        return columns
    return [["".join(chain.from_iterable(zip(data.prefix, texts))) for texts in zip(*columns)]]


def in_tokens(tokenizer: Any, columns: list[list[str]], data: Data) -> np.ndarray:
    """int32[n]: how many tokens each row has, uncut."""
    if not columns[0]:
        return np.empty(0, np.int32)
    texts = joined(columns, data)
    if getattr(tokenizer, "is_fast", False):  # without lists of numbers: Python's garbage collector would look at all
        backend = tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        pairs: list[Any] = list(zip(*texts))
        encoded = backend.encode_batch(pairs if len(texts) > 1 else texts[0])
    else:
        encoded = tokenizer(*texts, truncation=False, return_attention_mask=False)["input_ids"]
    return np.fromiter(map(len, encoded), np.int32, len(encoded))


def uncut(tokenizer: Any, columns: list[list[str]], data: Data, cut: np.ndarray) -> np.ndarray:
    """int32[n]: the same, where `cut` has the lengths of the rows after they were cut: few need to be looked at
    again."""
    rows = np.flatnonzero(cut >= data.max_length)
    lengths = cut.copy()
    lengths[rows] = in_tokens(tokenizer, [[column[row] for row in rows] for column in columns], data)
    return lengths


def length_that_keeps(lengths: np.ndarray, share: float) -> int:
    """The least max_length with which this share of the rows stays whole."""
    return int(np.sort(lengths)[int(np.ceil(share * len(lengths))) - 1])


def length_facts(lengths: Sequence[np.ndarray], data: Data, sampled: bool = False) -> dict[str, str]:
    """The lengths for people; `sampled`: they are of some of the rows."""
    every = np.concatenate([np.empty(0, np.int32), *lengths])
    if not len(every):
        return {}
    low, median, high = (length_that_keeps(every, share) for share in (0.05, 0.5, 0.95))
    about, of = ("about ", f" of the {len(every)} rows that were measured") if sampled else ("", "")
    found = {"lengths": f"{about}{median} tokens (median), 5 % up to {low}, 95 % up to {high}, the longest{of} "
                        f"{every.max()}"}
    share = cut_share(every, data)
    if share:
        found["cut"] = f"{about}{share:.2%} of the rows, at max_length {data.max_length}; " \
                       f"{length_that_keeps(every, KEPT)} would keep {KEPT:.0%} whole"
    return found


def cut_share(lengths: np.ndarray, data: Data) -> float:
    return float((lengths > data.max_length).mean())
