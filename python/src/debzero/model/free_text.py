"""The task of writing a text of its own for each sample: summaries, translations, answers to questions."""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Optional

import numpy as np

from debzero.model.rouge import rouge_l
from debzero.model.task import (
    IGNORED,
    Forward,
    Model,
    Samples,
    Task,
    Texts,
    counts,
    inputs,
    mean_of,
    rows_of,
    token_losses,
)
from debzero.model.tokenizer import end_token

SHOWN = 5        # held-out samples, the first ones
COUNTED = 2**17  # training targets among which the commonest is looked for


class FreeText(Task):
    """A text of up to `limit` tokens per sample. What the model writes is decoded greedily, whatever the settings that
    came with it say, so that the scores of two models can be compared. `exact_match` is the share of answers that equal
    their target but for blanks, `rouge_l` the mean ROUGE-L. Targets are compared as the tokenizer decodes them: it may
    not know all characters, and longer ones were cut off."""

    auto, models = "AutoModelForSeq2SeqLM", "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES"
    scores = ("rouge_l", "exact_match", "loss")
    label = "text"

    def __init__(self, metric: str, limit: int) -> None:
        super().__init__(metric)
        self.limit = limit

    def bind(self, tokenizer: Any, labels: list[str]) -> None:
        # What targets end with, which an answer then ends with, too.
        self.end = end_token(tokenizer)

    def losses(self, forward: Forward, batch: dict[str, Any]) -> Any:
        # The model derives the decoder's inputs from the labels. Its own loss is not used: it is the batch's mean.
        targets = batch["labels"]
        return mean_of(token_losses(forward(**batch).logits, targets), targets)

    def answers(self, forward: Model, batch: dict[str, Any]) -> np.ndarray:
        """float64[n, 1 + limit]: each sample's loss, then the tokens that the model wrote, filled up with IGNORED."""
        losses = rows_of(self.losses(forward, batch))
        written = forward.generate(
            **inputs(batch), max_new_tokens=self.limit, min_new_tokens=0, num_beams=1, do_sample=False,
            no_repeat_ngram_size=0, repetition_penalty=1.0, use_cache=True, eos_token_id=self.end,
            return_dict_in_generate=False)
        # The first token is the one that the decoder starts with.
        tokens = written[:, 1 : 1 + self.limit].cpu().numpy()
        return np.pad(np.hstack([losses, tokens]), ((0, 0), (0, self.limit - tokens.shape[1])),
                      constant_values=IGNORED)

    def metrics(self, answers: np.ndarray, prepared: Samples) -> dict[str, float]:
        pairs = list(zip(self._written(answers, prepared), self._targets(prepared)))
        return {**_scores(pairs), "loss": float(answers[:, 0].mean())}

    def baseline(self, prepared: Samples) -> dict[str, float]:
        """Always the commonest of the training targets; for the loss, each token with its frequency in them."""
        seen, wanted = _of(prepared.train.answers), _of(prepared.held_out.answers)
        vocabulary = 1 + max(int(texts.ids.max()) for texts in (seen, wanted))
        commonest = Counter(ids.tobytes() for ids in _each(seen, COUNTED)).most_common(1)[0][0]
        guess = _decoded(prepared.tokenizer, [np.frombuffer(commonest, seen.ids.dtype)])[0]
        chances = counts(seen.ids, max(vocabulary, len(prepared.tokenizer))) + 1
        losses = -np.log(chances / chances.sum())
        held_out = [losses[ids].mean() for ids in _each(wanted)]
        return {**_scores([(guess, target) for target in self._targets(prepared)]), "loss": float(np.mean(held_out))}

    def shown(self, answers: np.ndarray, prepared: Samples) -> list[dict[str, str]]:
        held_out, few = prepared.held_out, answers[:SHOWN]
        texts = _decoded(prepared.tokenizer, _each(held_out, SHOWN))
        return [{"text": text, "target": target, "answer": answer}
                for text, target, answer in zip(texts, self._targets(prepared, SHOWN), self._written(few, prepared))]

    @staticmethod
    def _written(answers: np.ndarray, prepared: Samples) -> list[str]:
        rows = answers[:, 1:].astype(np.int64)
        return _decoded(prepared.tokenizer, (row[row != IGNORED] for row in rows))

    @staticmethod
    def _targets(prepared: Samples, most: Optional[int] = None) -> list[str]:
        return _decoded(prepared.tokenizer, _each(_of(prepared.held_out.answers), most))


def _of(texts: Any) -> Texts:
    assert texts is not None, "the samples of this task have texts to answer with"
    return texts


def _each(texts: Texts, most: Optional[int] = None) -> Iterator[np.ndarray]:
    """The token ids of each text, or of the first `most`."""
    for start, length in zip(texts.offsets[:most], texts.lengths[:most]):
        yield texts.ids[start : start + length]


def _decoded(tokenizer: Any, texts: Iterable[np.ndarray]) -> list[str]:
    """The texts, with one space where there are blanks."""
    return [" ".join(tokenizer.decode(ids.tolist(), skip_special_tokens=True).split()) for ids in texts]


def _scores(pairs: list[tuple[str, str]]) -> dict[str, float]:
    """Of pairs of answer and target."""
    return {"rouge_l": float(np.mean([rouge_l(answer, target) for answer, target in pairs])),
            "exact_match": float(np.mean([answer == target for answer, target in pairs]))}
