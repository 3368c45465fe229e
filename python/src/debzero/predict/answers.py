"""From texts to answers: tokens as in training, batches of texts of similar length, and what the outputs mean."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Callable, Optional

import numpy as np

from debzero.base.errors import UserError
from debzero.data.lengths import joined
from debzero.model.tasks import TextToText
from debzero.model.tokenizer import end_token
from debzero.predict.engine import Batch, Engine, Writing
from debzero.predict.trained import Trained

Answer = dict[str, Any]  # `answer`, and of a class `probability` and `probabilities`, the likeliest first
DIGITS = 6               # of a probability
# Types that number positions by the attention mask, or have none: a prompt may be padded on its left. Of others only
# prompts of one length become a batch.
PADDED_LEFT = {"gpt2", "gpt_neo", "gptj", "gpt_neox", "llama", "opt", "bloom"}


@dataclass(frozen=True)
class Tokens:
    """Each text's token ids, and where the model tells segments apart each token's."""

    ids: list[list[int]]
    types: Optional[list[list[int]]]

    def lengths(self) -> np.ndarray:
        return np.fromiter(map(len, self.ids), np.int64, len(self.ids))


class Answers:
    """A trained model that is asked. `how`: for a model that writes; `top`: classes in an answer at most."""

    def __init__(self, trained: Trained, engine: Engine, how: Writing, top: Optional[int] = None) -> None:
        self.trained, self.engine, self.how, self.top = trained, engine, how, top
        self.names = TextToText("auto").bind(trained.tokenizer, trained.labels) if (
            trained.task == "text-to-text" and trained.labels) else None

    def of(self, columns: list[list[str]], first: int = 0, done: Callable[[int], None] = lambda rows: None
           ) -> list[Answer]:
        """The answers in the order of the texts. `columns`: the texts of each of the model's columns; `first`: the
        number of their first row, on which a seed's random numbers depend; `done` hears of each batch's rows. Raises a
        UserError where the answers are no numbers."""
        tokens = self._tokens(columns)
        answers: list[Answer] = [{}] * len(tokens.ids)
        for number, rows in enumerate(self._batches(tokens.lengths())):
            for row, answer in zip(rows.tolist(), self._answers(self._batch(tokens, rows), first + number)):
                answers[row] = answer
            done(len(rows))
        return answers

    def _tokens(self, columns: list[list[str]]) -> Tokens:
        trained, tokenizer = self.trained, self.trained.tokenizer
        if trained.continues:
            # debzero trains on texts without special tokens at their beginning.
            ids = tokenizer(columns[0], add_special_tokens=not trained.by_debzero)["input_ids"]
            room = trained.positions and max(1, trained.positions - self.how.limit)
            begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else self.how.pad
            return Tokens([sample[-room:] if room else sample for sample in (each or [begin] for each in ids)], None)
        limit = min(trained.inputs.max_length, trained.positions or trained.inputs.max_length)
        encoded = tokenizer(*joined(columns, trained.inputs), truncation=True, max_length=limit,
                            return_attention_mask=False)
        # GPT-2's tokenizer turns an empty text into no token, and a sample needs at least one.
        blank = tokenizer(" ")["input_ids"] or [tokenizer.pad_token_id]
        return Tokens([sample or blank for sample in encoded["input_ids"]], encoded.get("token_type_ids"))

    def _batches(self, lengths: np.ndarray) -> Iterator[np.ndarray]:
        """The rows of each batch (int64[n]), the longest texts first: where memory is too small it shows at once."""
        order, start = np.argsort(-lengths, kind="stable"), 0
        alike = self.trained.continues and self.trained.config.model_type not in PADDED_LEFT
        more = self.how.limit if self.trained.continues else 0
        while start < len(order):
            width = int(lengths[order[start]])
            rows = order[start : start + min(self.engine.rows, max(1, self.engine.tokens // (width + more)))]
            if alike:
                rows = rows[lengths[rows] == width]
            yield rows
            start += len(rows)

    def _batch(self, tokens: Tokens, rows: np.ndarray) -> Batch:
        ids = [tokens.ids[row] for row in rows]
        width = max(map(len, ids))
        batch = {"input_ids": np.full((len(ids), width), self.trained.tokenizer.pad_token_id, np.int64),
                 "attention_mask": np.zeros((len(ids), width), np.int64)}
        if tokens.types is not None:
            batch["token_type_ids"] = np.zeros((len(ids), width), np.int64)
        for number, (row, sample) in enumerate(zip(rows, ids)):
            place = slice(width - len(sample), width) if self.trained.continues else slice(len(sample))
            batch["input_ids"][number, place] = sample
            batch["attention_mask"][number, place] = 1
            if tokens.types is not None:
                batch["token_type_ids"][number, : len(tokens.types[row])] = tokens.types[row]
        return batch

    def _answers(self, batch: Batch, number: int) -> list[Answer]:
        if self.trained.writes:
            seed = None if self.how.seed is None else self.how.seed + number
            written = self.engine.generate(batch, replace(self.how, seed=seed)).tolist()
            return [{"answer": self._text(ids, given[mask > 0].tolist())} for ids, given, mask in
                    zip(written, batch["input_ids"], batch["attention_mask"])]
        scores = (self.engine.logits(batch) if self.names is None else
                  self.engine.likelihoods(batch, self.names)).astype(np.float64)
        if not np.isfinite(scores).all():
            raise UserError(f"the model's answers are no numbers in {self.engine.precision}",
                            "use --precision fp32" if self.engine.precision != "fp32" else
                            "train it again with a smaller learning rate: its weights are no numbers, or too large")
        classes, names = scores.shape[1], len(self.trained.labels)
        if self.trained.labels and classes != names:
            raise UserError(f"{self.trained.folder} answers with {classes} classes, and its config.json names {names}",
                            "export the model again")
        if self.trained.task == "regression":
            return [{"answer": float(f"{value:.7g}")} for value in scores[:, 0].tolist()]
        return self._classes(scores)

    def _classes(self, scores: np.ndarray) -> list[Answer]:
        """scores: float64[n, classes], logits or log-probabilities."""
        exp = np.exp(scores - scores.max(1, keepdims=True))
        shares = np.round(exp / exp.sum(1, keepdims=True), DIGITS)
        labels, answers = self.trained.labels, []
        for row, places in zip(shares.tolist(), np.argsort(-scores, 1, kind="stable")[:, : self.top].tolist()):
            answers.append({"answer": labels[places[0]], "probability": row[places[0]],
                            "probabilities": {labels[place]: row[place] for place in places}})
        return answers

    def _text(self, ids: list[int], given: list[int]) -> str:
        """What `ids` say; of a model that continues, as it goes on after what was `given`, with a blank or without."""
        end = next((place for place, token in enumerate(ids) if token in self.how.ends), len(ids))
        text = self._decoded(ids[:end])
        if not self.trained.continues:
            return text.strip()
        before, whole = self._decoded(given), self._decoded([*given, *ids[:end]])
        return whole[len(before) :] if whole.startswith(before) else text

    def _decoded(self, ids: list[int]) -> str:
        return str(self.trained.tokenizer.decode(ids, skip_special_tokens=True))


def ends(trained: Trained) -> tuple[int, ...]:
    """The tokens that end what the model writes, by its tokenizer and its own settings."""
    end = end_token(trained.tokenizer)
    return () if end is None else (end,)
