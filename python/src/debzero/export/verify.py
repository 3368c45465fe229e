"""The gate: the exported model and the original answer the job's own held-out samples, and must agree.

Random inputs would prove little: they hardly reach what real texts do, and understate how often half precision
overflows.
"""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional

import numpy as np

from debzero.export.samples import HeldOut
from debzero.model.task import IGNORED
from debzero.predict.trained import Trained

METRIC_LIMIT = 0.005       # half a point of a score from 0 to 1; of a loss or a perplexity, of the original's
ROWS_LIMIT = 0.01          # of the answers
VALUE_LIMIT = 0.01         # of the range of the labels: a number that is further off is another answer
FP32_LIMIT = 1e-3          # of the largest logit: a graph in fp32 is the same model, but for rounding
LISTED = 100               # rows whose answers differ
RELATIVE = ("loss", "perplexity")
HUGE = 1e30                # what takes the place of what is no number
HALF = 65_520.0            # from here on half precision rounds to infinity


@dataclass
class Comparison:
    """What was compared on the held-out samples. An answer is a row's class, value or text, or where the model
    continues texts each of their next tokens. `differing`: how many are others than the original's; `rows`: samples
    with such answers, by their numbers, the first of them. `peak`: what a value in the graph came to (of half
    precision); infinity counts among `not_finite`."""

    samples: int
    metric: str
    original: dict[str, float] = field(default_factory=dict)
    exported: dict[str, float] = field(default_factory=dict)
    answers: int = 0
    differing: int = 0
    rows: list[int] = field(default_factory=list)
    largest_difference: float = 0.0
    mean_difference: float = 0.0
    largest_logit: float = 0.0
    not_finite: int = 0
    peak: Optional[float] = None
    labels_agree: bool = True

    @property
    def metric_change(self) -> float:
        """As a share of 1, or of the original's value for what has no upper limit."""
        before, after = self.original[self.metric], self.exported[self.metric]
        change = abs(after - before) / (abs(before) or 1.0) if self.metric in RELATIVE else abs(after - before)
        return change if np.isfinite(change) else float("inf")

    def broken(self) -> list[str]:
        """What no user may accept: an export that is no such model."""
        found = []
        if not self.labels_agree:
            found.append("its classes have other names, or another order, than the original's")
        if self.not_finite:
            found.append(f"{self.not_finite} of its outputs are no finite numbers")
        if self.peak is not None and self.peak >= HALF:
            found.append(f"a value in the graph reaches {self.peak:.3g}, and half precision ends at 65504")
        return found

    def losses(self, precision: str) -> list[str]:
        """What is above the limits."""
        found = []
        if self.metric_change > METRIC_LIMIT:
            unit = "% of its value" if self.metric in RELATIVE else " points"
            found.append(f"{self.metric} changes from {self.original[self.metric]:.4f} to "
                         f"{self.exported[self.metric]:.4f}, by more than {100 * METRIC_LIMIT:g}{unit}")
        if self.differing > ROWS_LIMIT * self.answers:
            found.append(f"{self.differing} of {self.answers} answers differ, more than {ROWS_LIMIT:.0%}")
        if precision == "fp32" and self.largest_difference > FP32_LIMIT * max(1.0, self.largest_logit):
            found.append(f"a logit differs by {self.largest_difference:.3g}, more than rounding explains "
                         f"({FP32_LIMIT:g} of the largest, {self.largest_logit:.3g})")
        return found


