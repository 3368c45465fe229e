"""What every task has: a loss, answers and scores, and the samples that it is scored on.

A task sees the model only as `forward(**inputs)`, which returns transformers' output, and where it writes texts as
`forward.generate(**inputs)`. So DDP, DeepSpeed and torch.compile make no difference to it. A batch is the collator's
dictionary: tensors of n rows on the model's device.
"""
from __future__ import annotations

from typing import Any, Callable, Optional, Protocol

import numpy as np

Forward = Callable[..., Any]
IGNORED = -100  # the target where no token is to be predicted
PIECE = 2**24   # tokens counted at a time


class Model(Protocol):
    """A model that is asked for answers."""

    def __call__(self, **inputs: Any) -> Any: ...

    def generate(self, **inputs: Any) -> Any:
        """int64[n, tokens]: what its decoder writes, as transformers' method of that name."""


class Texts(Protocol):
    """n texts: the token ids of all of them end to end (int[tokens]), where each begins (int[n]) and how many tokens
    it has (int[n])."""

    @property
    def ids(self) -> np.ndarray: ...

    @property
    def offsets(self) -> np.ndarray: ...

    @property
    def lengths(self) -> np.ndarray: ...


class Side(Texts, Protocol):
    """Training or held-out samples: their texts, and each one's label (int or float[n]) or the text to answer with."""

    @property
    def labels(self) -> np.ndarray: ...

    @property
    def answers(self) -> Optional[Texts]: ...


class Samples(Protocol):
    """What scores need of a job's data, for example of data/tokens.Prepared. `labels`: the names of the classes."""

    @property
    def train(self) -> Side: ...

    @property
    def held_out(self) -> Side: ...

    @property
    def labels(self) -> list[str]: ...

    @property
    def tokenizer(self) -> Any: ...


class Task:
    """The base of the tasks. `auto`: transformers' class for the task; `models`: transformers' list of the model types
    that have one."""

    auto, models = "", ""
    scores: tuple[str, ...] = ()  # the metrics, the main one first
    label = "class"               # what a row's label is: class, value, text, or nothing

    def __init__(self, metric: str) -> None:
        self.main = self.scores[0] if metric == "auto" else metric

    def bind(self, tokenizer: Any, labels: list[str]) -> Any:
        """Take the names of the classes. For a model that answers with text, returns their token ids (int64[classes,
        tokens], padded with IGNORED)."""

    def losses(self, forward: Forward, batch: dict[str, Any]) -> Any:
        """float32[n]: each sample's own loss."""
        raise NotImplementedError

    def answers(self, forward: Model, batch: dict[str, Any]) -> np.ndarray:
        """float64[n, k]: each sample's loss, then its answer if the task has one."""
        raise NotImplementedError

    def metrics(self, answers: np.ndarray, prepared: Samples) -> dict[str, float]:
        """The scores by name. `answers`: those to all held-out samples, in their order."""
        raise NotImplementedError

    def baseline(self, prepared: Samples) -> dict[str, float]:
        """The scores on the held-out samples of a guess that ignores the input, for comparison."""
        raise NotImplementedError

    def shown(self, answers: np.ndarray, prepared: Samples) -> list[dict[str, str]]:
        """Some held-out samples with what the model wrote, for people: `text`, `target` and `answer`. None where it
        writes no text of its own."""
        return []

    @staticmethod
    def higher_is_better(metric: str) -> bool:
        return metric not in ("loss", "perplexity")


def inputs(batch: dict[str, Any], *without: str) -> dict[str, Any]:
    return {name: tensor for name, tensor in batch.items() if name not in ("labels", *without)}


def rows_of(*columns: Any) -> np.ndarray:
    """Tensors of n values each, as float64[n, k]: one transfer from the device."""
    import torch

    return np.asarray(torch.stack([column.detach().double() for column in columns], 1).cpu().numpy())


def token_losses(logits: Any, targets: Any) -> Any:
    """float32[n, tokens], 0 for IGNORED targets. logits: [n, tokens, vocabulary], or model/vocabulary.Logits; targets:
    int64[n, tokens]."""
    import torch
    import torch.nn.functional as F

    if not torch.is_tensor(logits):
        return logits.token_losses(targets)

    flat = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none", ignore_index=IGNORED)
    return flat.view(targets.shape)


def mean_of(losses: Any, targets: Any) -> Any:
    return losses.sum(1) / (targets != IGNORED).sum(1).clamp(min=1)


def counts(ids: np.ndarray, vocabulary: int) -> np.ndarray:
    """int64[vocabulary]: how often each token is among `ids`."""
    pieces = (ids[first : first + PIECE] for first in range(0, len(ids), PIECE))
    return np.asarray(sum(np.bincount(piece, minlength=vocabulary) for piece in pieces))
