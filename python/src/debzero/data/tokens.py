"""Tokenised samples as flat arrays on disk: written once, piece by piece; memory-mapped by every rank.

A folder holds one file per array, raw, in the machine's byte order, with its type as the suffix: `ids.uint16` has all
the samples' token ids end to end, `offsets.int64` where each sample begins, `lengths.int32` how many tokens it has,
`types.uint8` the segment of each token (where the model's tokenizer tells segments apart), `labels.int32` or
`labels.float32` each sample's class or value (where the task has them), and `answer_ids`, `answer_offsets` and
`answer_lengths` the text to answer with (where the task has one).
"""
from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Optional

import numpy as np

Piece = dict[str, np.ndarray]  # array name -> what to append to it


def smallest(largest: int) -> np.dtype:
    """The smallest type for token ids up to `largest`."""
    return np.dtype(np.uint16 if largest < 2**16 else np.int32)


@dataclass(frozen=True)
class Tokens:
    """n samples; nothing is read before it is asked for.

    ids: int[all tokens], types: uint8[all tokens], offsets: int64[n], lengths: int32[n], labels: int32[n] classes,
    float32[n] values, or empty. `limit` is the most tokens a sample may have. Where the task answers in words,
    `targets` (int64[classes, words]) has the token ids of each class's text, filled up with -100; where each sample has
    a text of its own to answer with, `answers` has those.
    """

    ids: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray
    limit: int
    types: Optional[np.ndarray] = None
    targets: Optional[np.ndarray] = None
    answers: Optional[Tokens] = None

    def __len__(self) -> int:
        return len(self.lengths)


@dataclass(frozen=True)
class Prepared:
    """A job's tokenised samples. `labels`: the classes' names; for regression the column's; for causal-lm none.
    `digest` is the same for the same samples; `revisions`: the hub's commits of the "model" and the "data" that
    they were made with; `facts`: what check, too, says of the rows, for people."""

    train: Tokens
    held_out: Tokens
    labels: list[str]
    digest: str
    tokenizer: Any
    revisions: dict[str, str]
    facts: dict[str, str]


def write(folder: Path, pieces: Iterable[Piece]) -> str:
    """Append the pieces to the files of a new folder; returns the sha256 of all that is in them."""
    folder.mkdir()
    digest = hashlib.sha256()
    with ExitStack() as stack:
        files: dict[str, IO[bytes]] = {}
        for piece in pieces:
            for name, values in piece.items():
                if name not in files:
                    files[name] = stack.enter_context(open(folder / f"{name}.{values.dtype}", "wb"))
                    digest.update(f"{name}.{values.dtype}".encode())
                content = np.ascontiguousarray(values).data
                files[name].write(content)
                digest.update(content)
    return digest.hexdigest()


def read(folder: Path, limit: int, targets: Optional[np.ndarray] = None, answer_limit: int = 0) -> Tokens:
    """The samples that `write` wrote; their answers have at most `answer_limit` tokens."""
    # A view as a plain array: indexing np.memmap itself costs a Python call each time.
    arrays = {path.stem: np.memmap(path, np.dtype(path.suffix[1:]), "r").view(np.ndarray) for path in folder.iterdir()}
    none = np.empty(0, np.int32)
    answers = Tokens(arrays["answer_ids"], arrays["answer_offsets"], arrays["answer_lengths"], none,
                     answer_limit) if "answer_ids" in arrays else None
    return Tokens(arrays["ids"], arrays["offsets"], arrays["lengths"], arrays.get("labels", none), limit,
                  arrays.get("types"), targets, answers)
