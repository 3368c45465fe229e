"""What computes a model's outputs: one interface for torch and for the runtimes that a model is exported to.

An engine sees token ids in numpy arrays and nothing of texts, labels or files. A batch is a dictionary of int64[n,
width]: `input_ids`, `attention_mask` (1 for a token, 0 for padding) and, where the model has them, `token_type_ids`. It
is padded on the right, but on the left for a model that continues its input.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Protocol

import numpy as np

Batch = dict[str, np.ndarray]


@dataclass(frozen=True)
class Writing:
    """How a model writes. Greedily with one beam and without `sample`."""

    limit: int                  # new tokens of a text at most
    ends: tuple[int, ...]       # tokens that end a text
    pad: int                    # what follows the end
    beams: int = 1
    sample: bool = False
    temperature: float = 1.0    # this and the next two count only when it samples
    top_k: int = 0              # the likeliest tokens that are drawn from; 0 for all
    top_p: float = 1.0          # the share of the probability that is drawn from
    seed: Optional[int] = None  # of this batch's random numbers; None: other ones each time


@dataclass(frozen=True)
class Choice:
    """What the user asks of an engine."""

    device: str = "auto"        # auto, cpu, cuda, cuda:1
    precision: str = "auto"     # auto, fp32, bf16, fp16


class Engine(Protocol):
    """A loaded model. `rows` and `tokens` (n x width) are the most that a batch of it should have."""

    device: str
    precision: str
    rows: int
    tokens: int

    def logits(self, batch: Batch) -> np.ndarray:
        """float32[n, classes], or float32[n, 1] of a regression."""

    def likelihoods(self, batch: Batch, names: np.ndarray) -> np.ndarray:
        """float32[n, classes]: the log-probability that an encoder-decoder answers with each of the names (int64[
        classes, tokens], filled up with -100)."""

    def generate(self, batch: Batch, how: Writing) -> np.ndarray:
        """int64[n, tokens]: what the model writes, without its input and without the token that a decoder starts with;
        filled up with `how.pad` after an end."""