class Watched:
    """A model that keeps the logits of its first answer to a batch."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.logits: Any = None

    def __call__(self, **inputs: Any) -> Any:
        output = self.model(**inputs)
        if self.logits is None:
            self.logits = output.logits.detach().float().cpu()
        return output

    def generate(self, **inputs: Any) -> Any:
        return self.model.generate(**inputs, synced_gpus=False)


def compare(original: Any, exported: Any, trained: Trained, held_out: HeldOut) -> Comparison:
    """`original` and `exported`: models as transformers' own, on the CPU."""
    import torch

    found = Comparison(len(held_out), held_out.task.main)
    answers: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    seen, differing = [], []
    total, count = 0.0, 0
    reach = float(np.ptp(held_out.prepared.held_out.labels)) if trained.task == "regression" else 0.0
    for indices, batch in held_out.batches(_classes(trained)):
        watched = Watched(original), Watched(exported)
        with torch.inference_mode():
            both = [held_out.task.answers(each, batch) for each in watched]
        for kept, rows in zip(answers, both):
            kept.append(rows)
        mask = _counted(trained.task, batch)
        pairs = [tuple(each.logits if mask is None else each.logits[mask] for each in watched)]
        if (later := _from_cache(exported, trained, batch, watched[0].logits)) is not None:
            pairs.append(later)
        for one, other in pairs:
            finite = torch.isfinite(other)
            found.not_finite += int((~finite).sum())
            difference = torch.where(finite, (one - other).abs(), torch.zeros(()))
            total, count = total + float(difference.double().sum()), count + difference.numel()
            found.largest_difference = max(found.largest_difference, float(difference.max()))
            found.largest_logit = max(found.largest_logit, float(one.abs().max()))
        others, number = _differing(trained.task, both, [each.logits for each in watched], batch, reach)
        found.answers, found.differing = found.answers + number, found.differing + int(others.sum())
        differing += indices[others > 0].tolist()
        seen.append(indices)
    found.mean_difference, found.rows = total / max(count, 1), sorted(differing)[:LISTED]
    order = np.argsort(np.concatenate(seen))
    rows_of = [np.concatenate(kept)[order] for kept in answers]
    found.original = held_out.task.metrics(rows_of[0], held_out.prepared)
    # What is not finite has been counted; the libraries that compute scores refuse it.
    found.exported = held_out.task.metrics(np.where(np.isfinite(rows_of[1]), rows_of[1], HUGE),
                                           held_out.prepared)
    return found


def _from_cache(exported: Any, trained: Trained, batch: dict[str, Any], original: Any) -> Optional[tuple[Any, Any]]:
    """The original's logits and the export's of the second tokens of answers, by the graph that has the keys and values
    of the first one; it has weights of its own. None where there is no such graph or no second token. `original`: the
    logits of all tokens."""
    import torch

    if getattr(exported, "decoder_with_past", None) is None or batch["labels"].shape[1] < 2:
        return None
    second = batch["labels"][:, 1] != IGNORED
    if not second.any():
        return None
    first = batch["labels"][:, :1]
    given = {"attention_mask": batch["attention_mask"], "encoder_outputs": exported.encoder(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])}
    with torch.inference_mode():
        start = torch.full_like(first, trained.config.decoder_start_token_id)
        made = exported(decoder_input_ids=start, **given)
        made = exported(decoder_input_ids=first, past_key_values=made.past_key_values, **given)
    return original[second, 1], made.logits[second, 0].float()


def _classes(trained: Trained) -> int:
    """Numbers in a row of logits, for each token where the model writes."""
    if trained.task in ("causal-lm", "text-to-text"):
        return int(trained.config.vocab_size)
    return len(trained.labels) or 1


def _counted(task: str, batch: dict[str, Any]) -> Any:
    """Which of a batch's logits belong to tokens that count; None for all."""
    if task == "causal-lm":
        return batch["attention_mask"] > 0
    return batch["labels"] != IGNORED if task == "text-to-text" else None


def _differing(task: str, answers: list[np.ndarray], logits: list[Any], batch: dict[str, Any],
               reach: float) -> tuple[np.ndarray, int]:
    """How many answers of each row are others (int[n]), and of how many in all."""
    if task == "causal-lm":
        count = batch["attention_mask"][:, 1:] > 0
        others = (logits[0].argmax(-1) != logits[1].argmax(-1))[:, :-1] & count
        return others.sum(1).numpy(), int(count.sum())
    one, other = (rows[:, 1:] for rows in answers)
    if task == "regression":
        return (~(np.abs(one - other) <= VALUE_LIMIT * reach)).sum(1), len(one)
    return (one != other).any(1).astype(int), len(one)
